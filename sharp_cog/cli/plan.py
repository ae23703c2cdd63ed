"""Decides which files a command reads and writes, before anything is loaded."""

from __future__ import annotations

import logging
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from sharp_cog.cli.targets import names_a_file, names_a_folder
from sharp_cog.depth.files import SUFFIXES as DEPTH_SUFFIXES
from sharp_cog.errors import DepthError, ImageError, InputError, OutputError
from sharp_cog.files.atomic import sweep
from sharp_cog.formats.levels import has_levels
from sharp_cog.imaging.find import find_images
from sharp_cog.imaging.images import SUFFIXES as IMAGE_SUFFIXES

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One image to process, and the files that belong to it.

    Attributes:
        image: The image.
        depth: Its depth map, if it has one.
        target: The file to write.
        preview: Film of the splat, which `predict --preview` writes.
        internal_depth: SHARP's monodepth, which `predict --save-internal-depth` writes.
    """

    image: Path
    depth: Path | None
    target: Path
    preview: Path
    internal_depth: Path


def plan(inputs: list[Path], *, output: str | None, depth: Path | None, suffix: str, recursive: bool) -> list[Job]:
    """Decide what is read and written, create the output folders, and check that they can be written.

    Args:
        inputs: Images, and folders of images.
        output: A file for one image; a folder for several, and where the folder exists, the name ends with a slash, or
            a folder is read and the name has no suffix; None writes beside each image.
        depth: A depth map for all images, or a folder of maps with the images' names, in the same folders.
        suffix: Suffix of the files to write.
        recursive: Whether to search folders of folders. Their structure is kept below the output folder, and expected
            below the folder of depth maps.

    Raises:
        InputError: There is no image, or several images would be written to one file.
        OutputError: A folder cannot be created or written.
    """
    if not any(path.exists() for path in inputs):
        raise ImageError(f"there is no file or folder {', '.join(map(str, inputs))}: check the path")
    if depth is not None and not depth.exists():
        raise DepthError(f"{depth} does not exist: name a depth map, or a folder of them")
    found = [
        (image, path)
        for path in inputs
        for image in (find_images(path, recursive=recursive) if path.is_dir() else [path])
    ]
    images = [image for image, _ in found]
    if not images:
        raise InputError(f"no image in {', '.join(map(str, inputs))}: name an image, or use --recursive")
    # Folders of the images relative to the inputs, empty for images that were named themselves.
    folders = [image.parent.relative_to(path) if path.is_dir() else Path() for image, path in found]
    reads_a_folder = any(path.is_dir() for path in inputs)
    if output is None:
        targets = [image.with_suffix(suffix) for image in images]
    elif len(images) > 1 and names_a_file(output):
        raise InputError(
            f"{len(images)} images cannot all become the file {output}: name a folder, such as "
            f"{Path(output).with_suffix('')}/"
        )
    elif len(images) > 1 or names_a_folder(output) or (reads_a_folder and not Path(output).suffix):
        targets = [
            Path(output) / folder / f"{image.stem}{suffix}" for image, folder in zip(images, folders, strict=True)
        ]
        for folder in {target.parent for target in targets}:
            make_folder(folder)
    else:
        targets = [Path(output)]
        if has_levels(targets[0]):  # They fill a folder of their own.
            make_folder(targets[0].parent)
    # a.jpg and a.png would both become a.ply, so each keeps its whole name: a.jpg.ply and a.png.ply.
    counts = Counter(targets)
    targets = [
        target.with_name(f"{image.name}{suffix}") if counts[target] > 1 else target
        for image, target in zip(images, targets, strict=True)
    ]
    _check_targets(images, targets)
    maps = _find_maps(found, depth)
    return [
        Job(
            image=image,
            depth=maps.get(image, depth),
            target=target,
            preview=target.with_name(f"{target.name.removesuffix(suffix)}.preview.webp"),
            internal_depth=target.with_name(f"{target.name.removesuffix(suffix)}_internal_depth.npy"),
        )
        for image, target in zip(images, targets, strict=True)
    ]


def make_folder(folder: Path) -> None:
    """Create a folder and its parents, unless they exist.

    Raises:
        OutputError: The folder cannot be created.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot create the folder {folder}: {error.strerror or error}") from error


def _check_targets(images: list[Path], targets: list[Path]) -> None:
    """Refuse to write one file twice, to overwrite an image, or to write into a folder without permission."""
    # One file may have many paths, and an overwritten photograph is lost: so resolved paths are compared.
    resolved_images = {image.resolve() for image in images}
    for target, count in Counter(targets).items():
        if count > 1:
            clashing = ", ".join(str(image) for image, other in zip(images, targets, strict=True) if other == target)
            raise InputError(f"{clashing} would all become {target}: run them one after the other")
        if target.resolve() in resolved_images:
            raise InputError(f"{target} is an image and would be overwritten: choose another -o")
    for folder in {target.parent for target in targets}:
        sweep(folder)
        try:
            # Tried, since permissions alone do not tell: the file system may be read-only or full.
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise OutputError(
                f"cannot write into the folder {folder}: {error.strerror or error}: choose another with -o"
            ) from error


def _find_maps(found: list[tuple[Path, Path]], depth: Path | None) -> dict[Path, Path | None]:
    """Return the depth map of each image in a folder of maps, which mirrors the folders of the images.

    The map of `in/x/a.jpg`, found in `in`, is `x/a.npy` in the folder of maps, as `sharp-cog depth -r` writes it. An
    image that is named itself has its map in the folder that is named like its own. A map in the folder of maps itself
    serves only an image whose name no other image has.

    Args:
        found: Images, each with the input that it was found in, or with itself.
        depth: The `--depth` argument; if it is no folder, the result is empty.
    """
    if depth is None or not depth.is_dir():
        return {}
    images = {image.resolve() for image, _ in found}
    mirrored = {image: _below(image.parent, path if path != image else Path()) for image, path in found}
    places = {(mirrored[image], image.stem, image.parent) for image in mirrored}
    num_mirrored = Counter((folder, stem) for folder, stem, _ in places)
    num_named = Counter(stem for _, stem, _ in places)
    maps = dict[Path, Path | None]()
    for image, folder in mirrored.items():
        parents = [depth / folder] if folder is not None and num_mirrored[folder, image.stem] == 1 else []
        parents += [depth] if num_named[image.stem] == 1 else []
        candidates = (
            parent / f"{stem}{suffix}"
            for parent in dict.fromkeys(parents)
            for suffix in DEPTH_SUFFIXES
            for stem in (image.name, f"{image.stem}.depth", image.stem)
        )
        maps[image] = next((each for each in candidates if each.is_file() and not _is_image(each, image, images)), None)
        if maps[image] is None:
            _LOG.warning("%s has no depth map for %s", depth, image.name)
    return maps


def _below(folder: Path, top: Path) -> Path | None:
    """Return the path from `top` down to a folder; None if the folder is elsewhere."""
    if not folder.is_relative_to(top) or ".." in folder.relative_to(top).parts:
        return None
    return folder.relative_to(top)


def _is_image(candidate: Path, image: Path, images: set[Path]) -> bool:
    """Report whether a file that is named like the map of an image is an image itself.

    Other images of the run are no maps, nor are pictures in colours or in 8-bit grey beside the image: `a.png` may be
    the same photograph as `a.webp`.
    """
    if candidate.resolve() in images:
        return True
    is_beside = candidate.parent.resolve() == image.parent.resolve() and candidate.stem == image.stem
    if not is_beside or candidate.suffix.lower() not in IMAGE_SUFFIXES:
        return False
    try:
        with Image.open(candidate) as opened:
            return not opened.mode.startswith(("I", "F"))
    except (OSError, ValueError, Image.DecompressionBombError):
        return False  # Reading it as a map says what is wrong with it.
