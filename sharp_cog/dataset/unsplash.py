"""Photographs of Unsplash as a source, by the rules of its API: attribution, counted downloads, requests an hour."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, TypeVar
from urllib.parse import urlencode, urlsplit

import requests

from sharp_cog import __version__
from sharp_cog.config.options import FOCAL_LENGTH_MM_RANGE
from sharp_cog.dataset.exif import with_focal_length
from sharp_cog.dataset.photo import MAX_IMAGE_BYTES, Photo, RateLimitError, SourceError
from sharp_cog.errors import SettingError
from sharp_cog.files.read import read_capped
from sharp_cog.files.retry import RetryPolicy, TransientError
from sharp_cog.text import read_count, read_json

_LOG = logging.getLogger(__name__)
_T = TypeVar("_T")

BASE_URL = "https://api.unsplash.com"
LICENSE, LICENSE_URL = "Unsplash License", "https://unsplash.com/license"
MAX_ANSWER_BYTES = 16 << 20
"""Longest answer of the API that is read."""
RETRIES = RetryPolicy(max_tries=4, first_wait_s=1.0, jitter=0.0)
"""Tries of each request: waits of 1, 2 and 4 seconds between them."""

_HOUR_S = 3600
_GRACE_S = 3.0
"""Seconds to wait after the full hour, because the clocks of Unsplash and of this machine may differ."""
_STEP_S = 5.0
"""Longest single wait, so that a run can be stopped in between."""
_CHUNK_BYTES = 1 << 16
"""Bytes of an answer that are read at once."""
_MAX_NAME_CHARS = 100
"""Maximum length of a camera's make or model that is written into an image."""
_TIMEOUT_S = (10.0, 60.0)
"""Seconds to wait for a connection, and for data."""

_Auth = Callable[[requests.PreparedRequest], requests.PreparedRequest]
_Entry = Mapping[str, Any]


class UnsplashApi:
    """Client of the Unsplash API.

    Only requests to the API's own address carry the access key; images lie elsewhere and are fetched without it.

    Attributes:
        base_url: The API's address, without a slash at its end.
        rate_limit_left: Requests left in this hour, as the API last reported; None before its first answer.

    Raises:
        SettingError: The access key is empty or has impossible characters.
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
        """Create the client; nothing is requested yet.

        Args:
            access_key: Key of the application that is registered at Unsplash.
            stop_on_rate_limit: Raise `RateLimitError` at the rate limit, instead of waiting for the next full hour.
            base_url: The API's address.
            sleep: Waits for a number of seconds, never more than 5 at once.
            now: Returns seconds since 1970.
        """
        key = access_key.strip()
        if not key or not all("!" <= char <= "~" for char in key):
            # Refused here, because the errors of libraries would quote the key.
            raise SettingError("UNSPLASH_ACCESS_KEY is empty or has characters that no key has: copy it again")
        self.base_url = base_url.rstrip("/")
        self.rate_limit_left = None
        self._limited_until: float | None = None
        self._stop_on_rate_limit, self._sleep, self._now = stop_on_rate_limit, sleep, now
        self._session = requests.Session()
        self._session.headers["User-Agent"] = f"sharp_cog/{__version__}"
        # Not a header of the session, which would go to the hosts of the images too.
        self._auth = _client_id(key)

    def owns(self, url: str) -> bool:
        """Return whether an address is the API's own, to which the key may be sent."""
        return origin(url) == origin(self.base_url)

    def ask(self, url: str, parameters: Mapping[str, str | int] | None = None) -> tuple[Any, Mapping[str, str]]:
        """Return the API's answer and its headers; wait where the rate limit demands it.

        Raises:
            SourceError: The API refuses, or fails in every try.
            RateLimitError: The rate limit is reached, and waiting is not wanted.
        """
        name = f"Unsplash ({urlsplit(url).path})"
        # A request that the rate limit refused is repeated after the wait, and counts as no failure.
        while (answer := self._persist(name, lambda: self._ask_once(name, url, parameters))) is None:
            pass
        return answer

    def download(self, photo_id: str, url: str) -> bytes:
        """Return a whole image.

        Raises:
            SourceError: The image does not exist, is too large, or arrives incomplete in every try.
        """
        name = f"the image of photograph {photo_id}"
        return self._persist(name, lambda: self._download_once(name, url))

    def _persist(self, name: str, attempt: Callable[[], _T]) -> _T:
        """Repeat an attempt while it fails in passing.

        Raises:
            SourceError: Every try failed.
        """
        try:
            return RETRIES.call(
                attempt, sleep=self._sleep, on_retry=lambda error, _: _LOG.info("%s %s: trying again", name, error)
            )
        except TransientError as error:
            raise SourceError(f"{name} {error}, {error.num_tries} times: try again later") from error

    def _ask_once(
        self, name: str, url: str, parameters: Mapping[str, str | int] | None
    ) -> tuple[Any, Mapping[str, str]] | None:
        """Make one request; return None if the rate limit refused it."""
        self._wait_for_turn()
        # An answer that arrives after the full hour still speaks of the hour in which the request was made.
        asked_at = self._now()
        too_long = TransientError(f"answered more than {MAX_ANSWER_BYTES} bytes")
        try:
            with self._session.get(
                url,
                params=parameters,
                headers={"Accept-Version": "v1"},
                auth=self._auth,
                timeout=_TIMEOUT_S,
                stream=True,
            ) as response:
                status, headers = response.status_code, response.headers
                content = read_capped(response.iter_content(_CHUNK_BYTES), MAX_ANSWER_BYTES, too_long)
            # Before the status is looked at: a refusal by the rate limit also comes as 403.
            if self._is_limited(status, headers, content, asked_at):
                return None
            if status == 200:
                return read_json(content), headers
        except (requests.RequestException, ValueError) as error:
            raise TransientError(_reason(error)) from error
        if status == 401:
            raise SourceError("Unsplash refuses the access key: check UNSPLASH_ACCESS_KEY")
        if status < 500:
            raise SourceError(f"{name} answered {status}")
        raise TransientError(f"answered {status}")

    def _download_once(self, name: str, url: str) -> bytes:
        too_large = SourceError(f"{name} is larger than {MAX_IMAGE_BYTES // 10**6} MB")
        try:
            # Uncompressed, so that Content-Length is the length of the image and a truncated one is recognised.
            with self._session.get(
                url, headers={"Accept-Encoding": "identity"}, auth=_no_auth, timeout=_TIMEOUT_S, stream=True
            ) as response:
                status = response.status_code
                if status == 200:
                    length = read_count(response.headers.get("Content-Length", ""))
                    expected = length if "Content-Encoding" not in response.headers else None
                    chunks = response.iter_content(_CHUNK_BYTES)
                    content = read_capped(chunks, MAX_IMAGE_BYTES, too_large, declared_bytes=expected)
                    if not content or (expected is not None and len(content) != expected):
                        total = "some" if expected is None else expected
                        raise TransientError(f"ended after {len(content)} of {total} bytes")
                    return content
        except (requests.RequestException, ValueError) as error:
            raise TransientError(_reason(error)) from error
        if status == 429 or status >= 500:
            raise TransientError(f"answered {status}")
        raise SourceError(f"{name} cannot be fetched: {urlsplit(url).hostname} answered {status}")

    def _is_limited(self, status: int, headers: Mapping[str, str], content: bytes, asked_at: float) -> bool:
        """Record the number of requests left; return whether this one was refused because there were none."""
        left = headers.get("X-Ratelimit-Remaining", "")
        if read_count(left) is not None:
            self.rate_limit_left = read_count(left)
        # Unsplash refuses with 429, or with 403 and this text; any other 403 is a refusal for good.
        is_refused = status == 429 or (status == 403 and b"rate limit" in content.lower())
        if is_refused or left == "0":
            # Requests are counted by the hour of the clock.
            self._limited_until = (asked_at // _HOUR_S + 1) * _HOUR_S
        return is_refused

    def _wait_for_turn(self) -> None:
        """Wait for the next full hour if no requests are left.

        Raises:
            RateLimitError: Waiting is not wanted.
        """
        until = self._limited_until
        left_s = 0.0 if until is None else until - self._now()
        if until is None or left_s <= 0:
            return
        if self._stop_on_rate_limit:
            raise RateLimitError(f"Unsplash's rate limit is reached: go on in {left_s:.0f} s", wait_s=left_s)
        _LOG.warning("Unsplash's rate limit is reached: going on in %.0f s", left_s + _GRACE_S)
        left_s += _GRACE_S
        # Both clocks count: the machine may have slept, and its clock may have been set back.
        while left_s > 0 and self._now() < until + _GRACE_S:
            step_s = min(left_s, _STEP_S)
            self._sleep(step_s)
            left_s -= step_s
        if self._limited_until == until:  # Otherwise another thread has met the next limit already.
            self._limited_until = None


class Unsplash:
    """Photographs that Unsplash finds for queries, or its whole list.

    Attributes:
        num_photos: Number of photographs to look at, as the API last reported; None before that, and for several
            queries.
    """

    num_photos: int | None

    def __init__(
        self,
        api: UnsplashApi,
        *,
        app_name: str,
        mode: Literal["search", "list"],
        queries: tuple[str, ...],
        order_by: str,
        per_page: int,
        max_scan: int | None,
        auto_seek: bool,
        seek_back_pages: int,
        start_page: int = 1,
    ) -> None:
        """Create the source; nothing is requested yet.

        Args:
            api: Client of the API.
            app_name: The application's name, for links of attribution.
            mode: search: results of the queries; list: everything.
            queries: Search terms, one after the other.
            order_by: Order of photographs.
            per_page: Photographs on a page, 1 to 30.
            max_scan: Stop after this many photographs, known ones included; None has no limit.
            auto_seek: Jump over pages on which every photograph is known, in lists whose beginning changes (latest,
                popular). The steps double until a page has something unknown.
            seek_back_pages: Pages to go back after such a jump, because unknown photographs may begin before the page
                that it hit. Pages farther back are skipped.
            start_page: First page, without auto_seek.
        """
        self.num_photos = None
        self._api = api
        self._num_listed: int | None = None
        self._app_name, self._mode, self._queries = app_name, mode, queries
        self._order_by, self._per_page, self._max_scan = order_by, per_page, max_scan
        self._does_seek = auto_seek and mode == "list" and order_by != "oldest"
        self._seek_back_pages, self._start_page = seek_back_pages, start_page

    @property
    def rate_limit_left(self) -> int | None:
        """Requests left in this hour, as the API last reported; None before its first answer."""
        return self._api.rate_limit_left

    def photos(self, is_known: Callable[[str], bool]) -> Iterator[Photo]:
        """Yield each photograph once, even if it is on several pages and in several queries; see `Source.photos`."""
        num_left = math.inf if self._max_scan is None else self._max_scan
        # The journal learns of a photograph only with its batch of leases, so this run remembers its own.
        taken: set[str] = set()
        for page, entries in self._pages(lambda photo_id: photo_id in taken or is_known(photo_id)):
            for index, entry in enumerate(entries):
                if num_left <= 0:
                    return
                num_left -= 1
                photo_id = _id(entry)
                if not photo_id or photo_id in taken or is_known(photo_id):
                    continue
                taken.add(photo_id)
                # Counted from the oldest photograph, a place in the list stays the same.
                is_listed = self._mode == "list" and self._order_by == "oldest"
                yield self._photo(entry, (page - 1) * self._per_page + index if is_listed else None)
            if num_left <= 0:  # Before another page is asked for.
                return

    def page(self, number: int) -> list[Photo | None]:
        """Return a page of the list, with None for unusable photographs; a short or empty page ends the list.

        Raises:
            SourceError: The API refuses, or fails in every try.
            RateLimitError: The rate limit is reached, and waiting is not wanted.
        """
        first = (number - 1) * self._per_page
        return [
            self._photo(entry, first + index) if _id(entry) else None
            for index, entry in enumerate(self._list_page(number))
        ]

    def fetch(self, photo: Photo) -> bytes:
        """Download a photograph; see `Source.fetch`. Unsplash counts it, as its guidelines ask.

        Unsplash strips EXIF from images and reports focal length and camera separately, so they are written back.
        """
        if not self._api.owns(photo.where):
            raise SourceError(
                f"photograph {photo.id}: its download is not at {self._api.base_url}, and the key is sent nowhere else"
            )
        # This request is the one that Unsplash counts as a download; its answer holds the address of the image.
        answer, _ = self._api.ask(photo.where)
        url = answer.get("url") if isinstance(answer, dict) else None
        if not isinstance(url, str) or origin(url) is None:
            raise SourceError(f"photograph {photo.id}: Unsplash does not say where its image lies")
        # Before the image, which would be fetched in vain if the rate limit is reached here.
        exif = self._exif(photo.id)
        focal_length_mm = _focal_length_mm(exif)
        image = self._api.download(photo.id, url)
        if focal_length_mm is None:
            return image
        make, model = (_text(exif, name)[:_MAX_NAME_CHARS] for name in ("make", "model"))
        return with_focal_length(image, focal_length_mm, make=make, model=model)

    def _pages(self, is_known: Callable[[str], bool]) -> Iterator[tuple[int, list[_Entry]]]:
        """Yield numbers and entries of pages, in order."""
        self._num_listed = None
        if self._mode == "search":
            for query in self._queries:
                page, last_page = self._start_page, math.inf
                while page <= last_page:
                    entries, last_page = self._search_page(query, page)
                    if not entries:
                        break
                    yield page, entries
                    page += 1
            return
        page = 1 if self._does_seek else self._start_page
        # Pages before the one that a jump has hit are read one by one, so there is no jump before this page.
        first_jump_page = page
        while entries := self._list_page(page):
            # Asked before the page is handed on, as its photographs are known afterwards.
            can_jump = self._does_seek and page >= first_jump_page and _are_known(entries, is_known)
            yield page, entries
            page += 1
            if can_jump:
                hit = self._jump(page - 1, is_known)
                if hit is None:
                    return
                page, first_jump_page = max(page, hit - self._seek_back_pages), hit

    def _jump(self, page: int, is_known: Callable[[str], bool]) -> int | None:
        """Find a page with unknown photographs in doubling steps; None if the list ends before."""
        step = 1
        while True:
            entries = self._list_page(page + step)
            if entries and not _are_known(entries, is_known):
                _LOG.info("everything is known up to about page %d of the list", page)
                return page + step
            if entries:
                page, step = page + step, 2 * step
            elif step == 1:
                return None
            else:  # Past the end: go on in small steps from the last page of the list.
                step = 1

    def _search_page(self, query: str, page: int) -> tuple[list[_Entry], float]:
        """Return the entries of a page, and the number of the last page."""
        parameters: dict[str, str | int] = {"query": query, "page": page}
        parameters |= {"per_page": self._per_page, "order_by": self._order_by}
        answer, _ = self._api.ask(f"{self._api.base_url}/search/photos", parameters)
        if not isinstance(answer, dict):
            raise SourceError("Unsplash answered a search without results: try again later")
        if len(self._queries) == 1 and isinstance(total := answer.get("total"), int):
            self._set_total(total)
        last_page = answer.get("total_pages")
        return _entries(answer.get("results")), last_page if isinstance(last_page, int) else math.inf

    def _list_page(self, page: int) -> list[_Entry]:
        """Return the entries of a page; none after the last page."""
        # A page after the end would cost one of the requests of this hour.
        if self._num_listed is not None and (page - 1) * self._per_page >= self._num_listed:
            return []
        parameters: dict[str, str | int] = {"page": page, "per_page": self._per_page, "order_by": self._order_by}
        answer, headers = self._api.ask(f"{self._api.base_url}/photos", parameters)
        total = headers.get("X-Total", "")
        self._num_listed = read_count(total)
        if self._num_listed is not None:
            self._set_total(self._num_listed)
        return _entries(answer)

    def _set_total(self, total: int) -> None:
        self.num_photos = total if self._max_scan is None else min(total, self._max_scan)

    def _photo(self, entry: _Entry, offset: int | None) -> Photo:
        links, user = _part(entry, "links"), _part(entry, "user")
        tags, topics = _titles(entry, "tags"), _titles(entry, "topics")
        row = {
            "image_id": _id(entry),
            "tags": ",".join(tags),
            "topics": ",".join(topics),
            "tags_text": " ".join(tags),
            "topics_text": " ".join(topics),
            "alt_description": _text(entry, "alt_description"),
            "description": _text(entry, "description"),
            "unsplash_id": _id(entry),
            "unsplash_url": self._attributed(_text(links, "html")),
            "created_at": _text(entry, "created_at"),
            "user_username": _text(user, "username"),
            "user_name": _text(user, "name"),
            "user_url": self._attributed(_text(_part(user, "links"), "html")),
            "license": LICENSE,
            "license_url": LICENSE_URL,
        }
        return Photo(id=_id(entry), where=_text(links, "download_location"), offset=offset, row=row)

    def _attributed(self, url: str) -> str:
        """Return a link that names the application, as Unsplash's guidelines ask."""
        if not url:
            return ""
        source = urlencode({"utm_source": self._app_name, "utm_medium": "referral"})
        return f"{url}{'&' if '?' in url else '?'}{source}"

    def _exif(self, photo_id: str) -> _Entry:
        """Return what Unsplash knows of a photograph's EXIF; empty if it knows nothing, or fails.

        Raises:
            RateLimitError: The rate limit is reached. The photograph must wait, because without its focal length the
                splat would have a wrong shape.
        """
        try:
            # Lists leave the EXIF out, so this costs a request for each photograph.
            answer, _ = self._api.ask(f"{self._api.base_url}/photos/{photo_id}")
        except RateLimitError:
            raise
        except SourceError as error:
            _LOG.warning("photograph %s: its focal length is not known: %s", photo_id, error)
            return {}
        return _part(answer, "exif") if isinstance(answer, dict) else {}


def _focal_length_mm(exif: _Entry) -> float | None:
    value = exif.get("focal_length")
    try:
        focal_length_mm = float(value) if isinstance(value, (str, int, float)) else math.nan
    except (ValueError, OverflowError):
        return None
    low, high = FOCAL_LENGTH_MM_RANGE
    return focal_length_mm if low <= focal_length_mm <= high else None


def _are_known(entries: list[_Entry], is_known: Callable[[str], bool]) -> bool:
    ids = [_id(entry) for entry in entries]
    return all(is_known(photo_id) for photo_id in ids if photo_id)


def _entries(value: Any) -> list[_Entry]:
    """Return the entries of a page; one that cannot be read keeps its place."""
    if not isinstance(value, list):
        raise SourceError("Unsplash did not answer with a list of photographs: try again later")
    return [entry if isinstance(entry, dict) else {} for entry in value]


def _id(entry: _Entry) -> str:
    """Return the photograph's id; empty if the photograph cannot be used, so that nothing waits for it."""
    photo_id = _text(entry, "id")
    try:
        Photo(id=photo_id, where="")
    except ValueError:
        return ""
    return photo_id if _text(_part(entry, "links"), "download_location") else ""


def _text(part: _Entry, name: str) -> str:
    value = part.get(name)
    return value if isinstance(value, str) else ""


def _part(entry: _Entry, name: str) -> _Entry:
    value = entry.get(name)
    return value if isinstance(value, dict) else {}


def _titles(entry: _Entry, name: str) -> list[str]:
    value = entry.get(name)
    parts = value if isinstance(value, list) else []
    return [title for part in parts if isinstance(part, dict) and (title := _text(part, "title"))]


def _client_id(key: str) -> _Auth:
    """Return an authentication that signs requests; as an argument it takes precedence over `.netrc`."""

    def sign(request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Client-ID {key}"
        return request

    return sign


def _no_auth(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """Send no credentials, not even those of `.netrc`."""
    return request


def _reason(error: Exception) -> str:
    return f"cannot be read ({type(error).__name__})"


def origin(url: str) -> tuple[str, str] | None:
    """Return scheme and host of a web address; None for anything else."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return None
    return (parts.scheme, parts.netloc) if parts.scheme in ("http", "https") and parts.netloc else None
