"""Downloads one large file: in several ranges at once, resumable, verified, by one process at a time."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import random
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import requests
from filelock import FileLock, Timeout
from tqdm import tqdm

from sharp_cog.atomic import open_atomically
from sharp_cog.errors import DownloadError

_LOG = logging.getLogger(__name__)

_RETRYABLE_STATUS = {408, 425, 429, 500, 502, 503, 504}
_BLOCK = 1 << 16


@dataclass(frozen=True, kw_only=True, slots=True)
class Effort:
    """How hard to try.

    Attributes:
        num_connections: Ranges fetched at once, where the server serves ranges.
        piece_bytes: Size of a range; finished ones survive an interruption.
        max_failures: Failures in a row, without a byte between them, after which to give up.
        first_wait_s: Pause after the first failure; doubled with each one, with jitter, up to a minute.
        timeout_s: Longest silence of the server.
    """

    num_connections: int = 8
    piece_bytes: int = 32 << 20
    max_failures: int = 6
    first_wait_s: float = 1.0
    timeout_s: float = 30.0


class _Passing(Exception):  # noqa: N818
    """A fault that may pass: try again."""


class _Changed(Exception):  # noqa: N818
    """The server's file is not the one that the finished pieces belong to: start anew."""


def without_secrets(url: str) -> str:
    """The address without user, password and query, for messages."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def download(
    url: str, target: Path, *, sha256: str | None, num_bytes: int | None = None, effort: Effort | None = None
) -> None:
    """Downloads `url` to `target`, which appears whole and verified or not at all.

    An interrupted download leaves a partial file beside the target, from which the next one goes on. Processes that
    want the same target wait for the first.

    Args:
        url: An http or https address.
        target: A file in a folder that is made if need be; if it exists, nothing is done.
        sha256: Hash that the file must have, in lower-case hexadecimal; None accepts any.
        num_bytes: Length that the file must have, if it is known ahead.
        effort: How hard to try; None means the defaults.

    Raises:
        DownloadError: The server refuses, the file is another one, or it cannot be written.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _exclusive(target):
            if not target.exists():
                _Download(url, target, sha256, num_bytes, effort or Effort()).run()
    except OSError as error:
        reason = error.strerror or str(error)
        raise DownloadError(
            f"cannot write to {target.parent}: {reason}: choose another folder with SHARP_CACHE_DIR, or make room"
        ) from error


@dataclass(kw_only=True)
class _Offer:
    """What the server says about the file."""

    num_bytes: int | None
    takes_ranges: bool
    validator: str


class _Download:
    """One download under way. The caller holds the lock."""

    def __init__(self, url: str, target: Path, sha256: str | None, num_bytes: int | None, effort: Effort) -> None:
        self.url, self.name, self.effort = url, without_secrets(url), effort
        self.target, self.sha256, self.expected_bytes = target, sha256, num_bytes
        self.part = target.with_name(f".{target.name}.part")
        self.journal = target.with_name(f".{target.name}.part.json")
        self.stop = threading.Event()

    def run(self) -> None:
        self._persist(self._attempt)
        if self.sha256 is not None:
            _LOG.info("verifying %s", self.target.name)
            with self.part.open("rb") as file:
                actual = hashlib.file_digest(file, "sha256").hexdigest()
            if actual != self.sha256:
                self._discard()
                raise DownloadError(
                    f"what {self.name} served has the SHA-256 {actual}, expected {self.sha256}: it was removed; try "
                    "again, or set SHARP_CHECKPOINT_SHA256 if you meant another file"
                )
        os.replace(self.part, self.target)
        self.journal.unlink(missing_ok=True)

    def _attempt(self) -> None:
        """Asks what the server has, then fetches it."""
        offer = self._ask()
        if offer.num_bytes is not None and self.expected_bytes not in (None, offer.num_bytes):
            raise DownloadError(
                f"{self.name} offers {offer.num_bytes:,} bytes, expected {self.expected_bytes:,}: it is another file"
            )
        self._check_space(offer.num_bytes or self.expected_bytes or 0)
        try:
            if offer.takes_ranges and offer.num_bytes is not None:
                self._fetch_pieces(offer, offer.num_bytes)
            else:
                self._fetch_whole(offer)
        except _Changed as error:
            self._discard()
            raise _Passing(f"{error}; started anew") from error

    def _ask(self) -> _Offer:
        with self._get({"Range": "bytes=0-0"}) as response:
            headers = response.headers
            validator = headers.get("ETag", "") or headers.get("Last-Modified", "")
            if response.status_code == 206:
                total = headers.get("Content-Range", "").rpartition("/")[2]
                num_bytes = int(total) if total.isdigit() else None
                return _Offer(num_bytes=num_bytes, takes_ranges=True, validator=validator)
            length = headers.get("Content-Length", "")
            num_bytes = int(length) if length.isdigit() else None
            return _Offer(num_bytes=num_bytes, takes_ranges=False, validator=validator)

    def _get(self, headers: dict[str, str]) -> requests.Response:
        """A streamed response, checked to be the file or a part of it.

        Raises:
            _Passing: Worth another try.
            DownloadError: Not worth another try.
        """
        try:
            response = requests.get(
                self.url, headers={"Accept-Encoding": "identity", **headers}, stream=True, timeout=self.effort.timeout_s
            )
        except (requests.ConnectionError, requests.Timeout) as error:
            raise _Passing(f"no answer ({type(error).__name__})") from error
        except requests.RequestException as error:
            raise DownloadError(f"{self.name} cannot be fetched: {type(error).__name__}") from error
        status = response.status_code
        if status in _RETRYABLE_STATUS:
            response.close()
            raise _Passing(f"HTTP {status}")
        if status not in (200, 206):
            response.close()
            raise DownloadError(f"{self.name} answered HTTP {status} {response.reason}: check the address")
        if response.headers.get("Content-Type", "").startswith("text/html"):
            response.close()
            raise DownloadError(f"{self.name} answered with a web page instead of the file: check the address")
        return response

    def _fetch_pieces(self, offer: _Offer, num_bytes: int) -> None:
        """Fetches all ranges that the journal does not have yet."""
        piece = self.effort.piece_bytes
        done = self._read_journal(offer, num_bytes)
        with self.part.open("r+b" if self.part.exists() else "w+b") as file:
            file.truncate(num_bytes)
        missing = [start for start in range(0, num_bytes, piece) if start not in done]
        already = num_bytes - sum(min(piece, num_bytes - start) for start in missing)
        with _Progress(self.target.name, num_bytes, already) as progress:
            executor = ThreadPoolExecutor(self.effort.num_connections, thread_name_prefix="download")
            try:
                futures = {
                    executor.submit(self._fetch_piece, start, min(start + piece, num_bytes), offer, progress): start
                    for start in missing
                }
                for future in as_completed(futures):
                    future.result()
                    done.add(futures[future])
                    self._write_journal(offer, num_bytes, done)
            finally:
                # On a failure or Ctrl-C the workers stop at their next block.
                self.stop.set()
                executor.shutdown(cancel_futures=True)
                self.stop.clear()

    def _fetch_piece(self, start: int, end: int, offer: _Offer, progress: _Progress) -> None:
        """Fetches one range; goes on where a broken connection left off."""
        position = start

        def attempt() -> None:
            nonlocal position
            with self._get({"Range": f"bytes={position}-{end - 1}"}) as response, self.part.open("r+b") as file:
                expected = f"bytes {position}-{end - 1}/{offer.num_bytes}"
                served = response.headers.get("Content-Range", "none")
                validator = response.headers.get("ETag", "") or response.headers.get("Last-Modified", "")
                if response.status_code != 206 or served != expected or validator != offer.validator:
                    raise _Changed(f"the server's file changed ({served} for {expected})")
                file.seek(position)
                for block in self._blocks(response):
                    block = block[: end - position]
                    file.write(block)
                    position += len(block)
                    progress.add(len(block))
            if position < end:
                raise _Passing(f"the connection ended {end - position:,} bytes early")

        self._persist(attempt, lambda: position)

    def _fetch_whole(self, offer: _Offer) -> None:
        """Fetches a file from a server without ranges, from its start."""
        num_bytes = offer.num_bytes or self.expected_bytes
        with (
            self._get({}) as response,
            self.part.open("wb") as file,
            _Progress(self.target.name, num_bytes, 0) as progress,
        ):
            for block in self._blocks(response):
                file.write(block)
                progress.add(len(block))
            received = file.tell()
        if num_bytes is not None and received != num_bytes:
            raise _Passing(f"the connection ended after {received:,} of {num_bytes:,} bytes")

    def _blocks(self, response: requests.Response) -> Iterator[bytes]:
        try:
            for block in response.iter_content(_BLOCK):
                if self.stop.is_set():
                    raise _Passing("stopped")
                yield block
        except requests.RequestException as error:
            raise _Passing(f"the connection broke ({type(error).__name__})") from error

    def _persist(self, attempt: Callable[[], None], position: Callable[[], int] = lambda: 0) -> None:
        """Repeats an attempt until it works, or fails `max_failures` times in a row without getting further."""
        failures, last = 0, position()
        while True:
            try:
                return attempt()
            except _Passing as error:
                failures = 1 if position() > last else failures + 1
                last = position()
                if failures >= self.effort.max_failures or self.stop.is_set():
                    raise DownloadError(
                        f"{self.name} could not be downloaded ({error}, {failures} times in a row): run "
                        "'sharp-cog download' to go on, or fetch the file by hand and set SHARP_CHECKPOINT to its path"
                    ) from error
                wait_s = min(60.0, self.effort.first_wait_s * 2 ** (failures - 1)) * random.uniform(0.5, 1.0)  # noqa: S311
                _LOG.info("%s: %s; trying again in %.1f s", self.target.name, error, wait_s)
                self.stop.wait(wait_s)

    def _check_space(self, num_bytes: int) -> None:
        free = shutil.disk_usage(self.target.parent).free
        # The partial file is sparse: what it has already is what the disk gave it.
        has = self.part.stat().st_blocks * 512 if self.part.exists() else 0
        if num_bytes - has > free:
            raise DownloadError(
                f"{self.target.parent} has {free / 1e9:.2f} GB free and {self.target.name} needs "
                f"{(num_bytes - has) / 1e9:.2f} GB: make room, or choose another folder with SHARP_CACHE_DIR"
            )

    def _read_journal(self, offer: _Offer, num_bytes: int) -> set[int]:
        """Starts of the pieces that the partial file holds; none where they belong to another file."""
        try:
            journal = json.loads(self.journal.read_text())
            if {**journal, "done": None} == self._journal(offer, num_bytes, None) and self.part.exists():
                return set(journal["done"])
        except (OSError, ValueError, TypeError, KeyError):
            pass  # No journal, or a broken one: everything is fetched again.
        self._discard()
        return set()

    def _write_journal(self, offer: _Offer, num_bytes: int, done: set[int]) -> None:
        with open_atomically(self.journal) as file:
            file.write(json.dumps(self._journal(offer, num_bytes, sorted(done))).encode())

    def _journal(self, offer: _Offer, num_bytes: int, done: list[int] | None) -> dict[str, object]:
        return {
            "url": self.name,
            "validator": offer.validator,
            "num_bytes": num_bytes,
            "piece_bytes": self.effort.piece_bytes,
            "done": done,
        }

    def _discard(self) -> None:
        self.part.unlink(missing_ok=True)
        self.journal.unlink(missing_ok=True)


class _Progress:
    """A bar on a terminal, a log line every ten seconds elsewhere. Threads may add to it."""

    def __init__(self, name: str, num_bytes: int | None, already: int) -> None:
        self.name, self.num_bytes, self.received = name, num_bytes, already
        self.lock = threading.Lock()
        self.next_line = time.monotonic() + 10
        self.bar = tqdm(
            total=num_bytes,
            initial=already,
            desc=name,
            unit="B",
            unit_scale=True,
            disable=not sys.stderr.isatty(),
        )

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.close()

    def add(self, num_bytes: int) -> None:
        with self.lock:
            self.received += num_bytes
            self.bar.update(num_bytes)
            if self.bar.disable and time.monotonic() >= self.next_line:
                self.next_line += 10
                share = f" ({self.received / self.num_bytes:.0%})" if self.num_bytes else ""
                _LOG.info("%s: %.2f GB%s", self.name, self.received / 1e9, share)


@contextmanager
def _exclusive(target: Path) -> Iterator[None]:
    """Holds the target's lock file; says so when it has to wait. A killed holder frees it."""
    lock = FileLock(target.with_name(f".{target.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        _LOG.info("another process is downloading %s: waiting for it", target.name)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
