"""The unfinished file of a download, whose finished pieces survive the process."""

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
    """A hidden file beside the target, and a journal of its finished pieces. The caller holds the target's lock.

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
        """Check that the disk has room for the rest of a file of `num_bytes`.

        Raises:
            DownloadError: There is too little; the message has both sizes.
        """
        folder, allocated = self.path.parent, 0
        if self.path.exists():
            # The file is sparse, so only its blocks count. `st_blocks` has units of 512 bytes, whatever the file
            # system's own.
            status = self.path.stat()
            # Windows does not count blocks, and its files are not sparse.
            allocated = int(getattr(status, "st_blocks", status.st_size / 512) * 512)
        free, needed = shutil.disk_usage(folder).free, num_bytes - allocated
        if needed > free:
            raise DownloadError(
                f"{folder} has {free / 1e9:.2f} GB free and {self._target.name} needs {needed / 1e9:.2f} GB: "
                "make room, or choose another folder with SHARP_CACHE_DIR"
            )

    def missing(self, offer: Offer, num_bytes: int) -> list[tuple[int, int]]:
        """Prepare the file for its pieces; return start and end of those that it does not hold."""
        # Pieces of another version of the file, or of another division into pieces, must not be reused.
        self._key = {
            "url": self._address,
            "validator": offer.validator,
            "num_bytes": num_bytes,
            "piece_bytes": self._piece_bytes,
        }
        self._done = self._read_journal(num_bytes)
        if not self._done:
            self.discard()
            # The full length at once, without data: threads can then write their pieces anywhere.
            with self.path.open("wb") as file:
                file.truncate(num_bytes)
        starts = range(0, num_bytes, self._piece_bytes)
        return [(start, min(start + self._piece_bytes, num_bytes)) for start in starts if start not in self._done]

    def add(self, start: int) -> None:
        """Note in the journal that a piece is complete. Threads may call it."""
        # Outside of the lock, so that other pieces are not held up by the disk.
        with self.path.open("r+b") as file:
            # After a power cut, the journal would otherwise list pieces that never reached the disk.
            os.fsync(file.fileno())
        with self._lock:
            self._done.add(start)
            # Not synchronized: if a power cut damages the journal, its pieces are fetched again.
            with open_atomically(self._journal) as journal:
                journal.write(json.dumps({**self._key, "done": sorted(self._done)}).encode())

    def _read_journal(self, num_bytes: int) -> set[int]:
        """Return the starts of the finished pieces; none if the file belongs to another offer."""
        try:
            journal = read_json(self._journal.read_bytes())
            done = set(journal.pop("done"))
            starts = range(0, num_bytes, self._piece_bytes)
            # A damaged journal may hold anything: starts between two pieces are refused, and 0.0, which equals 0,
            # becomes an integer.
            if journal == self._key and self.path.stat().st_size == num_bytes and all(one in starts for one in done):
                return {int(start) for start in done}
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            pass  # Without a valid journal, every piece is fetched again.
        return set()

    def complete(self, sha256: str | None) -> None:
        """Verify the file and rename it to its target.

        Raises:
            DownloadError: The file is a web page or has another hash; it was removed.
        """
        with self.path.open("r+b") as file:
            # The rename could reach the disk before the content, and a power cut would leave a broken file with a valid
            # name.
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
        # In this order, because a journal without its file is ignored if the process ends in between.
        os.replace(self.path, self._target)
        self._journal.unlink(missing_ok=True)

    def discard(self) -> None:
        """Remove the file and its journal; the journal first, since it must not list pieces that no longer exist."""
        self._journal.unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)
