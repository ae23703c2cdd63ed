"""`sharp-cog predict`: photographs in, splats out; one bad picture does not stop the rest."""

from __future__ import annotations

import argparse
import logging
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from sharp_cog.cli import EXIT_BAD_INPUT, EXIT_FAILED, EXIT_INTERRUPTED, report
from sharp_cog.cli.settings import settings_from
from sharp_cog.errors import DepthError, ImageError, InputError, OutputError, SharpError
from sharp_cog.formats import FORMATS
from sharp_cog.options import PredictOptions
from sharp_cog.pipeline import Prediction, SharpPipeline

_LOG = logging.getLogger(__name__)

PICTURE_SUFFIXES = (
    *(".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif"),
    *(".heic", ".heif", ".hif", ".avif"),
)
"""What is taken for a picture in a folder; a file that is named is read whatever its name."""
DEPTH_SUFFIXES = (".png", ".npy")
_SOURCES = {"caller": "as given", "exif_35mm": "from EXIF", "exif": "from EXIF", "default": "assumed, 30 mm equivalent"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One picture to turn into one splat."""

    image: Path
    depth: Path | None
    target: Path


def run(arguments: argparse.Namespace) -> int:
    """Runs the command; see `sharp_cog.cli.main` for the exit code."""
    settings = settings_from(arguments)
    options = PredictOptions(
        focal_length_px=arguments.focal_length_px,
        focal_length_mm=arguments.focal_length_mm,
        output_format=arguments.format,
    )
    jobs = plan(
        [Path(path) for path in arguments.inputs],
        output=arguments.output,
        depth=None if arguments.depth is None else Path(arguments.depth),
        suffix=FORMATS[options.output_format].suffix,
        recursive=arguments.recursive,
    )
    pipeline = SharpPipeline.load(settings)
    exit_codes, num_written = set[int](), 0
    with tqdm(total=len(jobs), unit="picture", disable=len(jobs) == 1 or not sys.stderr.isatty()) as bar:
        for job in jobs:
            try:
                prediction = _predict(pipeline, job, options)
            except SharpError as error:
                bar.clear()
                exit_codes.add(report(error, verbose=arguments.verbose, about=f"{job.image}: "))
            except KeyboardInterrupt:
                bar.close()
                print(f"stopped: {num_written} of {len(jobs)} splats are written", file=sys.stderr)
                return EXIT_INTERRUPTED
            else:
                num_written += 1
                bar.clear()
                _tell(job.target, prediction)
            bar.update()
    if num_written:
        print("look: drop it on https://superspl.at/editor, or open it in any viewer of 3D Gaussian splats")
    if len(jobs) > 1:
        print(f"{num_written} of {len(jobs)} pictures became splats")
    return EXIT_FAILED if EXIT_FAILED in exit_codes else EXIT_BAD_INPUT if exit_codes else 0


def plan(inputs: list[Path], *, output: str | None, depth: Path | None, suffix: str, recursive: bool) -> list[Job]:
    """Decides what is read and written, before anything is loaded.

    Args:
        inputs: Pictures and folders of pictures.
        output: A file for one picture; a folder for many, or where it exists or ends with a slash; None is beside
            each picture.
        depth: A depth map for all, or a folder of maps named like the pictures.
        suffix: Of the splats' names.
        recursive: Whether folders in folders are looked into.

    Raises:
        InputError: There is no picture, or two would be written to one place.
        OutputError: The output folder cannot be made.
    """
    images = [image for path in inputs for image in _expand(path, recursive=recursive)]
    if not images:
        raise InputError(f"no picture in {', '.join(map(str, inputs))}: name a picture, or use --recursive")
    if depth is not None and not depth.exists():
        raise DepthError(f"{depth} does not exist: name a depth map, or a folder of them")
    is_folder = output is not None and (len(images) > 1 or output.endswith(("/", "\\")) or Path(output).is_dir())
    if is_folder:
        assert output is not None
        folder = Path(output)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"cannot make the folder {folder}: {error.strerror or error}") from error
        targets = [folder / f"{image.stem}{suffix}" for image in images]
    elif output is not None:
        targets = [Path(output)]
    else:
        targets = [image.with_suffix(suffix) for image in images]
    # a.jpg and a.png both become a.ply: then each keeps its whole name, a.jpg.ply and a.png.ply.
    counts = Counter(targets)
    targets = [
        target.with_name(f"{image.name}{suffix}") if counts[target] > 1 else target
        for image, target in zip(images, targets, strict=True)
    ]
    # A path may be spelled in many ways, and what is overwritten is gone.
    resolved_images = {image.resolve() for image in images}
    for target, count in Counter(targets).items():
        if count > 1:
            clashing = ", ".join(str(image) for image, other in zip(images, targets, strict=True) if other == target)
            raise InputError(f"{clashing} would all become {target}: run them one after the other")
        if target.resolve() in resolved_images:
            raise InputError(f"{target} is a picture and would be overwritten: choose another -o")
    return [
        Job(image=image, depth=_depth_of(image, depth), target=target)
        for image, target in zip(images, targets, strict=True)
    ]


def _expand(path: Path, *, recursive: bool) -> Iterator[Path]:
    """A file as it is; of a folder, the pictures, without the depth maps that lie beside them."""
    if not path.is_dir():
        yield path
        return
    for file in sorted(path.rglob("*") if recursive else path.iterdir()):
        is_depth = file.stem.endswith(".depth")
        if (
            file.suffix.lower() in PICTURE_SUFFIXES
            and not is_depth
            and not file.name.startswith(".")
            and file.is_file()
        ):
            yield file


def _depth_of(image: Path, depth: Path | None) -> Path | None:
    """The depth map of a picture: the one for all, or `<stem>.png`, `<stem>.depth.npy` and so on in the folder."""
    if depth is None or not depth.is_dir():
        return depth
    for suffix in DEPTH_SUFFIXES:
        for name in (f"{image.stem}.depth{suffix}", f"{image.stem}{suffix}"):
            if (depth / name).is_file() and depth / name != image:
                return depth / name
    _LOG.warning("%s has no depth map for %s", depth, image.name)
    return None


def _predict(pipeline: SharpPipeline, job: Job, options: PredictOptions) -> Prediction:
    image_bytes = _read(job.image, ImageError)
    depth_bytes = None if job.depth is None else _read(job.depth, DepthError)
    prediction = pipeline(image_bytes, options, depth_bytes=depth_bytes)
    prediction.write(job.target)
    return prediction


def _read(path: Path, error_type: type[InputError]) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise error_type(f"{path} cannot be read: {error.strerror or error}") from error


def _tell(target: Path, prediction: Prediction) -> None:
    """A line of what was written, and one of how long each stage took."""
    camera, megabytes = prediction.camera, target.stat().st_size / 1e6
    print(
        f"{target}: {len(prediction.gaussians):,} Gaussians, {megabytes:.1f} MB, focal length "
        f"{camera.focal_length_px:.0f} px ({_SOURCES[camera.focal_length_source]})"
    )
    stages = ", ".join(f"{stage} {seconds:.2f}" for stage, seconds in prediction.timings.items())
    print(f"  {sum(prediction.timings.values()):.2f} s: {stages}")
