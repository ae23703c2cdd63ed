"""Find the images of a folder, and leave out what this package itself has written there."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from sharp_cog.imaging.images import SUFFIXES
from sharp_cog.imaging.raws import RAW_SUFFIXES, can_develop
from sharp_cog.text import plain

_LOG = logging.getLogger(__name__)

OUTPUT_STEMS = (".depth", ".depths", ".preview", "_internal_depth")
"""Ends of the stems of depth maps and previews: `photo.depth.webp` is our output for `photo.jpg`, not another photo."""

_MAX_PATH_CHARS = 300


def find_images(folder: Path, *, recursive: bool) -> list[Path]:
    """Return the images of a folder in the order of their paths.

    Hidden files, depth maps and previews are left out. Links to files are followed and links to folders are not, since
    they may lead in circles. A folder that cannot be read is logged and left out, and so are camera raws if the extra
    `raw` is not installed.

    Args:
        folder: The folder to look into.
        recursive: Whether to look into the folders below it too.
    """
    found, raws = list[Path](), list[Path]()
    for parent, folders, names in os.walk(folder, onerror=_log_unreadable):
        found += [path for name in names if _is_image(path := Path(parent, name), SUFFIXES)]
        raws += [path for name in names if _is_image(path := Path(parent, name), RAW_SUFFIXES)]
        if not recursive:
            folders.clear()  # `os.walk` goes into the folders that are left in this list.
    if raws and not can_develop():
        _LOG.warning("%d camera raws are left out: install the extra 'raw' to read them", len(raws))
        raws = []
    return sorted(found + raws)


def _is_image(path: Path, suffixes: frozenset[str]) -> bool:
    if path.suffix.lower() not in suffixes or path.name.startswith(".") or path.stem.endswith(OUTPUT_STEMS):
        return False
    return os.path.isfile(path)  # Unlike `Path.is_file`, it raises for no error of the file system.


def _log_unreadable(error: OSError) -> None:
    _LOG.warning(
        "the folder %s cannot be read and is left out: %s", plain(error.filename, _MAX_PATH_CHARS), error.strerror
    )
