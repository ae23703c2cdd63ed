"""The command line: `sharp-cog`, or `python -m sharp_cog`.

Only the module of the chosen command is imported, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module

import sharp_cog
from sharp_cog.cli.settings import (
    Flag,
    as_float,
    as_int,
    dataset_flags,
    flag,
    format_flag,
    in_flags,
    option_flags,
    setting_flags,
)
from sharp_cog.config.models import ESTIMATORS, FREE_ESTIMATORS
from sharp_cog.config.options import AXES, OutputOptions, PredictOptions
from sharp_cog.config.parameters import sentence
from sharp_cog.errors import InputError, SharpError
from sharp_cog.text import trace

EXIT_FAILED = 1
"""Exit code of any failure that is not the user's."""
EXIT_BAD_INPUT = 2
"""Exit code when an input or an option was bad."""
EXIT_INTERRUPTED = 130
"""Exit code after Ctrl-C: 128 and the number of SIGINT, as shells have it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Command:
    """A command; the module `sharp_cog.cli.<name>` runs it.

    Attributes:
        help: Purpose, as a phrase without a full stop.
        example: Command line to copy.
        flags: Flags and positional arguments, besides `--verbose`, which every command has.
    """

    help: str
    example: str
    flags: list[Flag]


_IMAGE = flag("image", metavar="IMAGE", help="an image")
_IMAGES = flag("inputs", nargs="+", metavar="IMAGE", help="an image, or a folder of images")
_RECURSIVE = flag("-r", "--recursive", action="store_true", help="search subfolders too")
_SPLAT_HELP = "a splat: .ply, .compressed.ply, .splat, .spz, .sog, .glb, .usdz or .ksplat"
_INPUT_AXES = flag(
    "--input-axes", choices=tuple(AXES), default="auto", help="axes of the input (default: auto, as the file says)"
)
_DROP_INVALID = flag(
    "--drop-invalid",
    action="store_true",
    help="drop Gaussians whose values are not finite, and report their number, instead of refusing the file",
)
_EXISTING = [
    flag(
        "--overwrite",
        action="store_true",
        help="replace images, videos and depth maps that exist already, even if sharp-cog has not written them",
    ),
    flag("--skip-existing", action="store_true", help="leave out outputs that exist already"),
]
_ESTIMATOR_CHECKPOINT = flag(
    "--estimator-checkpoint",
    metavar="NAME",
    help="the estimator's checkpoint: a name on the Hugging Face hub, or a folder",
)
_NETWORK = setting_flags("checkpoint", "device", "precision", "commercial")
_COMPARED = "sharp,depth-pro,depth-anything-v2-metric"

COMMANDS = {
    "predict": Command(
        help="turn photographs into splats",
        example="sharp-cog predict photo.jpg holiday/ -o splats/",
        flags=[
            _IMAGES,
            flag("-o", "--output", metavar="PATH", help="file, or folder for many images (default: beside each image)"),
            _RECURSIVE,
            *_EXISTING,
            *setting_flags("model"),
            flag(
                "--free",
                action="store_true",
                help="without SHARP's weights, for any use, commercial too: the depth is the photograph's own, else "
                f"that of a free network ({' or '.join(FREE_ESTIMATORS)})",
            ),
            flag(
                "--depth",
                metavar="PATH",
                help="depth map (.npy, .npz, 16-bit PNG, float TIFF, .exr, .pfm), a folder of maps that are named like "
                "the images, or `embedded` for the depth that the photographs carry",
            ),
            flag(
                "--depth-from",
                choices=("embedded", *ESTIMATORS),
                help="take the depth that the photographs carry (embedded), or estimate it with this network",
            ),
            _ESTIMATOR_CHECKPOINT,
            flag("--preview", action="store_true", help="also write a short animation of the splat (.preview.webp)"),
            format_flag(),
            *option_flags(PredictOptions),
            *_NETWORK,
        ],
    ),
    "download": Command(
        help="download Apple's checkpoint (2.81 GB) and verify it",
        example="sharp-cog download --cache-dir /models",
        flags=setting_flags("cache_dir"),
    ),
    "models": Command(
        help="list the networks: size, licence, whether commercial use is allowed, whether they are on this disk",
        example="sharp-cog models",
        flags=[flag("--json", action="store_true", help="print JSON"), *setting_flags("checkpoint", "cache_dir")],
    ),
    "info": Command(
        help="describe a splat or an image",
        example="sharp-cog info room.ply",
        flags=[
            flag("file", metavar="FILE", help=f"{_SPLAT_HELP}; or an image"),
            flag("--json", action="store_true", help="print JSON"),
            _INPUT_AXES,
            _DROP_INVALID,
        ],
    ),
    "convert": Command(
        help="write a splat in another format, simplified, or in other axes",
        example="sharp-cog convert room.ply room.sog --max-gaussians 500000",
        flags=[
            flag("source", metavar="IN", help=_SPLAT_HELP),
            flag("target", metavar="OUT", help="output file; its suffix names the format"),
            *_EXISTING,
            _INPUT_AXES,
            _DROP_INVALID,
            format_flag(),
            *option_flags(OutputOptions),
        ],
    ),
    "depth": Command(
        help="estimate the depth maps of photographs, in metres",
        example="sharp-cog depth holiday/ -o depths/ --estimator depth-pro",
        flags=[
            _IMAGES,
            flag("-o", "--output", metavar="FOLDER", help="folder, or a file .npy (default: beside each image)"),
            _RECURSIVE,
            *_EXISTING,
            flag(
                "--estimator",
                choices=("sharp", *ESTIMATORS),
                default="depth-pro",
                help="network that estimates the depth (default: depth-pro)",
            ),
            _ESTIMATOR_CHECKPOINT,
            *_NETWORK,
        ],
    ),
    "compare-depth": Command(
        help="compare the depth maps and the splats of SHARP and other networks side by side",
        example="sharp-cog compare-depth photo.jpg -o compared/",
        flags=[
            _IMAGE,
            flag("-o", "--output", metavar="FOLDER", required=True, help="folder to write to"),
            flag(
                "--estimators",
                default=_COMPARED,
                metavar="NAMES",
                help=f"networks to compare, separated by commas: sharp, {', '.join(ESTIMATORS)} (default: {_COMPARED})",
            ),
            flag("--depth-pro", metavar="NAME", help="Depth Pro's checkpoint (default: from the Hugging Face hub)"),
            flag("--depth-anything", metavar="NAME", help="Depth Anything V2's checkpoint (default: same hub)"),
            flag("--depth-anything-3", metavar="NAME", help="Depth Anything 3's checkpoint (default: same hub)"),
            flag("--moge", metavar="NAME", help="MoGe-2's checkpoint (default: same hub)"),
            *_NETWORK,
        ],
    ),
    "render": Command(
        help="render a video or an image of a splat",
        example="sharp-cog render room.ply -o room.mp4 --path swipe",
        flags=[
            flag("splat", metavar="SPLAT", help=_SPLAT_HELP),
            flag("-o", "--output", metavar="FILE", help=".mp4, .webp or .png (default: the splat's name with .mp4)"),
            *_EXISTING,
            flag(
                "--path",
                default="rotate_forward",
                help="camera path: swipe, shake, rotate or rotate_forward (default: rotate_forward)",
            ),
            flag("--duration", type=as_float, default=4.0, metavar="S", help="duration in seconds (default: 4)"),
            flag("--fps", type=as_int, default=30, metavar="N", help="frames per second (default: 30)"),
            flag("--width", type=as_int, default=768, metavar="PX", help="width of a frame in pixels (default: 768)"),
            flag(
                "--range",
                type=as_float,
                metavar="R",
                help="range of the camera's motion (default: as wide as no holes appear, at most 0.08)",
            ),
            flag("--depth", action="store_true", help="also write a video of the depth"),
            flag("--stereo", action="store_true", help="render two views side by side, for headsets"),
            _INPUT_AXES,
            _DROP_INVALID,
        ],
    ),
    "evaluate": Command(
        help="compare novel views of a model's splats with truth: PSNR, SSIM, and LPIPS if it is installed",
        example="sharp-cog evaluate --model lift",
        flags=[
            flag(
                "folder",
                nargs="?",
                metavar="FOLDER",
                help="folder of posed images with nerfstudio's transforms.json (default: the traced scenes)",
            ),
            flag("--source", metavar="NAME", help="image of the folder to predict from (default: the first one)"),
            flag(
                "--views",
                type=as_int,
                default=16,
                metavar="N",
                help="maximum number of other images of the folder to compare with (default: 16)",
            ),
            flag(
                "--scenes",
                metavar="NAMES",
                help="traced scenes, separated by commas (default: room,garden,portrait,street)",
            ),
            flag("--width", type=as_int, default=384, metavar="PX", help="width of the compared views (default: 384)"),
            flag(
                "--align",
                choices=("none", "depth"),
                default="none",
                help="scale of the splat. none: as predicted, which must have the unit of the poses; depth: one factor "
                "that fits it to the photograph's known depth (default: none)",
            ),
            flag("--with-depth", action="store_true", help="give SHARP the known depth too; lift always has it"),
            flag("-o", "--output", metavar="FOLDER", help="also write each truth beside its view, as .png"),
            flag("--json", action="store_true", help="print JSON"),
            *setting_flags("model"),
            *option_flags(PredictOptions, "max_gaussians", "min_opacity", "depth_mode", "back_surface_factor"),
            *_NETWORK,
        ],
    ),
    "verify": Command(
        help="compare this package's network with Apple's own package, stage by stage",
        example="sharp-cog verify photo.jpg",
        flags=[
            _IMAGE,
            *option_flags(PredictOptions, "focal_length_px", "focal_length_mm", "fov"),
            flag(
                "--tolerance",
                type=as_float,
                default=1e-3,
                metavar="E",
                help="largest relative difference (default: 0.001)",
            ),
            # No precision: Apple's package computes in float32, and so must the network that is compared with it.
            *setting_flags("checkpoint", "device"),
        ],
    ),
    "serve": Command(
        help="serve the model over HTTP, with a page for browsers",
        example="sharp-cog serve --http --model lift --port 8000",
        flags=[
            flag("--http", action="store_true", help="serve over HTTP (the default, and the only service here)"),
            *setting_flags("model"),
            flag("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1, this machine only)"),
            flag("--port", type=as_int, default=8000, metavar="N", help="port to listen on (default: 8000)"),
            flag("--api-key", help=argparse.SUPPRESS),  # Understood, so that `serve` can say where the key belongs.
            flag(
                "--api-key-file",
                metavar="FILE",
                help="file with the keys that requests must have, one on each line (default: SHARP_API_KEY, which "
                "other users cannot see, as they could a flag)",
            ),
            *setting_flags("allowed_hosts", "allowed_origins", "rate_limit"),
            *_NETWORK,
        ],
    ),
    "dataset": Command(
        help="turn a stream of photographs into a dataset of splats",
        example="sharp-cog dataset run --input-dir photos/ --formats ply,spz",
        flags=[
            flag(
                "action", choices=("run", "status"), help="run: start or continue the run; status: report its progress"
            ),
            *dataset_flags(),
        ],
    ),
}


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line, with all commands."""
    parser = argparse.ArgumentParser(
        prog="sharp-cog", description="Turns photographs into 3D Gaussian splats with Apple's SHARP model."
    )
    parser.add_argument("--version", action="version", version=f"sharp-cog {sharp_cog.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        parser_of_command = commands.add_parser(
            name, help=command.help, description=sentence(command.help), epilog=f"example: {command.example}"
        )
        parser_of_command.add_argument(
            "-v", "--verbose", action="store_true", help="print details, and the traceback of an error"
        )
        for names, facts in command.flags:
            parser_of_command.add_argument(*names, **facts)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: Arguments; None takes those of the process.

    Returns:
        0 when all went well, 2 when an input or option was bad, 1 after any other failure, 130 after Ctrl-C.
    """
    arguments = build_parser().parse_args(argv)
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("sharp_cog")
    # In place of the handler of an earlier call in the same process, or every line would come twice.
    logger.handlers[:] = [handler]
    # Pillow warns of headers that are broken, before the error that says so.
    warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\b")
    logger.setLevel(logging.DEBUG if arguments.verbose else logging.INFO)
    try:
        with _interrupted_by_sigterm():
            exit_code: int = import_module(f"sharp_cog.cli.{arguments.command.replace('-', '_')}").run(arguments)
        # Text that a closed pipe refuses fails here, inside of `try`, and not when the interpreter ends.
        sys.stdout.flush()
    except SharpError as error:
        return report(error, verbose=arguments.verbose)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of the output, such as `head`, has closed it. Python flushes stdout once more at exit, which would
        # fail again, so it gets another target.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    return exit_code


@contextmanager
def _interrupted_by_sigterm() -> Iterator[None]:
    """Handle SIGTERM like Ctrl-C, so that no half-written file is left, and let it end the process afterwards."""
    is_main = threading.current_thread() is threading.main_thread()
    # Signals can be set in the main thread only, and a program around this one may handle SIGTERM itself.
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
        # The process ends by the signal itself, as its parent expects, once all blocks have cleaned up.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if received:
            sys.stdout.flush()
            signal.raise_signal(signal.SIGTERM)


def report(error: SharpError, *, verbose: bool, about: str = "") -> int:
    """Print an error, with flags in place of the names of options, and return its exit code.

    Args:
        error: The error.
        verbose: Whether to print its traceback too.
        about: Text before the message, such as the name of the file.
    """
    if verbose:
        logging.getLogger(__name__).debug("where it happened:\n%s", trace(error))
    print(f"error: {about}{in_flags(str(error))} [{error.code}]", file=sys.stderr)
    return EXIT_BAD_INPUT if isinstance(error, InputError) else EXIT_FAILED
