"""Which files become which: pictures from the inputs, and for each a depth map and a place for the splat."""

from __future__ import annotations

import logging
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sharp_cog.depth.files import SUFFIXES as DEPTH_SUFFIXES
from sharp_cog.errors import DepthError, ImageError, InputError, OutputError
from sharp_cog.files.atomic import sweep
from sharp_cog.imaging.images import SUFFIXES as PICTURE_SUFFIXES

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One picture to turn into one splat, and perhaps a small film of it."""

    image: Path
    depth: Path | None
    target: Path
    preview: Path
    internal_depth: Path


def plan(inputs: list[Path], *, output: str | None, depth: Path | None, suffix: str, recursive: bool) -> list[Job]:
    """Decides what is read and written, and checks the folders, before anything is loaded.

    Args:
        inputs: Pictures and folders of pictures.
        output: A file for one picture; a folder for many, or where it exists or ends with a slash; None is beside
            each picture.
        depth: A depth map for all, or a folder of maps named like the pictures.
        suffix: Of the splats' names.
        recursive: Whether folders in folders are looked into; they are kept below the output folder.

    Raises:
        InputError: There is no picture, or two would be written to one place.
        OutputError: A folder cannot be made or written.
    """
    if not any(path.exists() for path in inputs):
        raise ImageError(f"there is no file or folder {', '.join(map(str, inputs))}: check the path")
    if depth is not None and not depth.exists():
        raise DepthError(f"{depth} does not exist: name a depth map, or a folder of them")
    found = [(image, path) for path in inputs for image in _expand(path, recursive=recursive)]
    images = [image for image, _ in found]
    if not images:
        raise InputError(f"no picture in {', '.join(map(str, inputs))}: name a picture, or use --recursive")
    if output is None:
        targets = [image.with_suffix(suffix) for image in images]
    elif len(images) > 1 or output.endswith(("/", "\\")) or Path(output).is_dir():
        folders = [image.parent.relative_to(path) if path.is_dir() else Path() for image, path in found]
        targets = [
            Path(output) / folder / f"{image.stem}{suffix}" for image, folder in zip(images, folders, strict=True)
        ]
        _make_folders(targets)
    else:
        targets = [Path(output)]
    # a.jpg and a.png both become a.ply: then each keeps its whole name, a.jpg.ply and a.png.ply.
    counts = Counter(targets)
    targets = [
        target.with_name(f"{image.name}{suffix}") if counts[target] > 1 else target
        for image, target in zip(images, targets, strict=True)
    ]
    _check_targets(images, targets)
    return [
        Job(
            image=image,
            depth=_depth_of(image, depth),
            target=target,
            preview=target.with_name(f"{target.name.removesuffix(suffix)}.preview.webp"),
            internal_depth=target.with_name(f"{target.name.removesuffix(suffix)}_internal_depth.npy"),
        )
        for image, target in zip(images, targets, strict=True)
    ]


def _make_folders(targets: list[Path]) -> None:
    for folder in {target.parent for target in targets}:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"cannot make the folder {folder}: {error.strerror or error}") from error


def _check_targets(images: list[Path], targets: list[Path]) -> None:
    """Refuses to write one file twice, to replace a picture, or into a folder that cannot be written."""
    # A path may be spelled in many ways, and what is overwritten is gone.
    resolved_images = {image.resolve() for image in images}
    for target, count in Counter(targets).items():
        if count > 1:
            clashing = ", ".join(str(image) for image, other in zip(images, targets, strict=True) if other == target)
            raise InputError(f"{clashing} would all become {target}: run them one after the other")
        if target.resolve() in resolved_images:
            raise InputError(f"{target} is a picture and would be overwritten: choose another -o")
    for folder in {target.parent for target in targets}:
        sweep(folder)
        try:
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise OutputError(
                f"cannot write into the folder {folder}: {error.strerror or error}: choose another with -o"
            ) from error


def _expand(path: Path, *, recursive: bool) -> Iterator[Path]:
    """A file as it is; of a folder, the pictures, without the depth maps and previews that lie beside them."""
    if not path.is_dir():
        yield path
        return
    for file in sorted(path.rglob("*") if recursive else path.iterdir()):
        is_ours = file.stem.endswith((".depth", ".preview", "_internal_depth"))
        if file.suffix.lower() in PICTURE_SUFFIXES and not is_ours and not file.name.startswith(".") and file.is_file():
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
