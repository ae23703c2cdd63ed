"""Files that commands write: the formats that their names select, and the existing files that may be replaced."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sharp_cog import formats
from sharp_cog.config.output_formats import DEFAULT_FORMAT, OUTPUT_FORMATS
from sharp_cog.depth.files import described_format
from sharp_cog.errors import InputError, OptionError
from sharp_cog.formats.levels import has_levels
from sharp_cog.formats.recognize import is_splat
from sharp_cog.imaging.images import SUFFIXES as IMAGE_SUFFIXES
from sharp_cog.preview import movie

_PICTURE_SUFFIXES = {*IMAGE_SUFFIXES, *movie.SUFFIXES, ".avi", ".mkv", ".mov", ".webm"}
_FILE_SUFFIXES = _PICTURE_SUFFIXES | {".npy"} | {format_.suffix for format_ in OUTPUT_FORMATS.values()}
_MAX_NAMED = 3
"""Existing files that an error names; it counts the rest."""


def names_a_folder(output: str) -> bool:
    """Report whether `-o` names a folder: it ends with a slash, or the folder exists."""
    return output.endswith(("/", "\\")) or Path(output).is_dir()


def names_a_file(output: str) -> bool:
    """Report whether `-o` certainly names a file, by its suffix."""
    if names_a_folder(output):
        return False
    return Path(output).suffix.lower() in _FILE_SUFFIXES or has_levels(Path(output))


def format_of_output(output: str | None) -> str:
    """Return the format of splats that `-o` selects without `--format`.

    It is the default for a folder, for a name without a suffix, and for an unknown suffix, which may be a folder's.

    Raises:
        OptionError: The suffix is that of an image or of a video.
    """
    if output is None or names_a_folder(output) or not Path(output).suffix:
        return DEFAULT_FORMAT
    try:
        return formats.format_of(Path(output))
    except OptionError:
        if Path(output).suffix.lower() in _PICTURE_SUFFIXES:
            raise
        return DEFAULT_FORMAT


@dataclass(frozen=True, kw_only=True, slots=True)
class Existing:
    """Treatment of files that exist already.

    A splat replaces splats, which are known by their content, and nothing else. An image, a video or a depth map
    replaces those that sharp_cog has written. Empty files may be replaced by anything.

    Attributes:
        overwrite: Whether images, videos and depth maps of others may be replaced too.
        skip: Whether existing files are kept, and their inputs left out.

    Raises:
        OptionError: Both are given.
    """

    overwrite: bool
    skip: bool

    def __post_init__(self) -> None:
        if self.overwrite and self.skip:
            raise OptionError("--overwrite and --skip-existing are both given: leave one of them out")

    def leaves(self, paths: Sequence[Path], *, is_splat_format: bool) -> list[Path]:
        """Return the files to write, and print the number of those that are skipped.

        Args:
            paths: Files that a command would write.
            is_splat_format: Whether these are splats, and not images, videos or depth maps.

        Raises:
            InputError: A file must not be replaced, or cannot be read.
        """
        existing = [path for path in paths if path.is_file() and path.stat().st_size]
        kept = [path for path in existing if not self._may_replace(path, is_splat_format=is_splat_format)]
        if kept:
            more = f" and {len(kept) - _MAX_NAMED} more" if len(kept) > _MAX_NAMED else ""
            exist = "exist and are" if len(kept) > 1 else "exists and is"
            named = f"{', '.join(map(str, kept[:_MAX_NAMED]))}{more} {exist}"
            if is_splat_format:
                raise InputError(f"{named} not a splat: nothing was written; choose another -o")
            raise InputError(f"{named} not from sharp-cog: nothing was written; choose another -o, or add --overwrite")
        if not self.skip or not existing:
            return list(paths)
        print(f"{len(existing)} of {len(paths)} outputs exist already and are skipped")
        return [path for path in paths if path not in existing]

    def _may_replace(self, path: Path, *, is_splat_format: bool) -> bool:
        if self.overwrite and not is_splat_format:
            return True
        try:
            return is_splat(path) or _is_ours(path) if is_splat_format else _is_ours(path)
        except OSError as error:
            raise InputError(f"{path} exists and cannot be read: {error.strerror or error}: remove it") from error


def _is_ours(path: Path) -> bool:
    """Report whether sharp_cog has written an image, a video or a depth map."""
    if path.suffix.lower() == ".npy":
        return described_format(path) is not None
    content = path.read_bytes()
    is_picture = content.startswith((b"\x89PNG", b"RIFF")) or content[4:8] == b"ftyp"
    return is_picture and movie.MARK.encode() in content
