"""Splats at gsplat.org: the most visible Gaussians of each, behind an address that opens in any browser.

It asks for no account and no key. Its API is tRPC over HTTP, a batch of one call each. Nothing in it marks a call as a
repeated one: where the answer to the last, `createOrder`, is lost, a second page may come to be, which expires as the
first one does.
"""

from __future__ import annotations

import base64
import itertools
import logging
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import requests

from sharp_cog import __version__, formats
from sharp_cog.config.dataset import DatasetSettings
from sharp_cog.config.options import OutputOptions
from sharp_cog.dataset.gsplat_api import ANSWER_S, Calls, GsplatError, TransientError
from sharp_cog.dataset.photo import Photo
from sharp_cog.errors import SettingError, SharpError
from sharp_cog.geometry import simplify
from sharp_cog.text import redact, trace

_LOG = logging.getLogger(__name__)

READABLE_FORMATS = ("ply", "apple_ply", "spz", "compressed_ply", "splat")
"""What the small splat can be made of; the best first."""
SHARED_FORMATS = ("ply", "compressed_ply", "spz", "splat", "apple_ply")
"""What can be shared whole; what most viewers read first."""

MAX_SINGLE_BYTES = 20 * 1024 * 1024
"""From this size on, a file goes in chunks."""
CHUNK_BYTES = 16 * 1024 * 1024
DEADLINE_S = 300.0
"""How long sharing one splat may take in all."""
OUTAGE_FAILURES, OUTAGE_S = 3, 300.0
"""After so many failures one after the other, for so many seconds nothing is sent: a service that is down must not hold
up the photographs."""


class Gsplat:
    """Shares splats; a `sharp_cog.dataset.engine.Share`, for many threads at once.

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
        """Makes it; nothing is asked for yet.

        Args:
            base: The service's address.
            expiration_type: How long it keeps a splat, in its own words, such as `1week`.
            num_gaussians: How many Gaussians are shared, the most visible ones.
            uses_small_ply: Share those alone; else the whole splat as it was written.
            deadline_s: How long one splat may take in all.
            answer_s: How long one answer may take to come.
            sleep: Waits for seconds.
        """
        self._base, self._host = base.rstrip("/"), _host(base)
        self._expiration_type, self._num_gaussians = expiration_type, num_gaussians
        self._uses_small_ply = uses_small_ply
        self._deadline_s, self._answer_s, self._sleep = deadline_s, answer_s, sleep
        self._lock = threading.Lock()
        self._num_failures, self._closed_until = 0, -float("inf")

    @classmethod
    def of(cls, settings: DatasetSettings) -> Gsplat:
        """As the settings of a run want it.

        Raises:
            SettingError: The address cannot be used, or no format of the run.
        """
        usable = READABLE_FORMATS if settings.gsplat_use_small_ply else SHARED_FORMATS
        if not set(usable) & set(settings.formats):
            raise SettingError(
                f"FORMATS is {','.join(settings.formats)}, of which gsplat.org takes none: add one of "
                f"{', '.join(usable)}, or leave GSPLAT_UPLOAD out"
            )
        return cls(
            settings.gsplat_base,
            expiration_type=settings.gsplat_expiration_type,
            num_gaussians=settings.gsplat_filter_visibility,
            uses_small_ply=settings.gsplat_use_small_ply,
        )

    def __call__(self, photo: Photo, splats: Mapping[str, Path]) -> dict[str, str]:
        """As `sharp_cog.dataset.engine.Share`: the fields `gsplat_...` of the index, or `gsplat_error`, the reason.

        Args:
            photo: What is known of the photograph; those who took it are named.
            splats: Its files by format. The small splat is written beside them, as `<id>.small.gsplat.ply`.
        """
        with self._lock:
            closed_s = self._closed_until - time.monotonic()
        if closed_s > 0:
            return {"gsplat_error": f"{self._host} failed {OUTAGE_FAILURES} times: not asked for {closed_s:.0f} s more"}
        try:
            shared = self._share(photo, splats)
        except Exception as error:  # noqa: BLE001 - sharing never fails the photograph
            # What is no error of ours is a fault of ours, and its place must be known.
            _LOG.warning("%s is not shared: %s", photo.id, error if isinstance(error, SharpError) else trace(error))
            self._note(is_outage=isinstance(error, TransientError))
            return {"gsplat_error": redact(f"{getattr(error, 'code', type(error).__name__)}: {error}")[:300]}
        self._note(is_outage=False)
        return {**shared, "gsplat_error": ""}

    def _note(self, *, is_outage: bool) -> None:
        with self._lock:
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
        """Writes the most visible Gaussians, as a plain .ply."""
        source = _first(splats, READABLE_FORMATS)
        splat = formats.read(source)
        kept = simplify.prune(splat.gaussians, max_gaussians=self._num_gaussians)
        path = source.with_name(f"{photo.id}.small.gsplat.ply")
        return formats.write(path, kept, splat.camera, OutputOptions(output_format="ply"))


def _upload(calls: Calls, path: Path, about: Mapping[str, str]) -> str:
    """Uploads a file; returns the service's name for it."""
    size = path.stat().st_size
    if size < MAX_SINGLE_BYTES:
        data = base64.b64encode(path.read_bytes()).decode()
        # The service tells formats by the suffix, which is what it calls the type.
        file = {"name": path.name, "data": data, "type": path.suffix.removeprefix("."), "size": size}
        return _found(calls("uploadGaussianSplat", {"gaussianSplatFile": file}), "modelFileUrl", "fileUrl", "url")
    for is_last in (False, False, True):
        try:
            return _upload_in_chunks(calls, path, size, about)
        except TransientError:
            raise
        except GsplatError as error:
            # A service that was started anew knows nothing of the upload, and one whose answer was lost has ended it.
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
    """Text, or the text or number of one of these names in an object, itself or in what is in it.

    Raises:
        GsplatError: There is none, and no default.
    """
    if isinstance(value, str) and value and default is None:
        return value
    levels = [value] if isinstance(value, dict) else []
    while levels:
        for name, level in itertools.product(names, levels):
            if isinstance(level.get(name), (str, int)) and str(level[name]):
                return str(level[name])
        levels = [inner for level in levels for inner in level.values() if isinstance(inner, dict)]
    if default is None:
        raise GsplatError(f"the service gives no {' or '.join(names)}: it has changed, or GSPLAT_BASE is another one")
    return default


def _first(splats: Mapping[str, Path], names: tuple[str, ...]) -> Path:
    for name in names:
        if name in splats:
            return splats[name]
    raise GsplatError(f"there is no splat in a format that can be shared: have one of {', '.join(names)} in FORMATS")


def _about(photo: Photo) -> dict[str, str]:
    """Title and description: the photograph's, and who took it. Never a path, which may tell what is private."""
    row = photo.row
    author, link = row.get("user_name", ""), row.get("unsplash_url", "")
    credit = f"Photo by {author} on Unsplash: {link}" if author and link else ""
    return {"title": (row.get("alt_description") or photo.id)[:200], "description": credit}


def _host(base: str) -> str:
    """The host of the service's address.

    Raises:
        SettingError: It is no address, or holds a password, which would be published with every splat.
    """
    try:
        parts = urlsplit(base)
        host, has_secret = parts.hostname or "", parts.password is not None or parts.username is not None
    except ValueError:
        host, has_secret = "", False
    if has_secret:
        raise SettingError("GSPLAT_BASE holds a user name or password: give an address without")
    if not host or parts.scheme not in ("http", "https") or parts.query or parts.fragment:
        raise SettingError(f"GSPLAT_BASE is {base!r}: give an http or https address, such as https://gsplat.org")
    return host
