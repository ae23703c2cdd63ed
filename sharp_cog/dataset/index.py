"""The index of a published dataset: one JSON object a line, to which many clients append."""

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
"""Fields of the public pipeline's index, so that its readers can read ours."""
OWN_FIELDS = (
    *("user_url", "license", "license_url", "image_path", "splat_paths", "sha256", "focal_length_px"),
    *("focal_length_source", "width", "height", "num_gaussians", "model", "sharp_cog"),
    "assumptions",
)
"""Fields that we add. All values are strings; `splat_paths` and `sha256` are JSON objects by format, `assumptions` is a
JSON array of sentences, or empty where it was not recorded."""

_BLOCK_BYTES = 1 << 20
"""Bytes of the copy that are read at once."""


class Index:
    """A repository's index, with a copy in a local file.

    Clients append rows, so that usually only the rows after the copy's end must be read. The hub's hash of the whole
    file shows whether that is enough.

    Attributes:
        path_in_repo: Path of the index in the repository.
        ids: Ids of the photographs in the index.
    """

    def __init__(self, path_in_repo: str, cache: Path) -> None:
        self.path_in_repo = path_in_repo
        self.ids: set[str] = set()
        self._cache = cache
        self._size = 0
        with self._translate_errors():
            # Copy and drafts of an earlier run: the first `update` reads the whole index again.
            for left in cache.parent.glob(f"{cache.name}*"):
                left.unlink()
            cache.touch()

    @contextmanager
    def _translate_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise cannot_write(self._cache, error) from error

    def update(self, view: HubView) -> None:
        """Bring the copy to the state of a commit.

        Raises:
            HubError: The index in the repository is broken.
        """
        stat = view.stat(self.path_in_repo)
        if stat is None:
            self._write(b"", is_new=True)
            self.ids.clear()
            return
        more = b""
        # Usually other clients have only appended rows, and only these are read.
        if stat.size > self._size > 0:
            more = view.read(self.path_in_repo, start=self._size) or b""
            self._write(more, is_new=False)
        # The hash covers rows that were read long ago: a person may have edited or shortened the file at the hub.
        if stat.size == self._size and self._hash(is_lfs=stat.is_lfs) == stat.hash:
            self._add_ids(more)
        else:
            self.ids.clear()
            content = view.read(self.path_in_repo) or b""
            self._write(content, is_new=True)
            self._add_ids(content)

    def _write(self, content: bytes, *, is_new: bool) -> None:
        with self._translate_errors(), self._cache.open("wb" if is_new else "ab") as file:
            file.write(content)
            self._size = file.tell()

    def _add_ids(self, content: bytes) -> None:
        try:
            self.ids.update(str(row.get("image_id", "")) for row in read_rows(content))
        except ValueError as error:
            start = self._size - len(content)
            after = f" after byte {start}" if start else ""
            raise HubError(
                f"the index {self.path_in_repo} has a line that is no JSON object{after} ({error}): "
                "correct the file, or choose another HF_INDEX_REPO_PATH"
            ) from error

    def _hash(self, *, is_lfs: bool) -> str:
        """Return git's id of the copy, as a blob or as a large file."""
        # Git hashes a blob with a header before it. The id of a large file is the plain SHA-256 of its content.
        hashed = hashlib.sha256() if is_lfs else hashlib.sha1(b"blob %d\0" % self._size, usedforsecurity=False)
        with self._cache.open("rb") as file:
            while block := file.read(_BLOCK_BYTES):
                hashed.update(block)
        return hashed.hexdigest()

    def draft(self, rows: Iterable[Mapping[str, str]]) -> Path:
        """Write the index with more rows to a new file and return its path; call `accept` once it is committed."""
        path = self._cache.with_name(f"{self._cache.name}.{secrets.token_hex(4)}")
        with open_atomically(path) as file, self._cache.open("rb") as known:
            # A person may have edited the file and left out the last newline, which new rows need.
            last = b"\n"
            while block := known.read(_BLOCK_BYTES):
                file.write(block)
                last = block[-1:]
            if last != b"\n":
                file.write(b"\n")
            file.write(encode_rows(rows))
        return path

    def accept(self, path: Path, ids: Collection[str]) -> None:
        """Replace the copy by a draft that was committed, which added the photographs `ids`."""
        with self._translate_errors():
            os.replace(path, self._cache)
            self._size = self._cache.stat().st_size
        self.ids.update(ids)


def full_row(values: Mapping[str, str]) -> dict[str, str]:
    """Return a row with all fields in their order; missing values are empty."""
    return {name: str(values.get(name, "")) for name in (*PUBLIC_FIELDS, *OWN_FIELDS)}


def read_rows(content: bytes) -> list[dict[str, Any]]:
    """Return the rows of an index.

    Raises:
        ValueError: A line is no JSON object; the message names the line.
    """
    rows = []
    # `splitlines` would also split at characters that JSON leaves unescaped, such as U+2028.
    for number, line in enumerate(content.split(b"\n"), 1):
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


def encode_rows(rows: Iterable[Mapping[str, Any]]) -> bytes:
    """Return rows as lines of an index; lone surrogates, which UTF-8 cannot encode, become question marks."""
    return "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows).encode("utf-8", "replace")
