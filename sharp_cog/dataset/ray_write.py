"""Splats that come back from a Ray cluster, onto the disk of the run, in two steps.

A task of Ray writes each file under a name of its own; the run gives it its right name when the result is the first one
for its photograph. So whatever Ray does twice, a file is put in place once, and is the one that the journal describes.
"""

from __future__ import annotations

import pickle
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow

from sharp_cog.dataset.ray_feed import one_row
from sharp_cog.errors import OutputError

Made = tuple[dict[str, Any], dict[str, bytes]] | Exception
"""What an actor gives back: what `sharp_cog.dataset.make.make` returns and the files by name, or what it raises."""
Written = tuple[dict[str, Any], dict[str, str]] | Exception
"""The same with the names under which the files are on disk."""


def write(table: pyarrow.Table, folder: str) -> Iterator[pyarrow.Table]:
    """Writes the files of rows that hold a `Made`; gives rows that hold a `Written`."""
    for number, content in zip(table["number"].to_pylist(), table["content"], strict=True):
        made: Made = pickle.loads(content.as_buffer())  # noqa: S301 - from our actors
        yield one_row(number, pickle.dumps(_written(made, Path(folder))))


def _written(made: Made, folder: Path) -> Written:
    if made is None or isinstance(made, Exception):
        return made
    result, files = made
    parts = {name: f".{name}.{secrets.token_hex(4)}.part" for name in files}
    try:
        for name, content in files.items():
            (folder / parts[name]).write_bytes(content)
    except OSError as error:
        _remove(folder, parts)
        return _refused(folder, error)
    return result, parts


def put_in_place(written: Written, folder: Path) -> dict[str, Any] | Exception:
    """Gives files their names; an `OutputError` is the result where that cannot be."""
    if isinstance(written, Exception):
        return written
    result, parts = written
    try:
        for name, part in parts.items():
            (folder / part).replace(folder / name)
    except OSError as error:
        _remove(folder, parts)
        return _refused(folder, error)
    return result


def drop(written: Written | None, folder: Path) -> None:
    """Removes the files of a result that is not the first one."""
    if written is not None and not isinstance(written, Exception):
        _remove(folder, written[1])


def _remove(folder: Path, parts: dict[str, str]) -> None:
    for part in parts.values():
        (folder / part).unlink(missing_ok=True)


def _refused(folder: Path, error: OSError) -> OutputError:
    reason = error.strerror or str(error)
    return OutputError(f"cannot write to {folder}: {reason}: check the folder, its rights and the free space")
