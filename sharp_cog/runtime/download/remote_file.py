"""What a download asks of a server, and what it makes of the answers."""

from __future__ import annotations

import logging
import random
import ssl
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass

import requests

from sharp_cog.errors import DownloadError
from sharp_cog.text import read_count, redact

_LOG = logging.getLogger(__name__)

_RETRYABLE_STATUS = {408, 425, 429}
"""And every 5xx."""

_PAGE_TYPES = {"text/html", "application/xhtml+xml", "application/json", "application/xml", "text/xml"}
"""How errors, log-in forms and captive portals come, and weights never do."""

_BLOCK_BYTES = 1 << 16
_LONGEST_WAIT_S = 60.0


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


class Passing(Exception):  # noqa: N818
    """A fault that may pass: try again."""


class Changed(Exception):  # noqa: N818
    """The server's answer does not belong to the file that it offered: start anew."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Offer:
    """What a server says about a file.

    Attributes:
        num_bytes: Its length; None if the server does not say.
        takes_ranges: Whether parts of it can be asked for.
        validator: ETag or date, which changes with the file; empty if the server gives neither.
    """

    num_bytes: int | None
    takes_ranges: bool
    validator: str


class Server:
    """One file on a server.

    Attributes:
        name: The address as messages may show it.
        stop: Set to make every thread that reads or waits here give up.
    """

    def __init__(self, url: str, effort: Effort) -> None:
        self._url, self._effort = url, effort
        self.name = redact(url)
        self.stop = threading.Event()

    def refusal(self, what: str) -> DownloadError:
        """The error that ends a download, with the way around it."""
        return DownloadError(
            f"{self.name} {what}: run 'sharp-cog download' to try again, or fetch the file by hand and set "
            "SHARP_CHECKPOINT=/path/to/the/file"
        )

    def ask(self) -> Offer:
        """Asks for the first byte, which tells length, date and whether ranges work.

        Raises:
            Passing: Worth another try.
            DownloadError: Not worth another try.
        """
        try:
            with self._get({"Range": "bytes=0-0"}) as response:
                self._check_begun(response)
                headers = response.headers
                unit, _, total = headers.get("Content-Range", "").rpartition("/")
                if response.status_code == 206:
                    length, takes_ranges = total, unit == "bytes 0-0" and read_count(total) is not None
                else:
                    length, takes_ranges = headers.get("Content-Length", ""), False
                return Offer(
                    num_bytes=read_count(length),
                    takes_ranges=takes_ranges,
                    validator=_validator(response),
                )
        except Changed:  # HTTP 416: ranges are not for this server, or the file is empty.
            return Offer(num_bytes=None, takes_ranges=False, validator="")

    def read_range(self, start: int, end: int, offer: Offer) -> Generator[bytes, None, None]:
        """The bytes from `start` up to `end`, in blocks; fewer if the connection ends early.

        Raises:
            Changed: The server sends something else than that part of the offered file.
            Passing: Worth another try.
            DownloadError: Not worth another try.
        """
        with self._get({"Range": f"bytes={start}-{end - 1}"}) as response:
            expected = f"bytes {start}-{end - 1}/{offer.num_bytes}"
            served = response.headers.get("Content-Range", "the whole file")
            if response.status_code != 206 or served != expected:
                self._check_begun(response)
                raise Changed(f"the server sends {served} when asked for {expected}")
            if _validator(response) != offer.validator:
                self._check_begun(response)
                raise Changed("the server's file changed")
            yield from self._blocks(response, end - start)

    def read_all(self, num_bytes: int | None) -> Generator[bytes, None, None]:
        """The whole file, in blocks; a byte more than `num_bytes` at most, and fewer if the connection ends early.

        Raises:
            Passing: Worth another try.
            DownloadError: Not worth another try.
        """
        with self._get({}) as response:
            yield from self._blocks(response, None if num_bytes is None else num_bytes + 1)

    @contextmanager
    def _get(self, headers: dict[str, str]) -> Iterator[requests.Response]:
        """A streamed response with a status and a type that the file can have.

        The errors of requests show whole addresses, secrets included, so none is chained to the ones raised here.
        """
        try:
            response = requests.get(
                self._url,
                headers={"Accept-Encoding": "identity", **headers},
                stream=True,
                timeout=self._effort.timeout_s,
            )
        except (requests.ConnectionError, requests.Timeout) as error:
            reason = _root(error)
            if isinstance(reason, ssl.SSLCertVerificationError):
                raise self.refusal(f"shows a certificate that is not trusted ({_plain(reason)})") from None
            raise Passing(f"no answer ({_plain(reason)})") from None
        except (OSError, ValueError) as error:  # Those of requests and urllib3, and a missing certificate bundle.
            raise self.refusal(f"cannot be fetched ({_plain(_root(error))})") from None
        with closing(response):
            status = response.status_code
            if status in _RETRYABLE_STATUS or status >= 500:
                raise Passing(f"HTTP {status}")
            if status == 416 and "Range" in headers:
                raise Changed("the server's file ends before the range that was asked for")
            if status not in (200, 206):
                raise self.refusal(f"answered HTTP {status} {response.reason}")
            if response.headers.get("Content-Type", "").partition(";")[0].strip().lower() in _PAGE_TYPES:
                raise self.refusal("answered with a web page instead of the file")
            yield response

    def _check_begun(self, response: requests.Response) -> None:
        """Checks that something follows an answer's head: of one that is cut short, numbers are too, and look whole.

        Raises:
            Passing: Nothing does.
        """
        if not next(self._blocks(response, 1), b""):
            raise Passing("the connection ended before the file began")

    def _blocks(self, response: requests.Response, limit: int | None) -> Iterator[bytes]:
        """The body, up to `limit` bytes."""
        try:
            for block in response.iter_content(_BLOCK_BYTES):
                if self.stop.is_set():
                    raise Passing("stopped")
                yield block if limit is None else block[:limit]
                if limit is not None:
                    limit -= len(block)
                    if limit <= 0:
                        return
        except requests.RequestException as error:
            raise Passing(f"the connection broke ({_plain(_root(error))})") from None

    def persist(
        self,
        attempt: Callable[[], None],
        position: Callable[[], int] = lambda: 0,
    ) -> None:
        """Repeats an attempt until it works, or fails `max_failures` times in a row without getting further.

        Args:
            attempt: Raises `Passing` where it should be repeated.
            position: How far it has got.

        Raises:
            DownloadError: It is given up.
        """
        failures, last = 0, position()
        while True:
            try:
                return attempt()
            except Passing as error:
                failures = 1 if position() > last else failures + 1
                last = position()
                if failures >= self._effort.max_failures or self.stop.is_set():
                    raise self.refusal(f"could not be downloaded ({error}, {failures} times in a row)") from error
                wait_s = min(_LONGEST_WAIT_S, self._effort.first_wait_s * 2 ** (failures - 1))
                wait_s *= random.uniform(0.5, 1.0)  # noqa: S311
                _LOG.info("%s: %s; trying again in %.1f s", self.name, error, wait_s)
                self.stop.wait(wait_s)


def _validator(response: requests.Response) -> str:
    return response.headers.get("ETag", "") or response.headers.get("Last-Modified", "")


def _root(error: BaseException) -> BaseException:
    """The first of a chain of errors: the system's own, under those of requests and urllib3."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return error


def _plain(error: BaseException) -> str:
    """What an error says, where it cannot be an address."""
    name = type(error).__name__
    return (
        f"{name}: {error}" if isinstance(error, OSError) and not isinstance(error, requests.RequestException) else name
    )
