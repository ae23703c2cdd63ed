"""The Unsplash API as a client of it has to use it: signed, within its requests an hour, patient with failures."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

import requests

from sharp_cog import __version__
from sharp_cog.dataset.photo import MAX_PICTURE_BYTES, RateLimitError, SourceError
from sharp_cog.errors import SettingError
from sharp_cog.text import read_count, read_json

_LOG = logging.getLogger(__name__)

BASE_URL = "https://api.unsplash.com"
MAX_TRIES = 4
MAX_ANSWER_BYTES = 16 << 20

_HOUR_S = 3600
_GRACE_S = 3.0
"""How long to wait after the full hour: its clock and ours may differ."""

_STEP_S = 5.0
_CHUNK_BYTES = 1 << 16
_TIMEOUT_S = (10.0, 60.0)
_USER_AGENT = f"sharp_cog/{__version__}"

_Auth = Callable[[requests.PreparedRequest], requests.PreparedRequest]


class UnsplashApi:
    """What Unsplash answers.

    Only requests to the API's own address carry the access key; pictures lie elsewhere and are asked for without.

    Attributes:
        base_url: The API's address, without a slash at its end.
        rate_limit_left: Requests left in this hour, as the API last said; None before it did.

    Raises:
        SettingError: The access key cannot be one.
    """

    rate_limit_left: int | None

    def __init__(
        self,
        access_key: str,
        *,
        stop_on_rate_limit: bool,
        base_url: str = BASE_URL,
        sleep: Callable[[float], None] = time.sleep,
        now: Callable[[], float] = time.time,
    ) -> None:
        """Makes the client; nothing is asked for yet.

        Args:
            access_key: Of the application that is registered at Unsplash.
            stop_on_rate_limit: Raise `RateLimitError` at the rate limit, else wait for the next full hour.
            base_url: The API's address.
            sleep: Waits for seconds; never asked for more than 5 at once.
            now: Seconds since 1970.
        """
        key = access_key.strip()
        if not key or not all("!" <= char <= "~" for char in key):
            # Libraries would quote what they cannot send.
            raise SettingError("UNSPLASH_ACCESS_KEY is empty or has characters that no key has: copy it anew")
        self.base_url = base_url.rstrip("/")
        self.rate_limit_left = None
        self._limited_until: float | None = None
        self._stop_on_rate_limit, self._sleep, self._now = stop_on_rate_limit, sleep, now
        self._session = requests.Session()
        self._session.headers["User-Agent"] = _USER_AGENT
        self._auth = _client_id(key)

    def owns(self, url: str) -> bool:
        """Whether an address is the API's own, where the key belongs."""
        return origin(url) == origin(self.base_url)

    def ask(self, url: str, parameters: Mapping[str, str | int] | None = None) -> tuple[Any, Mapping[str, str]]:
        """What the API answers, and the answer's headers; waits where it must.

        Raises:
            SourceError: It refuses, or fails again and again.
            RateLimitError: It may not be asked before the next full hour, and waiting is not wanted.
        """
        name, num_failures = f"Unsplash ({urlsplit(url).path})", 0
        while True:
            self._wait_for_turn()
            asked_at = self._now()
            try:
                with self._session.get(
                    url,
                    params=parameters,
                    headers={"Accept-Version": "v1"},
                    auth=self._auth,
                    timeout=_TIMEOUT_S,
                    stream=True,
                ) as response:
                    status, content = response.status_code, _answer(response)
                if self._is_limited(response, content, asked_at):
                    continue
                if status == 200:
                    return read_json(content), response.headers
                reason = f"answered {status}"
            except (requests.RequestException, ValueError) as error:
                status, reason = 0, _reason(error)
            if status == 401:
                raise SourceError("Unsplash refuses the access key: check UNSPLASH_ACCESS_KEY")
            if status and status < 500:
                raise SourceError(f"{name} {reason}")
            num_failures = self._pause(name, reason, num_failures)

    def _is_limited(self, response: requests.Response, content: bytes, asked_at: float) -> bool:
        """Notes how many requests are left; whether this one was refused because none was."""
        left = response.headers.get("X-Ratelimit-Remaining", "")
        if read_count(left) is not None:
            self.rate_limit_left = read_count(left)
        status = response.status_code
        is_refused = status == 429 or (status == 403 and b"rate limit" in content.lower())
        if is_refused or left == "0":
            self._limited_until = (asked_at // _HOUR_S + 1) * _HOUR_S
        return is_refused

    def _wait_for_turn(self) -> None:
        """Waits for the next full hour where no requests are left.

        Raises:
            RateLimitError: Waiting is not wanted.
        """
        until = self._limited_until
        left = 0.0 if until is None else until - self._now()
        if until is None or left <= 0:
            return
        if self._stop_on_rate_limit:
            raise RateLimitError(f"Unsplash's rate limit is reached: go on in {left:.0f} s", wait_s=left)
        _LOG.warning("Unsplash's rate limit is reached: going on in %.0f s", left + _GRACE_S)
        left += _GRACE_S
        # Both are asked: a machine may have slept, and a clock may stand.
        while left > 0 and self._now() < until + _GRACE_S:
            step = min(left, _STEP_S)
            self._sleep(step)
            left -= step
        if self._limited_until == until:  # Else another thread has met the next one.
            self._limited_until = None

    def _pause(self, name: str, reason: str, num_failures: int) -> int:
        """Waits after a failure, longer each time; returns their number.

        Raises:
            SourceError: It was the last one.
        """
        num_failures += 1
        if num_failures == MAX_TRIES:
            raise SourceError(f"{name} {reason}, {MAX_TRIES} times: try again later")
        _LOG.info("%s %s: trying again", name, reason)
        self._sleep(2.0 ** (num_failures - 1))
        return num_failures

    def download(self, photo_id: str, url: str) -> bytes:
        """A picture, whole.

        Raises:
            SourceError: It is not there, too large, or does not come whole after some tries.
        """
        name, num_failures = f"the picture of photograph {photo_id}", 0
        while True:
            try:
                with self._session.get(
                    url, headers={"Accept-Encoding": "identity"}, auth=_nobody, timeout=_TIMEOUT_S, stream=True
                ) as response:
                    status = response.status_code
                    if status == 200:
                        return _body(response, name)
                reason = f"answered {status}"
            except (requests.RequestException, ValueError) as error:
                status, reason = 0, _reason(error)
            except _TruncatedError as error:
                status, reason = 0, str(error)
            if status and status != 429 and status < 500:
                raise SourceError(f"{name} cannot be had: {urlsplit(url).hostname} {reason}")
            num_failures = self._pause(name, reason, num_failures)


class _TruncatedError(Exception):
    """An answer ended early."""


def _body(response: requests.Response, name: str) -> bytes:
    """Reads a picture to its end.

    Raises:
        SourceError: It is too large.
        _TruncatedError: It is shorter than the server said, or empty.
    """
    length = read_count(response.headers.get("Content-Length", ""))
    expected = length if "Content-Encoding" not in response.headers else None
    too_large = f"{name} is larger than {MAX_PICTURE_BYTES // 10**6} MB"
    if expected is not None and expected > MAX_PICTURE_BYTES:
        raise SourceError(too_large)
    content = bytearray()
    for chunk in response.iter_content(_CHUNK_BYTES):
        content += chunk
        if len(content) > MAX_PICTURE_BYTES:
            raise SourceError(too_large)
    if not content or (expected is not None and len(content) != expected):
        raise _TruncatedError(f"ended after {len(content)} of {'some' if expected is None else expected} bytes")
    return bytes(content)


def _answer(response: requests.Response) -> bytes:
    """What the API answers, whole.

    Raises:
        ValueError: It is longer than any answer of the API.
    """
    content = bytearray()
    for chunk in response.iter_content(_CHUNK_BYTES):
        content += chunk
        if len(content) > MAX_ANSWER_BYTES:
            raise ValueError(f"more than {MAX_ANSWER_BYTES} bytes")
    return bytes(content)


def _client_id(key: str) -> _Auth:
    """Signs requests. As an argument of each: else `.netrc` would take the header's place."""

    def sign(request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Client-ID {key}"
        return request

    return sign


def _nobody(request: requests.PreparedRequest) -> requests.PreparedRequest:
    return request


def _reason(error: Exception) -> str:
    return f"cannot be read ({type(error).__name__})"


def origin(url: str) -> tuple[str, str] | None:
    """Scheme and host of a web address; None for what is none."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return None
    return (parts.scheme, parts.netloc) if parts.scheme in ("http", "https") and parts.netloc else None
