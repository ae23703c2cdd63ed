"""`sharp-cog predict`: photographs in, splats out."""

from __future__ import annotations

import argparse
import logging
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sharp_cog.cli.plan import DepthMaps, Job, plan, prepare_outputs
from sharp_cog.cli.report import INTERRUPTED, add_setting_arguments, exit_code, print_error, settings_from
from sharp_cog.errors import DepthError, ImageError, InputError, SharpError
from sharp_cog.options import OUTPUT_FORMATS, PredictOptions

if TYPE_CHECKING:
    from sharp_cog.camera import Camera
    from sharp_cog.pipeline import Prediction, SharpPipeline

HELP = "turn photographs into splats"
DESCRIPTION = """\
Turns photographs into 3D Gaussian splats.

Of a folder, the files that are named like pictures are taken, without those named like room.depth.png. One bad picture
does not stop the rest. An existing splat is replaced, and never seen half written."""
EXAMPLES = """\
examples:
  sharp-cog predict photo.jpg                            writes photo.ply beside it
  sharp-cog predict holiday/ -o splats/                  every picture of a folder
  sharp-cog predict room.jpg --model lift --depth room.depth.png -o room.ply
"""

VIEWER_URL = "https://superspl.at/editor"

FOCAL_LENGTH_SOURCES = {
    "caller": "as given",
    "exif_35mm": "from EXIF, the 35 mm equivalent",
    "exif": "from EXIF, the lens",
    "default": "assumed, since the picture does not say; --focal-length-mm sets it",
}
"""What each source of a focal length is called."""

_LOG = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument("inputs", nargs="+", type=Path, metavar="INPUT", help="a picture, or a folder of pictures")
    parser.add_argument(
        "-o",
        "--output",
        metavar="OUT",
        help="the file to write; or the folder, if it exists, ends in / or there are several pictures "
        "(default: NAME.ply beside the picture; NAME.jpg.ply where two pictures have one name)",
    )
    parser.add_argument("-r", "--recursive", action="store_true", help="look into the folders below, too")
    parser.add_argument(
        "--depth",
        type=Path,
        metavar="PATH",
        help="a depth map (16-bit PNG in millimetres, .npy in metres), or a folder of them: "
        "NAME.depth.png or NAME.png belongs to NAME.jpg",
    )
    parser.add_argument(
        "--focal-length-px", metavar="PX", help="focal length in pixels (default: from EXIF, else 30 mm)"
    )
    parser.add_argument("--focal-length-mm", metavar="MM", help="focal length as a 35 mm equivalent")
    parser.add_argument(
        "--format",
        choices=OUTPUT_FORMATS,
        default=OUTPUT_FORMATS[0],
        help="ply (default): what every viewer reads; apple_ply: with the extra elements of Apple's own tool",
    )
    add_setting_arguments(parser, with_model=True)


def run(args: argparse.Namespace) -> int:
    """Predicts all pictures and returns the exit code."""
    settings = settings_from(args)
    options = PredictOptions.from_mapping(
        {
            "focal_length_px": args.focal_length_px,
            "focal_length_mm": args.focal_length_mm,
            "output_format": args.format,
        }
    )
    if settings.model == "lift" and args.depth is None:
        raise DepthError("the model 'lift' needs a depth map: give one (--depth FILE), or choose --model sharp")
    jobs = plan(
        args.inputs,
        output=None if args.output is None else Path(args.output),
        into_folder=args.output is not None and args.output.endswith("/"),
        recursive=args.recursive,
    )
    depth_maps = DepthMaps(args.depth)
    prepare_outputs(jobs)

    start = time.perf_counter()
    # Here and not above, since it takes seconds: what was wrong with the arguments has been said by now.
    from sharp_cog.pipeline import SharpPipeline

    pipeline = SharpPipeline.load(settings)
    _LOG.info("%s on %s, loaded in %.1f s", settings.model, pipeline.device, time.perf_counter() - start)
    return _predict_all(pipeline, jobs, options, depth_maps)


def _predict_all(pipeline: SharpPipeline, jobs: Sequence[Job], options: PredictOptions, depth_maps: DepthMaps) -> int:
    """Predicts one picture after the other; says what became of each, and returns the exit code."""
    from tqdm import tqdm
    from tqdm.contrib.logging import logging_redirect_tqdm

    many = len(jobs) > 1
    start = time.perf_counter()
    num_written, exit_codes = 0, set[int]()
    bar = tqdm(jobs, unit="picture", disable=not (many and sys.stderr.isatty()))
    try:
        with logging_redirect_tqdm([logging.getLogger("sharp_cog")]):
            for number, job in enumerate(bar, start=1):
                counter = f"[{number}/{len(jobs)}] " if many else ""
                try:
                    prediction = _predict(pipeline, job, options, depth_maps)
                    num_written += 1
                    with bar.external_write_mode():
                        print(counter + _summary(job, prediction), flush=True)
                        if not many:
                            print(_timings(prediction), _hint(), sep="\n")
                except SharpError as error:
                    exit_codes.add(exit_code(error))
                    with bar.external_write_mode():
                        print_error(error, subject=job.picture)
    except KeyboardInterrupt:
        print(f"interrupted: {num_written} of {len(jobs)} splats written, each of them whole", file=sys.stderr)
        return INTERRUPTED
    finally:
        bar.close()
    if many:
        print(f"{num_written} of {len(jobs)} splats written in {time.perf_counter() - start:.1f} s", file=sys.stderr)
    # A bad input among other failures is what the caller can do something about.
    return max(exit_codes, default=0)


def _predict(pipeline: SharpPipeline, job: Job, options: PredictOptions, depth_maps: DepthMaps) -> Prediction:
    """Predicts and writes one picture."""
    depth = depth_maps.find(job.picture)
    depth_bytes = None if depth is None else read_bytes(depth, DepthError)
    try:
        prediction = pipeline(read_bytes(job.picture, ImageError), options, depth_bytes=depth_bytes)
        prediction.write(job.output)
    except Exception as error:
        error.add_note(f"while predicting {job.picture}")
        raise
    return prediction


def read_bytes(path: Path, error_class: type[InputError]) -> bytes:
    """The content of an input file.

    Raises:
        InputError: It cannot be read; of the given class.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise error_class(f"cannot read {path}: {error.strerror or error}: check the path and its rights") from error


def focal_length_mm(camera: Camera) -> float:
    """The 35 mm equivalent of a camera's focal length, in millimetres."""
    from sharp_cog.camera import FULL_FRAME_DIAGONAL_MM

    return camera.focal_length_px * FULL_FRAME_DIAGONAL_MM / math.hypot(camera.width, camera.height)


def _summary(job: Job, prediction: Prediction) -> str:
    camera = prediction.camera
    return (
        f"wrote {job.output} from {job.picture.name}: {len(prediction.gaussians):,} Gaussians, "
        f"{job.output.stat().st_size / 1e6:.1f} MB; focal length {camera.focal_length_px:.1f} px = "
        f"{focal_length_mm(camera):.1f} mm ({FOCAL_LENGTH_SOURCES[camera.focal_length_source]})"
    )


def _timings(prediction: Prediction) -> str:
    stages = ", ".join(f"{stage} {seconds:.2f} s" for stage, seconds in prediction.timings.items())
    return f"{stages}; {sum(prediction.timings.values()):.2f} s in all"


def _hint() -> str:
    return f"to look at it, drop it on {VIEWER_URL}"
