"""Find the images of a folder, and leave out what this package itself has written there."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from sharp_cog.imaging.images import SUFFIXES
from sharp_cog.text import plain

_LOG = logging.getLogger(__name__)

OUTPUT_STEMS = (".depth", ".depths", ".preview", "_internal_depth")
"""Ends of the stems of depth maps and previews: `photo.depth.webp` is our output for `photo.jpg`, not another photo."""

_MAX_PATH_CHARS = 300


def find_images(folder: Path, *, recursive: bool) -> list[Path]:
    """Return the images of a folder in the order of their paths.

    Hidden files, depth maps and previews are left out. Links to files are followed and links to folders are not, since
    they may lead in circles. A folder that cannot be read is logged and left out.

    Args:
        folder: The folder to look into.
        recursive: Whether to look into the folders below it too.
    """
    found: list[Path] = []
    for parent, folders, names in os.walk(folder, onerror=_log_unreadable):
        found += [path for name in names if _is_image(path := Path(parent, name))]
        if not recursive:
            folders.clear()  # `os.walk` goes into the folders that are left in this list.
    return sorted(found)


def _is_image(path: Path) -> bool:
    if path.suffix.lower() not in SUFFIXES or path.name.startswith(".") or path.stem.endswith(OUTPUT_STEMS):
        return False
    return os.path.isfile(path)  # Unlike `Path.is_file`, it raises for no error of the file system.


def _log_unreadable(error: OSError) -> None:
    _LOG.warning(
        "the folder %s cannot be read and is left out: %s", plain(error.filename, _MAX_PATH_CHARS), error.strerror
    )
