"""One file on an HTTP server, read whole or in ranges."""

from __future__ import annotations

import logging
import ssl
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass

import requests

from sharp_cog.errors import DownloadError
from sharp_cog.files.retry import RetryPolicy, TransientError
from sharp_cog.text import read_count, redact

_LOG = logging.getLogger(__name__)

_RETRYABLE_STATUS = {408, 425, 429}
"""HTTP statuses worth another try, besides every 5xx."""

_PAGE_TYPES = {"text/html", "application/xhtml+xml", "application/json", "application/xml", "text/xml"}
"""Content types of errors, log-in forms and captive portals, which weights never have."""

_BLOCK_BYTES = 1 << 16
_RETRIES = RetryPolicy(max_tries=6, first_wait_s=1.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Effort:
    """Limits of a download.

    Attributes:
        num_connections: Ranges to fetch at once, if the server supports ranges.
        piece_bytes: Size of a range. Finished ranges survive an interruption.
        retries: Policy for failures in a row that bring no byte.
        timeout_s: Longest silence of the server in seconds.
    """

    num_connections: int = 8
    piece_bytes: int = 32 << 20
    retries: RetryPolicy = _RETRIES
    timeout_s: float = 30.0


class ChangedError(Exception):
    """The server's answer does not belong to the file that it offered: the download must restart."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Offer:
    """Description of a file by its server.

    Attributes:
        num_bytes: Length; None if the server does not say.
        takes_ranges: Whether the server sends parts of the file on request.
        validator: ETag or date, which changes with the file; empty if the server sends neither.
    """

    num_bytes: int | None
    takes_ranges: bool
    validator: str


class RemoteFile:
    """One file on a server. Several threads may read it at once.

    Attributes:
        name: The address without secrets, for messages.
        stop: Event that makes every thread give up that reads the file or waits for the next try.
    """

    def __init__(self, url: str, effort: Effort) -> None:
        self._url, self._effort = url, effort
        self.name = redact(url)
        self.stop = threading.Event()

    def error(self, reason: str) -> DownloadError:
        """Return the error that ends a download, with its remedy; the reason continues the address."""
        return DownloadError(
            f"{self.name} {reason}: run 'sharp-cog download' to try again, or fetch the file by hand and set "
            "SHARP_CHECKPOINT=/path/to/the/file"
        )

    def retry(self, attempt: Callable[[], None], position: Callable[[], int] | None = None) -> None:
        """Repeat an attempt as long as its errors are transient.

        Args:
            attempt: Makes one try.
            position: As for `RetryPolicy.call`.

        Raises:
            DownloadError: The last try failed.
        """
        try:
            # Once `stop` is set, `wait` returns at once, and the next try ends the download in `_check_stop`.
            self._effort.retries.call(
                attempt,
                sleep=self.stop.wait,
                position=position,
                on_retry=lambda error, wait_s: _LOG.info("%s: %s; trying again in %.1f s", self.name, error, wait_s),
            )
        except TransientError as error:
            raise self.error(f"could not be downloaded ({error}, {error.num_tries} times in a row)") from error

    def look(self) -> Offer:
        """Request the first byte, whose answer has the length, the validator, and whether ranges work.

        Raises:
            TransientError: The failure is worth another try.
            DownloadError: The server refuses.
        """
        try:
            # Not a HEAD request: only an answer to a range shows that the server supports ranges.
            with self._get({"Range": "bytes=0-0"}) as response:
                self._check_begun(response)
                headers = response.headers
                if response.status_code == 206:
                    # Servers may name no length, as in "bytes 0-0/*". Such a file cannot be divided into pieces.
                    unit, _, length = headers.get("Content-Range", "").rpartition("/")
                    takes_ranges = unit == "bytes 0-0" and read_count(length) is not None
                else:
                    length, takes_ranges = headers.get("Content-Length", ""), False
                return Offer(num_bytes=read_count(length), takes_ranges=takes_ranges, validator=_validator(response))
        except ChangedError:  # HTTP 416: the server does not support ranges, or the file is empty.
            return Offer(num_bytes=None, takes_ranges=False, validator="")

    def read_range(self, start: int, end: int, offer: Offer) -> Generator[bytes, None, None]:
        """Yield the bytes from `start` up to `end` in blocks; fewer if the connection ends early.

        Raises:
            ChangedError: The answer is not that part of the offered file.
            TransientError: The failure is worth another try.
            DownloadError: The server refuses.
        """
        with self._get({"Range": f"bytes={start}-{end - 1}"}) as response:
            # The answer may be the whole file or another range; written at this position, either would break the file.
            expected = f"bytes {start}-{end - 1}/{offer.num_bytes}"
            served = response.headers.get("Content-Range", "the whole file")
            if response.status_code != 206 or served != expected:
                self._check_begun(response)
                raise ChangedError(f"the server sends {served} when asked for {expected}")
            # Pieces of two versions of a file would have the right lengths and make a broken file.
            if _validator(response) != offer.validator:
                self._check_begun(response)
                raise ChangedError("the server's file changed")
            yield from self._blocks(response, end - start)

    def read_all(self, num_bytes: int | None) -> Generator[bytes, None, None]:
        """Yield the whole file in blocks: at most one byte more than `num_bytes`, fewer if the connection ends early.

        Raises:
            TransientError: The failure is worth another try.
            DownloadError: The server refuses.
        """
        with self._get({}) as response:
            # One byte more is enough to notice that the file is too long.
            yield from self._blocks(response, None if num_bytes is None else num_bytes + 1)

    @contextmanager
    def _get(self, headers: dict[str, str]) -> Iterator[requests.Response]:
        """Yield a streamed response with a status and a content type that the file can have."""
        self._check_stop()
        try:
            # Lengths and ranges must count bytes of the file itself, hence no compression.
            response = requests.get(
                self._url,
                headers={"Accept-Encoding": "identity", **headers},
                stream=True,
                timeout=self._effort.timeout_s,
            )
        # Errors of requests show whole addresses, secrets included, so none is chained to the errors raised here.
        except (requests.ConnectionError, requests.Timeout) as error:
            # Another try would meet the same certificate.
            if isinstance(_root(error), ssl.SSLCertVerificationError):
                raise self.error(f"shows a certificate that is not trusted ({_reason(error)})") from None
            raise TransientError(f"no answer ({_reason(error)})") from None
        except (OSError, ValueError) as error:  # Bad addresses, and a certificate bundle that does not exist.
            raise self.error(f"cannot be fetched ({_reason(error)})") from None
        with closing(response):
            status = response.status_code
            if status in _RETRYABLE_STATUS or status >= 500:
                raise TransientError(f"HTTP {status}")
            if status == 416 and "Range" in headers:
                raise ChangedError("the server's file ends before the requested range")
            if status not in (200, 206):
                raise self.error(f"answered HTTP {status} {response.reason}")
            # Log-in forms and captive portals answer with HTTP 200 too.
            if response.headers.get("Content-Type", "").partition(";")[0].strip().lower() in _PAGE_TYPES:
                raise self.error("answered with a web page instead of the file")
            yield response

    def _check_stop(self) -> None:
        if self.stop.is_set():
            raise self.error("was not downloaded: another part of the file failed, or the process was interrupted")

    def _check_begun(self, response: requests.Response) -> None:
        """Check that a body follows the headers before their numbers are believed.

        A connection that ends within a header cuts the number in it, and the rest still looks like a whole header.

        Raises:
            TransientError: There is no body.
        """
        if not next(self._blocks(response, 1), b""):
            raise TransientError("the connection ended before the file began")

    def _blocks(self, response: requests.Response, limit: int | None) -> Iterator[bytes]:
        """Yield the body, up to `limit` bytes."""
        try:
            for block in response.iter_content(_BLOCK_BYTES):
                self._check_stop()
                yield block if limit is None else block[:limit]
                if limit is not None:
                    limit -= len(block)
                    if limit <= 0:
                        return
        except requests.RequestException as error:
            raise TransientError(f"the connection broke ({_reason(error)})") from None


def _validator(response: requests.Response) -> str:
    return response.headers.get("ETag", "") or response.headers.get("Last-Modified", "")


def _root(error: BaseException) -> BaseException:
    """Return the first error of a chain: the system's own, below those of requests and urllib3."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return error


def _reason(error: BaseException) -> str:
    """Return the text of the first error of a chain; only its type where the text may hold an address."""
    root = _root(error)
    is_safe = isinstance(root, OSError) and not isinstance(root, requests.RequestException)
    return f"{type(root).__name__}: {root}" if is_safe else type(root).__name__
