"""Pictures of a folder as a source."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from sharp_cog.dataset.photo import Photo, SourceError
from sharp_cog.errors import ImageError

DEPTH_SUFFIXES = (".npy", ".npz", ".png", ".tif", ".tiff", ".exr", ".pfm")
PICTURE_SUFFIXES = {
    ".jpg",
    ".jpeg",
    ".png",
    ".webp",
    ".tif",
    ".tiff",
    ".bmp",
    ".gif",
    ".heic",
    ".heif",
    ".hif",
    ".avif",
}


class Folder:
    """All pictures below a folder, in the order of their paths; `beach.depth.npy` is the depth map of `beach.jpg`.

    Raises:
        ImageError: There is no such folder.
    """

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise ImageError(f"SHARP_INPUT_DIR is {folder}, which is no folder: name a folder of pictures")
        self._folder = folder

    def photos(self, is_known: Callable[[str], bool]) -> Iterator[Photo]:
        """As `Source.photos`."""
        paths = (path for path in self._folder.rglob("*") if path.suffix.lower() in PICTURE_SUFFIXES)
        for path in sorted(path for path in paths if path.is_file() and not path.name.startswith(".")):
            if path.stem.endswith(".depth"):
                continue
            relative = path.relative_to(self._folder).as_posix()
            photo_id = id_of(relative)
            if not is_known(photo_id):
                yield Photo(
                    id=photo_id,
                    where=str(path.absolute()),
                    depth=next((str(depth) for depth in _depths(path) if depth.is_file()), ""),
                    row={"image_id": photo_id, "description": relative},
                )

    def fetch(self, photo: Photo) -> bytes:
        """As `Source.fetch`."""
        try:
            return Path(photo.where).read_bytes()
        except OSError as error:
            raise SourceError(f"{photo.where} cannot be read: {error.strerror or error}") from error


def id_of(relative: str) -> str:
    """A name for the path of a picture: readable, and of no other path."""
    stem = re.sub(r"[^A-Za-z0-9]+", "-", relative.rpartition(".")[0]).strip("-")[-60:] or "photo"
    return f"{stem}-{hashlib.sha256(relative.encode()).hexdigest()[:10]}"


def _depths(path: Path) -> Iterator[Path]:
    for suffix in DEPTH_SUFFIXES:
        yield path.with_name(f"{path.stem}.depth{suffix}").absolute()
