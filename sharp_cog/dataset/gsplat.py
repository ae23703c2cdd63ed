"""Shares splats at gsplat.org: the most visible Gaussians of each, at an address that opens in any browser.

The service needs no account and no key. Its API is tRPC over HTTP, in batches of one call. Nothing marks a call as a
repeat: if the answer to the last one, `createOrder`, is lost, a second page may appear, which expires like the first.
"""

from __future__ import annotations

import base64
import io
import itertools
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import requests

from sharp_cog import __version__, formats
from sharp_cog.config.dataset import DatasetSettings
from sharp_cog.config.options import OutputOptions
from sharp_cog.dataset.photo import Photo
from sharp_cog.errors import SettingError, SharpError
from sharp_cog.files.read import read_capped
from sharp_cog.files.retry import RetryPolicy, TransientError
from sharp_cog.geometry.simplify import simplify
from sharp_cog.text import plain, read_count, read_json, redact, trace

_LOG = logging.getLogger(__name__)

READABLE_FORMATS = ("ply", "apple_ply", "spz", "compressed_ply", "splat")
"""Formats that the small splat can be made from, best first."""
SHARED_FORMATS = ("ply", "compressed_ply", "spz", "splat", "apple_ply")
"""Formats that can be shared whole, most widely read first."""

MAX_SINGLE_BYTES = 20 * 1024 * 1024
"""Size from which on a file is uploaded in chunks."""
CHUNK_BYTES = 16 * 1024 * 1024
"""Size of a chunk."""
MAX_ANSWER_BYTES = 1 << 20
"""Longest answer that is read."""
DEADLINE_S = 300.0
"""Seconds that sharing one splat may take in all."""
ANSWER_S = 60.0
"""Seconds that the service may take to answer."""
OUTAGE_FAILURES = 3
"""Failures in a row after which the service counts as down."""
OUTAGE_S = 300.0
"""Seconds for which nothing is sent to a service that is down, so that it does not delay the photographs."""
RETRIES = RetryPolicy(max_tries=4, first_wait_s=1.0)
"""Tries of each call: waits of about 1, 2 and 4 seconds between them."""

_CONNECT_S = 10.0
"""Seconds to wait for a connection."""
_RETRIED_STATUSES = (408, 425, 429)
"""Statuses below 500 that may pass: a time-out, a replay that came too early, and a rate limit."""


class GsplatError(SharpError):
    """The service refuses a splat."""

    code = "gsplat_failed"


class OutageError(GsplatError):
    """The service cannot be reached, or failed in every try."""


class Gsplat:
    """Shares splats, for many threads at once; see `sharp_cog.dataset.publish.Share`.

    Raises:
        SettingError: The address cannot be used.
    """

    def __init__(
        self,
        base: str,
        *,
        expiration_type: str,
        num_gaussians: int,
        uses_small_ply: bool = True,
        deadline_s: float = DEADLINE_S,
        answer_s: float = ANSWER_S,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Create the client; nothing is requested yet.

        Args:
            base: Address of the service.
            expiration_type: Time that the service keeps a splat, in its own words, such as `1week`.
            num_gaussians: Number of Gaussians to share, the most visible ones.
            uses_small_ply: Whether to share only those, instead of the whole splat as it was written.
            deadline_s: Seconds that one splat may take in all.
            answer_s: Seconds that one answer may take.
            sleep: Waits for a number of seconds.
        """
        self._base, self._host = base.rstrip("/"), _host(base)
        self._expiration_type, self._num_gaussians = expiration_type, num_gaussians
        self._uses_small_ply = uses_small_ply
        self._deadline_s, self._answer_s, self._sleep = deadline_s, answer_s, sleep
        self._lock = threading.Lock()
        self._num_failures, self._closed_until = 0, -float("inf")

    @classmethod
    def of(cls, settings: DatasetSettings) -> Gsplat:
        """Create the client that the settings of a run ask for.

        Raises:
            SettingError: The address, or every format of the run, is unusable.
        """
        usable = READABLE_FORMATS if settings.gsplat_use_small_ply else SHARED_FORMATS
        if not set(usable) & set(settings.formats):
            raise SettingError(
                f"FORMATS is {','.join(settings.formats)}, and gsplat.org accepts none of them: add one of "
                f"{', '.join(usable)}, or unset GSPLAT_UPLOAD"
            )
        return cls(
            settings.gsplat_base,
            expiration_type=settings.gsplat_expiration_type,
            num_gaussians=settings.gsplat_filter_visibility,
            uses_small_ply=settings.gsplat_use_small_ply,
        )

    def __call__(self, photo: Photo, splats: Mapping[str, Path]) -> dict[str, str]:
        """Share a splat; return the fields `gsplat_...` of the index, or the reason as `gsplat_error`.

        Args:
            photo: The photograph, whose author is credited.
            splats: Its files by format. The small splat is written beside them, as `<id>.small.gsplat.ply`.
        """
        with self._lock:
            closed_s = self._closed_until - time.monotonic()
        if closed_s > 0:
            reason = f"{self._host} failed {OUTAGE_FAILURES} times: nothing is sent for another {closed_s:.0f} s"
            return {"gsplat_error": reason}
        try:
            shared = self._share(photo, splats)
        except Exception as error:  # noqa: BLE001 - sharing never fails the photograph
            # An unexpected exception is a bug, so its traceback is logged.
            _LOG.warning("%s is not shared: %s", photo.id, error if isinstance(error, SharpError) else trace(error))
            self._note(is_outage=isinstance(error, OutageError))
            return {"gsplat_error": redact(f"{getattr(error, 'code', type(error).__name__)}: {error}")[:300]}
        self._note(is_outage=False)
        return {**shared, "gsplat_error": ""}

    def _note(self, *, is_outage: bool) -> None:
        with self._lock:
            # A circuit breaker. A refusal is an answer too, so the service is up, and the count starts again.
            self._num_failures = self._num_failures + 1 if is_outage else 0
            if self._num_failures >= OUTAGE_FAILURES:
                self._num_failures = 0
                self._closed_until = time.monotonic() + OUTAGE_S
                _LOG.warning("%s seems to be down: nothing is shared for %.0f s", self._host, OUTAGE_S)

    def _share(self, photo: Photo, splats: Mapping[str, Path]) -> dict[str, str]:
        path = self._small(photo, splats) if self._uses_small_ply else _first(splats, SHARED_FORMATS)
        about = _about(photo) | {"expirationType": self._expiration_type}
        with requests.Session() as session:
            session.headers["User-Agent"] = f"sharp_cog/{__version__}"
            calls = Calls(
                session,
                self._base,
                self._host,
                deadline=time.monotonic() + self._deadline_s,
                answer_s=self._answer_s,
                sleep=self._sleep,
            )
            model_file_url = _upload(calls, path, about)
            order = calls("createOrder", {"modelFileUrl": model_file_url, **about})
        share_id = _found(order, "shareId")
        return {
            "gsplat_url": f"{self._base}/viewer/{quote(share_id, safe='', errors='replace')}",
            "gsplat_share_id": share_id,
            "gsplat_order_id": _found(order, "id", default=""),
            "gsplat_model_file_url": model_file_url,
        }

    def _small(self, photo: Photo, splats: Mapping[str, Path]) -> Path:
        """Write a plain .ply of few Gaussians."""
        source = _first(splats, READABLE_FORMATS)
        splat = formats.read(source)
        kept = simplify(splat.gaussians, max_gaussians=self._num_gaussians)
        path = source.with_name(f"{photo.id}.small.gsplat.ply")
        return formats.write(path, kept, splat.camera, OutputOptions(output_format="ply"))


class Calls:
    """Calls for one splat, which share a connection and a deadline."""

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
        """Call a procedure and return its result.

        Raises:
            GsplatError: The service refuses.
            OutageError: The service failed in every try.
        """
        body = json.dumps({"0": argument}).encode()
        try:
            return RETRIES.call(lambda: self._post(procedure, body), sleep=self._sleep, deadline=self._deadline)
        except TransientError as error:
            times = "" if error.num_tries == 1 else f", {error.num_tries} times"
            raise OutageError(f"{self._host} {error} to {procedure}{times}") from error
        except GsplatError as error:
            raise GsplatError(f"{self._host} {error} to {procedure}") from error

    def _post(self, procedure: str, body: bytes) -> Any:
        # Time-outs of zero are refused by urllib3.
        left_s = max(0.1, self._deadline - time.monotonic())
        too_long = GsplatError(f"answered with more than {MAX_ANSWER_BYTES} bytes")
        try:
            with self._session.post(
                f"{self._base}/share/trpc/order.{procedure}?batch=1",
                data=_Body(body, self._deadline),
                headers={"Content-Type": "application/json"},
                auth=_no_auth,
                timeout=(min(_CONNECT_S, left_s), min(self._answer_s, left_s)),
                stream=True,
                # A redirected POST would arrive as a GET without its content, or send the splat to another host.
                allow_redirects=False,
            ) as response:
                content = read_capped(_until(response.iter_content(1), self._deadline), MAX_ANSWER_BYTES, too_long)
        except (requests.RequestException, ValueError, TimeoutError) as error:
            raise TransientError(f"cannot be reached ({type(error).__name__})") from error
        return _result(response, content)


class _Body(io.BytesIO):
    """Body of a request that is not sent beyond a deadline.

    A file is sent in small pieces, and the time-out of the connection applies to each. Bytes would have to be sent
    within a single time-out.
    """

    def __init__(self, content: bytes, deadline: float) -> None:
        super().__init__(content)
        self._deadline = deadline

    def read(self, size: int | None = -1, /) -> bytes:
        if time.monotonic() > self._deadline:
            raise TimeoutError("the deadline has passed")
        return super().read(size)


def _until(chunks: Iterator[bytes], deadline: float) -> Iterator[bytes]:
    """Yield the chunks of an answer until the deadline; single bytes, so that a dripping answer cannot outlast it."""
    for chunk in chunks:
        yield chunk
        if time.monotonic() > deadline:
            raise TimeoutError("the deadline has passed")


def _result(response: requests.Response, content: bytes) -> Any:
    """Return the result in an answer.

    Raises:
        GsplatError: The service refuses.
        TransientError: The service failed, and another try may succeed.
    """
    entry: Any = None
    try:
        # A batch is answered with a list, but a proxy or an error before tRPC with an object, or with HTML.
        batch = read_json(content)
        entry = batch[0] if isinstance(batch, list) and batch else batch
    except ValueError:  # Not JSON, or not even text.
        pass
    entry = entry if isinstance(entry, dict) else {}
    status, error = response.status_code, _unwrapped(entry.get("error"))
    message = ""
    if error is not None:
        described = error if isinstance(error, dict) else {"message": error}
        inner = described.get("data")
        # The status of the whole batch may be 207, and the call's own is in its error.
        status = inner.get("httpStatus", status) if isinstance(inner, dict) else status
        message = f" ({plain(described.get('message'), 200)})"
    reason = f"answered {plain(status)}{message}"
    if isinstance(status, int) and (status >= 500 or status in _RETRIED_STATUSES):
        raise TransientError(reason, retry_after_s=read_count(response.headers.get("Retry-After", "")))
    if error is not None or status not in (200, 207):
        raise GsplatError(reason)
    result = entry.get("result")
    if not isinstance(result, dict) or "data" not in result:
        raise TransientError("did not answer with a result of tRPC")
    return _unwrapped(result["data"])


def _unwrapped(value: Any) -> Any:
    """Return a value without the envelope of one of tRPC's serialisers."""
    return value["json"] if isinstance(value, dict) and "json" in value else value


def _no_auth(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """Send no credentials, not even those of `.netrc`."""
    return request


def _upload(calls: Calls, path: Path, about: Mapping[str, str]) -> str:
    """Upload a file; return the service's name for it."""
    size = path.stat().st_size
    if size < MAX_SINGLE_BYTES:
        data = base64.b64encode(path.read_bytes()).decode()
        # The service recognises formats by the suffix, which it calls the type.
        file = {"name": path.name, "data": data, "type": path.suffix.removeprefix("."), "size": size}
        return _found(calls("uploadGaussianSplat", {"gaussianSplatFile": file}), "modelFileUrl", "fileUrl", "url")
    for is_last in (False, False, True):
        try:
            return _upload_in_chunks(calls, path, size, about)
        # The service is down, and each call was repeated already: the upload from the start would only fail again.
        except OutageError:
            raise
        except GsplatError as error:
            # A service that was restarted has forgotten the upload, and one whose answer was lost has ended it.
            if is_last:
                raise
            _LOG.info("%s: uploading it again: %s", path.name, error)
    raise AssertionError("the last try has raised")


def _upload_in_chunks(calls: Calls, path: Path, size: int, about: Mapping[str, str]) -> str:
    num_chunks = -(-size // CHUNK_BYTES)
    begun = calls(
        "chunkedUploadInitiate",
        {
            "filename": path.name,
            "fileSize": size,
            "chunkSize": CHUNK_BYTES,
            "contentType": "application/octet-stream",
            "metadata": about,
        },
    )
    upload_id = _found(begun, "uploadId", "id")
    with path.open("rb") as file:
        for index in range(num_chunks):
            chunk = file.read(CHUNK_BYTES)
            part = {"uploadId": upload_id, "chunkIndex": index, "totalChunks": num_chunks, "size": len(chunk)}
            calls("chunkedUploadChunk", {**part, "data": base64.b64encode(chunk).decode()})
    ended = {"uploadId": upload_id, "totalChunks": num_chunks, "filename": path.name, "metadata": about}
    return _found(calls("chunkedUploadFinalize", ended), "modelFileUrl", "fileUrl", "url")


def _found(value: Any, *names: str, default: str | None = None) -> str:
    """Return an answer that is text, or the text or number of one of these names at any depth of an object.

    Raises:
        GsplatError: The answer has none, and there is no default.
    """
    if isinstance(value, str) and value and default is None:
        return value
    # Breadth first, so that an outer value is preferred to one of the same name deeper inside.
    levels = [value] if isinstance(value, dict) else []
    while levels:
        for name, level in itertools.product(names, levels):
            if isinstance(level.get(name), (str, int)) and str(level[name]):
                return str(level[name])
        levels = [inner for level in levels for inner in level.values() if isinstance(inner, dict)]
    if default is None:
        raise GsplatError(f"the service returned no {' or '.join(names)}: its API has changed, or GSPLAT_BASE is wrong")
    return default


def _first(splats: Mapping[str, Path], names: tuple[str, ...]) -> Path:
    for name in names:
        if name in splats:
            return splats[name]
    raise GsplatError(f"no splat has a format that can be shared: add one of {', '.join(names)} to FORMATS")


def _about(photo: Photo) -> dict[str, str]:
    """Return title and credit of the photograph. No path: a path may reveal private things."""
    row = photo.row
    author, link = row.get("user_name", ""), row.get("unsplash_url", "")
    credit = f"Photo by {author} on Unsplash: {link}" if author and link else ""
    return {"title": (row.get("alt_description") or photo.id)[:200], "description": credit}


def _host(base: str) -> str:
    """Return the host of the service's address.

    Raises:
        SettingError: It is no address, or holds a password, which would be published with every splat.
    """
    try:
        parts = urlsplit(base)
        host, has_secret = parts.hostname or "", parts.password is not None or parts.username is not None
    except ValueError:
        host, has_secret = "", False
    if has_secret:
        raise SettingError("GSPLAT_BASE holds a user name or password: give an address without them")
    if not host or parts.scheme not in ("http", "https") or parts.query or parts.fragment:
        raise SettingError(f"GSPLAT_BASE is {base!r}: give an http or https address, such as https://gsplat.org")
    return host
