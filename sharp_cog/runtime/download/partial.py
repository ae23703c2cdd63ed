"""The unfinished file of a download: what it holds already survives the process."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
from pathlib import Path

from sharp_cog.errors import DownloadError
from sharp_cog.files.atomic import open_atomically
from sharp_cog.runtime.download.remote_file import Offer
from sharp_cog.text import read_json


class Partial:
    """A hidden file beside the target, and a journal of the pieces in it. The caller holds the target's lock.

    Attributes:
        path: The unfinished file; sparse while it is filled piece by piece.
    """

    def __init__(self, target: Path, address: str, piece_bytes: int) -> None:
        self._target, self._address, self._piece_bytes = target, address, piece_bytes
        self.path = target.with_name(f".{target.name}.part")
        self._journal = target.with_name(f".{target.name}.part.json")
        self._key: dict[str, object] = {}
        self._done: set[int] = set()
        self._lock = threading.Lock()

    def check_space(self, num_bytes: int) -> None:
        """Makes sure that the rest of the file has room.

        Raises:
            DownloadError: It has not; the message has both sizes.
        """
        free = shutil.disk_usage(self.path.parent).free
        needed = num_bytes - self._allocated_bytes()
        if needed > free:
            raise DownloadError(
                f"{self.path.parent} has {free / 1e9:.2f} GB free and {self._target.name} needs {needed / 1e9:.2f} GB: "
                f"make room, or choose another folder with SHARP_CACHE_DIR{self._kept()}"
            )

    def _kept(self) -> str:
        num_bytes = self._allocated_bytes()
        return f"; {num_bytes / 1e9:.2f} GB of it are there already, in {self.path}" if num_bytes else ""

    def _allocated_bytes(self) -> int:
        """What the disk has given to the unfinished file already."""
        try:
            status = self.path.stat()
        except FileNotFoundError:
            return 0
        # Where blocks are not counted, on Windows, files are not sparse.
        return int(getattr(status, "st_blocks", status.st_size / 512) * 512)

    def missing(self, offer: Offer, num_bytes: int) -> list[tuple[int, int]]:
        """Prepares the file for its pieces; returns start and end of those that it does not hold."""
        self._key = {
            "url": self._address,
            "validator": offer.validator,
            "num_bytes": num_bytes,
            "piece_bytes": self._piece_bytes,
        }
        self._done = self._read_journal(num_bytes)
        if not self._done:
            self.discard()
            with self.path.open("wb") as file:
                file.truncate(num_bytes)
        starts = range(0, num_bytes, self._piece_bytes)
        return [(start, min(start + self._piece_bytes, num_bytes)) for start in starts if start not in self._done]

    def add(self, start: int) -> None:
        """Notes that a piece is complete. Threads may call it."""
        with self.path.open("r+b") as file:
            os.fsync(file.fileno())  # The journal must not outlive the bytes that it vouches for.
        with self._lock:
            self._done.add(start)
            with open_atomically(self._journal) as journal:
                journal.write(json.dumps({**self._key, "done": sorted(self._done)}).encode())

    def _read_journal(self, num_bytes: int) -> set[int]:
        """Starts of the pieces in the file; none where it belongs to another offer."""
        try:
            journal = read_json(self._journal.read_bytes())
            done = set(journal.pop("done"))
            starts = range(0, num_bytes, self._piece_bytes)
            if journal == self._key and self.path.stat().st_size == num_bytes and all(one in starts for one in done):
                return {int(start) for start in done}
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            pass  # No journal, or a broken one: everything is fetched again.
        return set()

    def complete(self, sha256: str | None) -> None:
        """Checks the file and gives it its name.

        Raises:
            DownloadError: It is not what it should be, and was removed.
        """
        with self.path.open("r+b") as file:
            os.fsync(file.fileno())
            is_page = file.read(64).lstrip()[:1] == b"<"
            file.seek(0)
            actual = hashlib.file_digest(file, "sha256").hexdigest() if sha256 is not None else None
        if is_page or actual != sha256:
            self.discard()
            what = "a web page instead of the file" if is_page else f"the SHA-256 {actual}, expected {sha256}"
            raise DownloadError(
                f"{self._address} served {what}: it was removed; run 'sharp-cog download' to try again, correct "
                "SHARP_CHECKPOINT_URL or SHARP_CHECKPOINT_SHA256 if you meant another file, or fetch it by hand and "
                "set SHARP_CHECKPOINT=/path/to/the/file"
            )
        os.replace(self.path, self._target)
        self._journal.unlink(missing_ok=True)

    def discard(self) -> None:
        """Removes the file and its journal; the journal first, which must not vouch for what is not there."""
        self._journal.unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)
