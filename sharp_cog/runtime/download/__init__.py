"""Download of one large file: in parallel ranges, resumable, verified, by one process at a time."""

from __future__ import annotations

import io
import logging
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Never

from filelock import FileLock, Timeout
from tqdm import tqdm

from sharp_cog.errors import DownloadError, OutputError
from sharp_cog.files.retry import TransientError
from sharp_cog.runtime.download.partial import Partial
from sharp_cog.runtime.download.remote_file import ChangedError, Effort, Offer, RemoteFile

__all__ = ["Effort", "download"]

_LOG = logging.getLogger(__name__)

_LOG_INTERVAL_S = 10.0


def download(
    url: str, target: Path, *, sha256: str | None, num_bytes: int | None = None, effort: Effort | None = None
) -> None:
    """Download `url` to `target`, which appears whole and verified or not at all.

    An interrupted download leaves a partial file beside the target, from which the next one resumes. Processes that
    want the same target wait for the first.

    Args:
        url: An http or https address.
        target: A file; its folder is created if necessary. If the file exists, nothing is done.
        sha256: Hash that the file must have, in lower-case hexadecimal; None accepts any.
        num_bytes: Length that the file must have, if known in advance.
        effort: Limits of the download; None means the defaults.

    Raises:
        DownloadError: The server refuses, sends another file, or the file cannot be written.
    """
    remedy = "choose another folder with SHARP_CACHE_DIR, or make room"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # The rename to a folder would fail too, but only after the last byte.
        if target.is_dir():
            raise DownloadError(f"{target} is a folder, where the checkpoint belongs: remove it, or {remedy}")
        with _exclusive(target):
            # Checked under the lock, because the process that held it before may have fetched the file.
            if not target.exists():
                _Download(url, target, sha256, num_bytes, effort or Effort()).run()
    except OSError as error:
        # These come from the file system alone. Errors of requests are OSErrors too, but `RemoteFile` translates them.
        reason = error.strerror or str(error)
        raise DownloadError(f"cannot write to {target.parent}: {reason}: {remedy}") from error
    except OutputError as error:
        raise DownloadError(f"{error}, or {remedy}") from error


class _Download:
    """One download under way. The caller holds the lock."""

    def __init__(self, url: str, target: Path, sha256: str | None, num_bytes: int | None, effort: Effort) -> None:
        self._name, self._sha256, self._expected_bytes, self._effort = target.name, sha256, num_bytes, effort
        self._remote = RemoteFile(url, effort)
        self._partial = Partial(target, self._remote.name, effort.piece_bytes)
        self._num_changes = 0
        self._progress_lock = threading.Lock()

    def run(self) -> None:
        self._remote.retry(self._attempt)
        if self._sha256 is not None:
            _LOG.info("verifying %s", self._name)
        self._partial.complete(self._sha256)

    def _attempt(self) -> None:
        offer = self._remote.look()
        if offer.num_bytes is not None and self._expected_bytes not in (None, offer.num_bytes):
            raise self._remote.error(
                f"offers {offer.num_bytes:,} bytes, expected {self._expected_bytes:,}, which is another file"
            )
        num_bytes = offer.num_bytes or self._expected_bytes
        self._partial.check_space(num_bytes or 0)
        # A file may be replaced once during the download. Where its ranges do not fit a second time, the server's
        # ranges are wrong, and only the whole file can be fetched.
        if offer.takes_ranges and offer.num_bytes is not None and self._num_changes < 2:
            try:
                self._fetch_pieces(offer, offer.num_bytes)
            except ChangedError as error:
                self._num_changes += 1
                self._partial.discard()
                raise TransientError(f"{error}; restarting") from error
        else:
            self._fetch_whole(num_bytes)

    def _fetch_pieces(self, offer: Offer, num_bytes: int) -> None:
        """Fetch all ranges that the partial file does not hold yet."""
        missing = self._partial.missing(offer, num_bytes)
        done = num_bytes - sum(end - start for start, end in missing)
        if done:
            _LOG.info("%s: resuming at %.2f of %.2f GB", self._name, done / 1e9, num_bytes / 1e9)
        with _progress(self._name, num_bytes, done) as progress:
            # Not as a context manager, which would fetch all other pieces before it passes an error on.
            executor = ThreadPoolExecutor(self._effort.num_connections, thread_name_prefix="download")
            try:
                futures = [executor.submit(self._fetch_piece, *span, offer, progress) for span in missing]
                for future in as_completed(futures):
                    future.result()
            finally:
                # After a failure or Ctrl-C, the workers stop at their next block.
                self._remote.stop.set()
                executor.shutdown(cancel_futures=True)
                # All workers have ended, and the next try needs the event unset.
                self._remote.stop.clear()

    def _fetch_piece(self, start: int, end: int, offer: Offer, progress: tqdm[Never]) -> None:
        """Fetch one range; after a broken connection, resume where it ended."""
        position = start

        def attempt() -> None:
            nonlocal position
            # A generator that is left half-way would keep its connection, so it is closed. Each try opens the file for
            # itself: threads write at different positions, and closing the file flushes its buffer before `add`
            # synchronizes the piece.
            with (
                closing(self._remote.read_range(position, end, offer)) as blocks,
                self._partial.path.open("r+b") as file,
            ):
                file.seek(position)
                for block in blocks:
                    file.write(block)
                    position += len(block)
                    # The counter of tqdm is not safe between threads.
                    with self._progress_lock:
                        progress.update(len(block))
            if position < end:
                raise TransientError(f"the connection ended {end - position:,} bytes early")

        self._remote.retry(attempt, lambda: position)
        self._partial.add(start)

    def _fetch_whole(self, num_bytes: int | None) -> None:
        """Fetch a file from its start, from a server without ranges."""
        self._partial.discard()  # Its journal describes pieces, which this file does not have.
        received = 0
        try:
            with (
                closing(self._remote.read_all(num_bytes)) as blocks,
                self._partial.path.open("wb") as file,
                _progress(self._name, num_bytes, 0) as progress,
            ):
                for block in blocks:
                    file.write(block)
                    received += len(block)
                    progress.update(len(block))
            if num_bytes is not None and received > num_bytes:
                raise self._remote.error(f"sends more than the expected {num_bytes:,} bytes, which is another file")
            if received == 0 or (num_bytes is not None and received < num_bytes):
                expected = "" if num_bytes is None else f" of {num_bytes:,}"
                raise TransientError(f"the connection ended after {received:,}{expected} bytes")
        except BaseException:
            self._partial.discard()  # The next try cannot resume from it, so it need not fill the disk.
            raise


class _LogLines(io.StringIO):
    """A stream that logs what tqdm draws, for output that is not a terminal."""

    def write(self, text: str) -> int:
        if text.strip():
            _LOG.info("%s", text.strip())
        return len(text)


def _progress(name: str, num_bytes: int | None, done: int) -> tqdm[Never]:
    """Return a progress bar for a terminal, or one that logs a line every ten seconds for other output."""
    is_terminal = sys.stderr.isatty()
    return tqdm(
        total=num_bytes,
        initial=done,
        desc=name,
        unit="B",
        unit_scale=True,
        file=None if is_terminal else _LogLines(),
        mininterval=0.1 if is_terminal else _LOG_INTERVAL_S,
        bar_format=None if is_terminal else "{desc}: {n_fmt} of {total_fmt}, {rate_fmt}",
    )


@contextmanager
def _exclusive(target: Path) -> Iterator[None]:
    """Hold the target's lock file, and log a warning where another process holds it. A killed holder frees it."""
    # The lock file is never removed: a process could hold the lock of the removed file, and another one that of a new
    # file.
    lock = FileLock(target.with_name(f".{target.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        # A warning, because it shows even where logging is not configured, and a silent wait looks like a hang.
        _LOG.warning("another process is downloading %s: waiting for it", target.name)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
