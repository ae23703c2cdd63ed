"""The index of a published dataset, one JSON object a line, that many clients append to."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sharp_cog.dataset.hub import HubError, HubView
from sharp_cog.files.atomic import cannot_write, open_atomically
from sharp_cog.text import plain, quoted, read_json

PUBLIC_FIELDS = (
    *("image_id", "image_url", "ply_url", "spz_url", "gsplat_url", "gsplat_share_id", "gsplat_order_id"),
    *("gsplat_model_file_url", "tags", "topics", "tags_text", "topics_text", "alt_description", "description"),
    *("unsplash_id", "unsplash_url", "created_at", "user_username", "user_name"),
)
"""Of the public pipeline's index, which ours can be read with."""
OWN_FIELDS = (
    *("user_url", "license", "license_url", "image_path", "splat_paths", "sha256", "focal_length_px"),
    *("focal_length_source", "width", "height", "num_gaussians", "model", "sharp_cog"),
)
"""What we add. All values are strings; `splat_paths` and `sha256` are JSON objects by format."""

_BLOCK_BYTES = 1 << 20


class Index:
    """The index as a repository has it, kept in a file here.

    Rows are appended, so that all that must be read anew is what others have appended since; the hub's hash of the
    whole says whether that is what happened.

    Attributes:
        ids: The photographs that are in it.
    """

    def __init__(self, path_in_repo: str, cache: Path) -> None:
        self.path_in_repo = path_in_repo
        self.ids: set[str] = set()
        self._cache = cache
        self._size = 0
        with self._translate_errors():
            for left in cache.parent.glob(f"{cache.name}*"):
                left.unlink()
            cache.touch()

    @contextmanager
    def _translate_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise cannot_write(self._cache, error) from error

    def look(self, view: HubView) -> None:
        """Brings it to what a commit holds."""
        stat = view.stat(self.path_in_repo)
        if stat is None:
            self._write(b"", is_new=True)
            self.ids.clear()
            return
        more = b""
        if stat.size > self._size > 0:
            more = view.read(self.path_in_repo, start=self._size) or b""
            self._write(more, is_new=False)
        if stat.size == self._size and self._hash(is_lfs=stat.is_lfs) == stat.hash:
            self._note(more)
        else:
            self.ids.clear()
            content = view.read(self.path_in_repo) or b""
            self._write(content, is_new=True)
            self._note(content)

    def _write(self, content: bytes, *, is_new: bool) -> None:
        with self._translate_errors(), self._cache.open("wb" if is_new else "ab") as file:
            file.write(content)
            self._size = file.tell()

    def _note(self, content: bytes) -> None:
        try:
            self.ids.update(str(row.get("image_id", "")) for row in read_rows(content))
        except ValueError as error:
            start = self._size - len(content)
            after = f" behind byte {start}" if start else ""
            raise HubError(
                f"the index {self.path_in_repo} has a line that is no JSON object{after} ({error}): "
                "mend it, or choose another HF_INDEX_REPO_PATH"
            ) from error

    def _hash(self, *, is_lfs: bool) -> str:
        """As git names a blob, or a large file."""
        hashed = hashlib.sha256() if is_lfs else hashlib.sha1(b"blob %d\0" % self._size, usedforsecurity=False)
        with self._cache.open("rb") as file:
            while block := file.read(_BLOCK_BYTES):
                hashed.update(block)
        return hashed.hexdigest()

    def with_rows(self, rows: Iterable[Mapping[str, str]]) -> Path:
        """The index with more rows, as a new file; `keep` belongs after it."""
        path = self._cache.with_name(f"{self._cache.name}.{secrets.token_hex(4)}")
        with open_atomically(path) as file, self._cache.open("rb") as known:
            last = b"\n"
            while block := known.read(_BLOCK_BYTES):
                file.write(block)
                last = block[-1:]
            if last != b"\n":
                file.write(b"\n")
            file.write(write_rows(rows))
        return path

    def keep(self, path: Path, ids: Collection[str]) -> None:
        """Once an index with more rows is committed."""
        with self._translate_errors():
            os.replace(path, self._cache)
            self._size = self._cache.stat().st_size
        self.ids.update(ids)


def row_of(known: Mapping[str, str]) -> dict[str, str]:
    """A row with every field, all of them strings, in one order."""
    return {name: str(known.get(name, "")) for name in (*PUBLIC_FIELDS, *OWN_FIELDS)}


def read_rows(content: bytes | None) -> list[dict[str, Any]]:
    """The rows of an index; none where there is none.

    Raises:
        ValueError: A line is no JSON object; the message says which.
    """
    rows = []
    # Not `splitlines`, which breaks at characters that JSON leaves as they are.
    for number, line in enumerate((content or b"").split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            row = read_json(line)
        except ValueError as error:
            raise ValueError(f"line {number}: {plain(error, 200)}") from error
        if not isinstance(row, dict):
            raise ValueError(f"line {number}: {quoted(row)}")
        rows.append(row)
    return rows


def write_rows(rows: Iterable[Mapping[str, Any]]) -> bytes:
    """Rows as an index has them; halves of characters, which no encoding has, become question marks."""
    return "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows).encode("utf-8", "replace")
