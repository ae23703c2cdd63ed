"""Which files become which: pictures from the inputs, a splat's path and a depth map for each. Loads no model."""

from __future__ import annotations

import os
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from sharp_cog.errors import DepthError, ImageError, InputError, OptionError, OutputError

SPLAT_SUFFIX = ".ply"
"""Of every output format."""

PICTURE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".tif", ".tiff"),
    *(".bmp", ".gif", ".heic", ".heif", ".hif", ".avif"),
)
"""What is taken for a picture in a folder; a file that is named outright is taken whatever its name."""

DEPTH_SUFFIXES = (".png", ".npy")
"""What is taken for a depth map in a folder of depth maps."""

DEPTH_TAG = ".depth"
"""`room.depth.png` is the depth map of `room.jpg`, and not a picture itself."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One picture to predict.

    Attributes:
        picture: The picture's path.
        output: Where its splat goes.
    """

    picture: Path
    output: Path


@dataclass(frozen=True, kw_only=True, slots=True)
class _Found:
    """A picture, and its folder relative to the input that it was found in."""

    picture: Path
    subfolder: Path


def plan(inputs: Sequence[Path], *, output: Path | None, into_folder: bool, recursive: bool) -> list[Job]:
    """Finds the pictures and gives each a path for its splat.

    Without `output`, a splat goes beside its picture. Splats are named `<stem>.ply`; where that would be the same file
    for two pictures (`a.jpg` and `a.png`), the whole name is kept (`a.jpg.ply` and `a.png.ply`).

    Args:
        inputs: Pictures, and folders of pictures.
        output: File for one picture, or folder.
        into_folder: `output` is a folder even if it does not exist yet and there is one picture only.
        recursive: Folders are searched to the bottom, and the folders below them are kept below `output`.

    Raises:
        ImageError: An input is not there, or a folder holds no pictures.
        OptionError: `output` is a file but the inputs are many.
        InputError: Two pictures would become the same file, or a splat would replace an input.
    """
    found = list(_unique(_find(inputs, recursive=recursive)))
    many = len(found) > 1 or any(path.is_dir() for path in inputs)
    if output is not None and not (into_folder or many or output.is_dir()):
        return _checked([Job(picture=found[0].picture, output=output)])
    if output is not None and output.exists() and not output.is_dir():
        raise OptionError(f"the output {output} is a file, but there are several pictures: name a folder")
    folders = [each.picture.parent if output is None else output / each.subfolder for each in found]
    short = [folder / f"{each.picture.stem}{SPLAT_SUFFIX}" for folder, each in zip(folders, found, strict=True)]
    times = Counter(short)
    jobs = [
        Job(picture=each.picture, output=path if times[path] == 1 else folder / f"{each.picture.name}{SPLAT_SUFFIX}")
        for each, folder, path in zip(found, folders, short, strict=True)
    ]
    return _checked(jobs)


def prepare_outputs(jobs: Sequence[Job]) -> None:
    """Makes the splats' folders and checks that they can be written, before minutes are spent on a model.

    Raises:
        OutputError: A folder cannot be made or written, or there is a folder where a splat should go.
    """
    for job in jobs:
        if job.output.is_dir():
            raise OutputError(f"cannot write {job.output}: it is a folder: name a file, or remove the folder")
    for folder in sorted({job.output.parent for job in jobs}):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            reason = error.strerror or str(error)
            raise OutputError(
                f"cannot write into the folder {folder}: {reason}: check its rights, or choose another by -o"
            ) from error


class DepthMaps:
    """The depth maps that belong to pictures: one file for all, or a folder where names tell."""

    def __init__(self, path: Path | None) -> None:
        """Looks at the path, once.

        Args:
            path: A depth map for every picture; or a folder, where `room.depth.png` or else `room.png` (or .npy)
                belongs to `room.jpg`; or None.

        Raises:
            DepthError: There is nothing at the path.
        """
        if path is not None and not path.exists():
            raise DepthError(f"there is no depth map {path}: check the path")
        self._path = path
        self._by_name: dict[str, list[Path]] | None = None
        if path is not None and path.is_dir():
            self._by_name = defaultdict(list)
            for file in _listing(path, recursive=False):
                if file.suffix.lower() in DEPTH_SUFFIXES:
                    self._by_name[file.stem].append(file)

    def find(self, picture: Path) -> Path | None:
        """The depth map of a picture, or None if none are used.

        Raises:
            DepthError: The folder holds none for this picture, or several.
        """
        if self._by_name is None:
            return self._path
        for name in (picture.stem + DEPTH_TAG, picture.stem):
            fitting = [file for file in self._by_name.get(name, ()) if not _same(file, picture)]
            if len(fitting) > 1:
                names = ", ".join(sorted(file.name for file in fitting))
                raise DepthError(
                    f"the folder {self._path} holds several depth maps for {picture.name}: {names}: keep one"
                )
            if fitting:
                return fitting[0]
        raise DepthError(
            f"the folder {self._path} holds no depth map for {picture.name}: "
            f"name it {picture.stem}{DEPTH_TAG}.png or .npy"
        )


def _find(inputs: Iterable[Path], *, recursive: bool) -> Iterator[_Found]:
    """Yields the pictures of all inputs, in order; folders sorted by path."""
    missing = [str(path) for path in inputs if not path.exists()]
    if missing:
        raise ImageError(f"there is no file or folder {', '.join(missing)}: check the path")
    for path in inputs:
        if not path.is_dir():
            yield _Found(picture=path, subfolder=Path())
            continue
        pictures = [file for file in _listing(path, recursive=recursive) if _is_picture(file)]
        if not pictures:
            deeper = "" if recursive else ", or give --recursive to look into the folders below"
            raise ImageError(
                f"the folder {path} holds no pictures: put some there ({', '.join(PICTURE_SUFFIXES)}){deeper}"
            )
        for picture in pictures:
            yield _Found(picture=picture, subfolder=picture.parent.relative_to(path))


def _listing(folder: Path, *, recursive: bool) -> list[Path]:
    """The files of a folder, sorted, without hidden ones (`._photo.jpg` is no picture, but macOS writes it)."""
    unreadable: list[OSError] = []
    files: list[Path] = []
    for parent, subfolders, names in os.walk(folder, onerror=unreadable.append):
        subfolders[:] = [name for name in subfolders if recursive and not name.startswith(".")]
        files.extend(Path(parent, name) for name in names if not name.startswith("."))
    if unreadable:
        raise InputError(f"cannot read the folder {unreadable[0].filename}: {unreadable[0].strerror}: check its rights")
    return sorted(files)


def _is_picture(file: Path) -> bool:
    return file.suffix.lower() in PICTURE_SUFFIXES and not file.stem.endswith(DEPTH_TAG)


def _unique(found: Iterable[_Found]) -> Iterator[_Found]:
    """Drops pictures that were named twice, as by a folder and a file in it."""
    seen: set[Path] = set()
    for each in found:
        if each.picture.resolve() not in seen:
            seen.add(each.picture.resolve())
            yield each


def _checked(jobs: list[Job]) -> list[Job]:
    """Returns the jobs, if none of them writes what another writes or reads."""
    by_output: dict[Path, Job] = {}
    pictures = {job.picture.resolve() for job in jobs}
    for job in jobs:
        output = job.output.resolve()
        if output in pictures:
            raise InputError(f"the splat of {job.picture} would replace the input {job.output}: choose another by -o")
        if output in by_output:
            raise InputError(
                f"{by_output[output].picture} and {job.picture} would both become {job.output}: "
                "predict them one after the other into different folders"
            )
        by_output[output] = job
    return jobs


def _same(one: Path, other: Path) -> bool:
    return one.resolve() == other.resolve()
