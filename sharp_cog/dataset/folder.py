"""A folder of images as a source."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from sharp_cog.dataset.photo import MAX_IMAGE_BYTES, Photo, SourceError
from sharp_cog.depth import files as depth_files
from sharp_cog.errors import SettingError
from sharp_cog.imaging import images
from sharp_cog.imaging.find import find_images
from sharp_cog.text import plain

_LOG = logging.getLogger(__name__)


class Folder:
    """All images below a folder, in the order of their paths; `beach.depth.npy` is the depth map of `beach.jpg`.

    Args:
        folder: The folder.
        max_scan: Number of images to look at, known ones included; 0 has no limit.
        row: Fields that the index has for every image, such as `license` and `user_name`.

    Attributes:
        num_photos: Number of images to look at; None before the folder was read.

    Raises:
        SettingError: The folder does not exist.
    """

    def __init__(self, folder: Path, *, max_scan: int = 0, row: Mapping[str, str] | None = None) -> None:
        if not folder.is_dir():
            raise SettingError(f"SHARP_INPUT_DIR is {folder}, which is no folder: name a folder of images")
        self._folder, self._max_scan, self._row = folder, max_scan, dict(row or {})
        self.num_photos: int | None = None

    def photos(self, is_known: Callable[[str], bool]) -> Iterator[Photo]:
        """Yield the images; see `Source.photos`."""
        paths = find_images(self._folder, recursive=True)
        if not paths:
            suffixes = " ".join(sorted(images.SUFFIXES))
            _LOG.warning("the folder %s has no images: files are recognised by %s", plain(self._folder, 300), suffixes)
        paths = paths[: self._max_scan or None]
        self.num_photos = len(paths)
        for path in paths:
            relative = path.relative_to(self._folder).as_posix()
            try:
                num_bytes = path.stat().st_size
            except OSError as error:  # Deleted meanwhile.
                _LOG.warning("%s is left out: %s", path, error.strerror or error)
                continue
            photo_id = id_of(relative, num_bytes)
            if not is_known(photo_id):
                yield Photo(
                    id=photo_id,
                    where=str(path.absolute()),
                    depth=next((str(depth) for depth in _depths(path) if depth.is_file()), ""),
                    row={"image_id": photo_id, "description": relative, **self._row},
                )

    def fetch(self, photo: Photo) -> bytes:
        """Read an image; see `Source.fetch`."""
        path = Path(photo.where)
        try:
            if path.stat().st_size > MAX_IMAGE_BYTES:
                raise SourceError(f"{plain(path, 300)} has more than {MAX_IMAGE_BYTES // 10**6} MB: make it smaller")
            return path.read_bytes()
        except OSError as error:
            raise SourceError(f"{plain(path, 300)} cannot be read: {error.strerror or error}") from error


def id_of(relative: str, num_bytes: int) -> str:
    """Return a name for an image: readable, the same on every machine, and unique.

    Many folders have an `IMG_0001.jpg`; the size distinguishes these without reading the files.
    """
    stem = re.sub(r"[^A-Za-z0-9]+", "-", relative.rpartition(".")[0]).strip("-")[-60:] or "photo"
    # File names on old disks need not be UTF-8.
    digest = hashlib.sha256(f"{relative}\n{num_bytes}".encode("utf-8", "surrogateescape")).hexdigest()
    return f"{stem}-{digest[:10]}"


def _depths(path: Path) -> Iterator[Path]:
    for suffix in depth_files.SUFFIXES:
        yield path.with_name(f"{path.stem}.depth{suffix}").absolute()
