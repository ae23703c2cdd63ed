"""Calls of gsplat.org's API: tRPC over HTTP, a batch of one each, tried again within a deadline."""

from __future__ import annotations

import io
import itertools
import json
import random
import time
from collections.abc import Callable, Mapping
from typing import Any

import requests

from sharp_cog.errors import SharpError
from sharp_cog.text import plain, read_count, read_json

MAX_ANSWER_BYTES = 1 << 20
MAX_TRIES = 4
MAX_WAIT_S = 60.0
ANSWER_S = 60.0
"""How long an answer may take to come."""

_CONNECT_S = 10.0
_RETRIED_STATUSES = (408, 425, 429)


class GsplatError(SharpError):
    """The service does not take a splat."""

    code = "gsplat_failed"


class TransientError(GsplatError):
    """The service is not there, or fails; another try may work."""

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Calls:
    """Calls of one splat, which share a connection and a deadline."""

    def __init__(
        self,
        session: requests.Session,
        base: str,
        host: str,
        *,
        deadline: float,
        answer_s: float,
        sleep: Callable[[float], None],
    ) -> None:
        self._session, self._base, self._host, self._deadline = session, base, host, deadline
        self._answer_s, self._sleep = answer_s, sleep

    def __call__(self, procedure: str, argument: Mapping[str, Any]) -> Any:
        """Calls a procedure; returns its result.

        Raises:
            GsplatError: The service refuses; `TransientError` where it failed again and again.
        """
        body = json.dumps({"0": argument}).encode()
        for number in itertools.count(1):
            try:
                return self._post(procedure, body)
            except TransientError as error:
                wait_s = error.retry_after_s
                if wait_s is None:
                    wait_s = 0.5 * 2**number * random.uniform(0.5, 1.5)  # noqa: S311
                if number == MAX_TRIES or wait_s > MAX_WAIT_S or time.monotonic() + wait_s >= self._deadline:
                    times = "" if number == 1 else f", {number} times"
                    raise TransientError(f"{self._host} {error} to {procedure}{times}") from error
                self._sleep(wait_s)
            except GsplatError as error:
                raise GsplatError(f"{self._host} {error} to {procedure}") from error
        raise AssertionError("the last try has raised")

    def _post(self, procedure: str, body: bytes) -> Any:
        left_s = max(0.1, self._deadline - time.monotonic())
        try:
            with self._session.post(
                f"{self._base}/share/trpc/order.{procedure}?batch=1",
                data=_Body(body, self._deadline),
                headers={"Content-Type": "application/json"},
                auth=_nobody,
                timeout=(min(_CONNECT_S, left_s), min(self._answer_s, left_s)),
                stream=True,
                allow_redirects=False,
            ) as response:
                content = _read(response, self._deadline)
        except (requests.RequestException, ValueError, TimeoutError) as error:
            raise TransientError(f"cannot be reached ({type(error).__name__})") from error
        return _result(response, content)


class _Body(io.BytesIO):
    """The body of a request, which is not sent beyond a deadline.

    As a file it goes in small pieces, each of which has the time-out of a connection; as bytes it would have to be
    through within one.
    """

    def __init__(self, content: bytes, deadline: float) -> None:
        super().__init__(content)
        self._deadline = deadline

    def read(self, size: int | None = -1, /) -> bytes:
        if time.monotonic() > self._deadline:
            raise TimeoutError("the deadline has passed")
        return super().read(size)


def _read(response: requests.Response, deadline: float) -> bytes:
    """The whole answer. Byte by byte, so that one that drips does not outlast the deadline; answers are short."""
    content = bytearray()
    for chunk in response.iter_content(1):
        content += chunk
        if len(content) > MAX_ANSWER_BYTES:
            raise GsplatError(f"answered with more than {MAX_ANSWER_BYTES} bytes")
        if time.monotonic() > deadline:
            raise TimeoutError("the deadline has passed")
    return bytes(content)


def _result(response: requests.Response, content: bytes) -> Any:
    """The result in an answer.

    Raises:
        GsplatError: There is none; `TransientError` where another try may have one.
    """
    entry: Any = None
    try:
        batch = read_json(content)
        entry = batch[0] if isinstance(batch, list) and batch else batch
    except ValueError:  # Not JSON, or not even text.
        pass
    entry = entry if isinstance(entry, dict) else {}
    error = _unwrapped(entry.get("error"))
    status = response.status_code
    if error is not None:
        told = error if isinstance(error, dict) else {"message": error}
        inner = told.get("data")
        status = inner.get("httpStatus", status) if isinstance(inner, dict) else status
    reason = f"answered {plain(status)}"
    if error is not None:
        reason += f" ({plain(told.get('message'), 200)})"
    if isinstance(status, int) and (status >= 500 or status in _RETRIED_STATUSES):
        raise TransientError(reason, retry_after_s=read_count(response.headers.get("Retry-After", "")))
    if error is not None or status not in (200, 207):
        raise GsplatError(reason)
    result = entry.get("result")
    if not isinstance(result, dict) or "data" not in result:
        raise TransientError("answered with something else than a result of tRPC")
    return _unwrapped(result["data"])


def _unwrapped(value: Any) -> Any:
    """A value without the envelope that one of tRPC's serialisers puts around it."""
    return value["json"] if isinstance(value, dict) and "json" in value else value


def _nobody(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """Sends no credentials; without this, `.netrc` would."""
    return request
