"""The command line: `sharp-cog`, or `python -m sharp_cog`.

Only the chosen command is imported, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING

import sharp_cog
from sharp_cog.config.dataset import add_flags
from sharp_cog.config.options import (
    AXES,
    DEPTH_FITS,
    DEPTH_FORMATS,
    DEPTH_MODES,
    ESTIMATORS,
    SPZ_VERSIONS,
)
from sharp_cog.config.output_formats import OUTPUT_FORMATS
from sharp_cog.config.settings import MODELS, PRECISIONS
from sharp_cog.errors import InputError, SharpError
from sharp_cog.text import trace

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

EXIT_FAILED, EXIT_BAD_INPUT, EXIT_INTERRUPTED = 1, 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Returns:
        0 when all went well, 2 when an input or option was bad, 1 for any other failure, 130 after Ctrl-C.
    """
    arguments = _parser().parse_args(argv)
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("sharp_cog")
    logger.handlers[:] = [handler]
    logger.setLevel(logging.DEBUG if arguments.verbose else logging.INFO)
    try:
        with _ended_by_sigterm():
            exit_code: int = import_module(f"sharp_cog.cli.{arguments.command.replace('-', '_')}").run(arguments)
        sys.stdout.flush()
    except SharpError as error:
        return report(error, verbose=arguments.verbose)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # Whoever read our output, such as `head`, has had enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    return exit_code


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """SIGTERM first does what Ctrl-C does, so that nothing half-written is left, and then ends the process."""
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    received: list[int] = []

    def interrupt(number: int, frame: object) -> None:
        received.append(number)
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if received:
            sys.stdout.flush()
            signal.raise_signal(signal.SIGTERM)


def report(error: SharpError, *, verbose: bool, about: str = "") -> int:
    """Prints an error, with its traceback if asked for, and returns its exit code."""
    if verbose:
        logging.getLogger(__name__).debug("where it happened:\n%s", trace(error))
    print(f"error: {about}{error} [{error.code}]", file=sys.stderr)
    return EXIT_BAD_INPUT if isinstance(error, InputError) else EXIT_FAILED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sharp-cog", description="Turns photographs into 3D Gaussian splats with Apple's SHARP model."
    )
    parser.add_argument("--version", action="version", version=f"sharp-cog {sharp_cog.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_predict(commands)
    _add_download(commands)
    _add_info(commands)
    _add_convert(commands)
    _add_depth(commands)
    _add_compare_depth(commands)
    _add_render(commands)
    _add_verify(commands)
    _add_serve(commands)
    _add_dataset(commands)
    return parser


def _command(commands: Commands, name: str, *, help_text: str, example: str) -> argparse.ArgumentParser:
    command = commands.add_parser(
        name, help=help_text, description=f"{help_text[0].upper()}{help_text[1:]}.", epilog=f"example: {example}"
    )
    command.add_argument("-v", "--verbose", action="store_true", help="say more, and show where errors come from")
    return command


def _add_model_settings(command: argparse.ArgumentParser, *, has_precision: bool = True) -> None:
    command.add_argument("--checkpoint", metavar="FILE", help="checkpoint file (else it is found or downloaded)")
    command.add_argument("--device", metavar="NAME", help="auto, cpu, cuda, cuda:1 or mps (default: auto)")
    if has_precision:
        command.add_argument(
            "--precision",
            choices=PRECISIONS,
            help="what SHARP computes in (default: auto, half where the device can)",
        )


def _add_focal_length(command: argparse.ArgumentParser) -> None:
    command.add_argument("--focal-length-px", type=float, metavar="PX", help="focal length in pixels of the picture")
    command.add_argument(
        "--focal-length-mm",
        type=float,
        metavar="MM",
        help="focal length as a 35 mm equivalent (default: from EXIF, else 30)",
    )


def _add_output_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--format", choices=tuple(OUTPUT_FORMATS), help="default: what the suffix of the output file says, else ply"
    )
    command.add_argument(
        "--max-gaussians", type=int, metavar="N", help="keep the N Gaussians that add most to the photograph's view"
    )
    command.add_argument(
        "--min-opacity", type=float, default=0.0, metavar="P", help="drop Gaussians less opaque than P (0 to 1)"
    )
    command.add_argument(
        "--axes",
        choices=AXES,
        default="auto",
        help="opencv: y down, z ahead; opengl: y up, z back (default: what the format asks for)",
    )
    command.add_argument("--scale", type=float, default=1.0, metavar="S", help="factor on all lengths (default: 1)")
    command.add_argument(
        "--center", action="store_true", help="make the scene's centre the origin, not the photograph's camera"
    )
    command.add_argument(
        "--spz-version", type=int, choices=SPZ_VERSIONS, default=3, help="of .spz: 3, which most read (default), or 4"
    )


def _add_input_axes(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--input-axes", choices=AXES, default="auto", help="axes of the splat that is read (default: what it says)"
    )


def _add_predict(commands: Commands) -> None:
    command = _command(
        commands,
        "predict",
        help_text="turn photographs into splats",
        example="sharp-cog predict photo.jpg holiday/ -o splats/",
    )
    command.add_argument("inputs", nargs="+", metavar="PICTURE", help="a picture, or a folder of pictures")
    command.add_argument(
        "-o", "--output", metavar="PATH", help="file for one picture, folder for many (default: beside each picture)"
    )
    command.add_argument("-r", "--recursive", action="store_true", help="look into folders of folders too")
    command.add_argument("--model", choices=MODELS, help="default: sharp; lift needs no weights but a depth map")
    command.add_argument(
        "--depth",
        metavar="PATH",
        help="depth map (.npy, .npz, 16-bit PNG, float TIFF, .exr, .pfm), or a folder of them named like the pictures",
    )
    command.add_argument(
        "--depth-from", choices=tuple(ESTIMATORS), help="make the depth map by this network on the way"
    )
    _add_estimator_checkpoint(command)
    command.add_argument(
        "--depth-format", choices=DEPTH_FORMATS, default="auto", help="what its numbers mean (default: as they look)"
    )
    command.add_argument(
        "--depth-mode",
        choices=DEPTH_MODES,
        default="ratio",
        help="ratio: the map, and SHARP's back surface as far behind it as behind its own; fixed: the back surface at "
        "the map times --back-surface-factor; align: SHARP's own depth, brought to the map (default: ratio)",
    )
    command.add_argument(
        "--back-surface-factor", type=float, default=1.0, metavar="F", help="above 1: the mode fixed (default: 1)"
    )
    command.add_argument(
        "--depth-fit",
        choices=DEPTH_FITS,
        default="auto",
        help="bring the map to SHARP's own depth first: by one factor, or by scale and shift of disparity (default: "
        "affine for maps that are not metric)",
    )
    command.add_argument("--depth-scale", type=float, default=1.0, metavar="S", help="factor on the depth (default: 1)")
    command.add_argument(
        "--depth-offset", type=float, default=0.0, metavar="M", help="metres added to the depth (default: 0)"
    )
    command.add_argument(
        "--save-internal-depth", action="store_true", help="write SHARP's own depth beside the splat (.npy and .png)"
    )
    _add_focal_length(command)
    command.add_argument(
        "--preview", action="store_true", help="write a small film of the splat beside it (.preview.webp)"
    )
    _add_output_options(command)
    _add_model_settings(command)


def _add_download(commands: Commands) -> None:
    command = _command(
        commands,
        "download",
        help_text="fetch Apple's checkpoint (2.81 GB) ahead of time and verify it",
        example="sharp-cog download --cache-dir /models",
    )
    command.add_argument("--cache-dir", metavar="FOLDER", help="where to keep it (default: torch hub's folder)")


def _add_info(commands: Commands) -> None:
    command = _command(
        commands, "info", help_text="say what is in a splat or a picture", example="sharp-cog info room.ply"
    )
    command.add_argument("file", metavar="FILE", help="a splat (.ply, .compressed.ply, .splat, .spz), or a picture")
    command.add_argument("--json", action="store_true", help="print JSON")


def _add_convert(commands: Commands) -> None:
    command = _command(
        commands,
        "convert",
        help_text="write a splat in another format, smaller, or placed in another way",
        example="sharp-cog convert room.ply room.sog --max-gaussians 500000",
    )
    command.add_argument("source", metavar="IN", help="a .ply, .compressed.ply, .splat or .spz")
    command.add_argument("target", metavar="OUT", help="where to; its suffix tells the format")
    _add_input_axes(command)
    _add_output_options(command)


def _add_estimator_checkpoint(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--estimator-checkpoint", metavar="NAME", help="name on the Hugging Face hub, or folder, of its checkpoint"
    )


def _add_depth(commands: Commands) -> None:
    command = _command(
        commands,
        "depth",
        help_text="make metric depth maps of photographs, ready for predict --depth",
        example="sharp-cog depth holiday/ -o depths/ --estimator depth-pro",
    )
    command.add_argument("inputs", nargs="+", metavar="PICTURE", help="a picture, or a folder of pictures")
    command.add_argument(
        "-o", "--output", metavar="FOLDER", help="where to; a name that ends with .npy is a file (default: beside each)"
    )
    command.add_argument("-r", "--recursive", action="store_true", help="look into folders of folders too")
    command.add_argument("--estimator", choices=("sharp", *ESTIMATORS), default="depth-pro", help="default: depth-pro")
    _add_estimator_checkpoint(command)
    _add_model_settings(command)


def _add_compare_depth(commands: Commands) -> None:
    command = _command(
        commands,
        "compare-depth",
        help_text="lay SHARP's depth and that of other networks side by side, with the splats that they make",
        example="sharp-cog compare-depth photo.jpg -o compared/",
    )
    command.add_argument("image", metavar="PICTURE", help="a picture")
    command.add_argument("-o", "--output", metavar="FOLDER", required=True, help="where to")
    command.add_argument(
        "--estimators",
        default=",".join(("sharp", *ESTIMATORS)),
        metavar="NAMES",
        help=f"which, with commas (default: sharp,{','.join(ESTIMATORS)})",
    )
    command.add_argument("--depth-pro", metavar="NAME", help="checkpoint of Depth Pro (default: from the hub)")
    command.add_argument("--depth-anything", metavar="NAME", help="that of Depth Anything (default: from the hub)")
    _add_model_settings(command)


def _add_render(commands: Commands) -> None:
    command = _command(
        commands,
        "render",
        help_text="make a video or a picture of a splat",
        example="sharp-cog render room.ply -o room.mp4 --path swipe",
    )
    command.add_argument("splat", metavar="SPLAT", help="a .ply, .compressed.ply, .splat or .spz")
    command.add_argument("-o", "--output", metavar="FILE", help=".mp4, .webp or .png (default: the splat's name, .mp4)")
    command.add_argument("--path", default="rotate_forward", help="swipe, shake, rotate or rotate_forward (default)")
    command.add_argument("--duration", type=float, default=4.0, metavar="S", help="seconds (default: 4)")
    command.add_argument("--fps", type=int, default=30, metavar="N", help="frames a second (default: 30)")
    command.add_argument("--width", type=int, default=768, metavar="PX", help="width of a frame (default: 768)")
    command.add_argument(
        "--range",
        type=float,
        metavar="R",
        help="how far the camera moves (default: as far as holes stay out of sight, at most 0.08)",
    )
    command.add_argument("--depth", action="store_true", help="write a video of the depth beside it")
    command.add_argument("--stereo", action="store_true", help="two views side by side, for headsets")
    _add_input_axes(command)


def _add_verify(commands: Commands) -> None:
    command = _command(
        commands,
        "verify",
        help_text="compare our network with Apple's own package, stage by stage",
        example="sharp-cog verify photo.jpg",
    )
    command.add_argument("image", metavar="PICTURE", help="a picture")
    _add_focal_length(command)
    command.add_argument(
        "--tolerance", type=float, default=1e-3, metavar="E", help="largest relative difference (default: 0.001)"
    )
    _add_model_settings(command, has_precision=False)  # Apple's is in float32, and ours is compared in it.


def _add_serve(commands: Commands) -> None:
    command = _command(
        commands,
        "serve",
        help_text="serve the model over HTTP, with a page for browsers",
        example="sharp-cog serve --http --model lift --port 8000",
    )
    command.add_argument("--http", action="store_true", help="this service (the default, and the only one here)")
    command.add_argument("--model", choices=MODELS, help="default: sharp; lift needs no weights but a depth map")
    command.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1, this machine alone)"
    )
    command.add_argument("--port", type=int, default=8000, metavar="N", help="port to listen on (default: 8000)")
    _add_model_settings(command)


def _add_dataset(commands: Commands) -> None:
    command = _command(
        commands,
        "dataset",
        help_text="turn a stream of photographs into a dataset of splats",
        example="sharp-cog dataset run --input-dir photos/ --formats ply,spz",
    )
    command.add_argument("action", choices=("run", "status"), help="run: begin, or go on; status: how far it is")
    add_flags(command)
