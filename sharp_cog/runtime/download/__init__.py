"""Downloads one large file: in several ranges at once, resumable, verified, by one process at a time."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing, contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from tqdm import tqdm

from sharp_cog.errors import DownloadError, OutputError
from sharp_cog.runtime.download.partial import Partial
from sharp_cog.runtime.download.remote_file import Changed, Effort, Offer, Passing, Server

__all__ = ["Effort", "download"]

_LOG = logging.getLogger(__name__)

_LINE_EVERY_S = 10.0


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
    remedy = "choose another folder with SHARP_CACHE_DIR, or make room"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.is_dir():
            raise DownloadError(f"{target} is a folder, where the checkpoint belongs: remove it, or {remedy}")
        with _exclusive(target):
            if not target.exists():
                _Download(url, target, sha256, num_bytes, effort or Effort()).run()
    except OSError as error:
        reason = error.strerror or str(error)
        raise DownloadError(f"cannot write to {target.parent}: {reason}: {remedy}") from error
    except OutputError as error:
        raise DownloadError(f"{error}, or {remedy}") from error


class _Download:
    """One download under way. The caller holds the lock."""

    def __init__(self, url: str, target: Path, sha256: str | None, num_bytes: int | None, effort: Effort) -> None:
        self._name, self._sha256, self._expected_bytes, self._effort = target.name, sha256, num_bytes, effort
        self._server = Server(url, effort)
        self._partial = Partial(target, self._server.name, effort.piece_bytes)
        self._num_changes = 0

    def run(self) -> None:
        self._server.persist(self._attempt)
        if self._sha256 is not None:
            _LOG.info("verifying %s", self._name)
        self._partial.complete(self._sha256)

    def _attempt(self) -> None:
        """Asks what the server has, then fetches it."""
        offer = self._server.ask()
        if offer.num_bytes is not None and self._expected_bytes not in (None, offer.num_bytes):
            raise self._server.refusal(
                f"offers {offer.num_bytes:,} bytes, expected {self._expected_bytes:,}, which is another file"
            )
        num_bytes = offer.num_bytes or self._expected_bytes or 0
        self._partial.check_space(num_bytes)
        try:
            self._fetch(offer)
        except (OSError, OutputError):
            # Others may have filled the disk meanwhile: then how much is missing says more than that some is.
            self._partial.check_space(num_bytes)
            raise

    def _fetch(self, offer: Offer) -> None:
        # A file may be replaced once on the way; ranges that fit no better the second time are not worth a third.
        if offer.takes_ranges and offer.num_bytes is not None and self._num_changes < 2:
            try:
                self._fetch_pieces(offer, offer.num_bytes)
            except Changed as error:
                self._num_changes += 1
                self._partial.discard()
                raise Passing(f"{error}; started anew") from error
        else:
            self._fetch_whole(offer.num_bytes or self._expected_bytes)

    def _fetch_pieces(self, offer: Offer, num_bytes: int) -> None:
        """Fetches all ranges that the partial file does not hold yet."""
        missing = self._partial.missing(offer, num_bytes)
        already = num_bytes - sum(end - start for start, end in missing)
        if already:
            _LOG.info("%s: going on from %.2f of %.2f GB", self._name, already / 1e9, num_bytes / 1e9)
        with _Progress(self._name, num_bytes, already) as progress:
            executor = ThreadPoolExecutor(self._effort.num_connections, thread_name_prefix="download")
            try:
                futures = [executor.submit(self._fetch_piece, *span, offer, progress) for span in missing]
                for future in as_completed(futures):
                    future.result()
            finally:
                # On a failure or Ctrl-C the workers stop at their next block.
                self._server.stop.set()
                executor.shutdown(cancel_futures=True)
                self._server.stop.clear()

    def _fetch_piece(self, start: int, end: int, offer: Offer, progress: _Progress) -> None:
        """Fetches one range; goes on where a broken connection left off."""
        position = start

        def attempt() -> None:
            nonlocal position
            with (
                closing(self._server.read_range(position, end, offer)) as blocks,
                self._partial.path.open("r+b") as file,
            ):
                file.seek(position)
                for block in blocks:
                    file.write(block)
                    position += len(block)
                    progress.add(len(block))
            if position < end:
                raise Passing(f"the connection ended {end - position:,} bytes early")

        self._server.persist(attempt, lambda: position)
        self._partial.add(start)

    def _fetch_whole(self, num_bytes: int | None) -> None:
        """Fetches a file from its start, where the server has no ranges."""
        self._partial.discard()  # A journal of pieces does not describe what is written here.
        received = 0
        try:
            with (
                closing(self._server.read_all(num_bytes)) as blocks,
                self._partial.path.open("wb") as file,
                _Progress(self._name, num_bytes, 0) as progress,
            ):
                for block in blocks:
                    file.write(block)
                    received += len(block)
                    progress.add(len(block))
            if num_bytes is not None and received > num_bytes:
                raise self._server.refusal(f"sends more than the expected {num_bytes:,} bytes, which is another file")
            if received == 0 or (num_bytes is not None and received < num_bytes):
                expected = "" if num_bytes is None else f" of {num_bytes:,}"
                raise Passing(f"the connection ended after {received:,}{expected} bytes")
        except BaseException:
            self._partial.discard()  # Nothing can go on from it, so it need not fill the disk.
            raise


class _Progress:
    """A bar on a terminal, a log line every ten seconds elsewhere. Threads may add to it."""

    def __init__(self, name: str, num_bytes: int | None, already: int) -> None:
        self._name, self._num_bytes, self._received = name, num_bytes, already
        self._lock = threading.Lock()
        self._next_line = time.monotonic() + _LINE_EVERY_S
        self._bar = tqdm(
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
        self._bar.close()

    def add(self, num_bytes: int) -> None:
        with self._lock:
            self._received += num_bytes
            self._bar.update(num_bytes)
            if self._bar.disable and time.monotonic() >= self._next_line:
                self._next_line += _LINE_EVERY_S
                share = f" ({self._received / self._num_bytes:.0%})" if self._num_bytes else ""
                _LOG.info("%s: %.2f GB%s", self._name, self._received / 1e9, share)


@contextmanager
def _exclusive(target: Path) -> Iterator[None]:
    """Holds the target's lock file; says so when it has to wait. A killed holder frees it."""
    lock = FileLock(target.with_name(f".{target.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        # A warning, because it shows where nobody has set up logging, and a silent wait looks like a hang.
        _LOG.warning("another process is downloading %s: waiting for it", target.name)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
