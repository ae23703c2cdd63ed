"""Photographs of Unsplash as a source, by its API's rules: attribution, counted downloads, requests an hour."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal
from urllib.parse import urlencode

from sharp_cog.config.options import FOCAL_LENGTH_MM_RANGE
from sharp_cog.dataset.exif import with_focal_length
from sharp_cog.dataset.photo import Photo, RateLimitError, SourceError
from sharp_cog.dataset.unsplash_api import UnsplashApi, origin
from sharp_cog.text import read_count

_LOG = logging.getLogger(__name__)

LICENSE, LICENSE_URL = "Unsplash License", "https://unsplash.com/license"
_Entry = Mapping[str, Any]


class Unsplash:
    """Photographs that Unsplash finds for queries, or all that it lists.

    Attributes:
        num_photos: How many there are to look at, as the API last said; None before it did, and for many queries.
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
        """Makes the source; nothing is asked for yet.

        Args:
            api: What is asked.
            app_name: The application's name, which goes into links of attribution.
            mode: search: what is found for the queries; list: everything.
            queries: What to search for, one after the other.
            order_by: Order of photographs.
            per_page: Photographs a page, 1 to 30.
            max_scan: End after so many photographs of the pages, known ones too; None is all.
            auto_seek: For lists whose beginning changes (latest, popular): start at page 1, and jump over pages on
                which everything is known. The steps double until a page has something unknown.
            seek_back_pages: How many pages to go back after such a jump, since unknown ones may begin before the page
                that it hit. Pages farther back are passed over.
            start_page: Where to start, without auto_seek.
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
        """Requests left in this hour, as the API last said; None before it did."""
        return self._api.rate_limit_left

    def photos(self, is_known: Callable[[str], bool]) -> Iterator[Photo]:
        """As `Source.photos`. Each photograph comes once, whatever pages and queries it is on."""
        num_left = math.inf if self._max_scan is None else self._max_scan
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
                # Counted from its old end, a place in the list is the same tomorrow.
                is_listed = self._mode == "list" and self._order_by == "oldest"
                yield self._photo(entry, (page - 1) * self._per_page + index if is_listed else None)
            if num_left <= 0:  # Before another page is asked for.
                return

    def page(self, number: int) -> list[Photo | None]:
        """A page of the list, with None for what cannot be used; less than a page, or nothing, where the list ends.

        Raises:
            SourceError: The API refuses, or fails again and again.
            RateLimitError: It may not be asked before the next full hour, and waiting is not wanted.
        """
        first = (number - 1) * self._per_page
        return [
            self._photo(entry, first + index) if _id(entry) else None
            for index, entry in enumerate(self._list_page(number))
        ]

    def fetch(self, photo: Photo) -> bytes:
        """As `Source.fetch`. Counts as a download at Unsplash, as its guidelines ask for.

        Unsplash takes EXIF out of pictures, and tells the focal length apart from them: it is put back.
        """
        if not self._api.owns(photo.where):
            raise SourceError(
                f"photograph {photo.id}: its download is not at {self._api.base_url}, where the key belongs"
            )
        answer, _ = self._api.ask(photo.where)
        url = answer.get("url") if isinstance(answer, dict) else None
        if not isinstance(url, str) or origin(url) is None:
            raise SourceError(f"photograph {photo.id}: Unsplash does not say where its picture lies")
        focal_length_mm = self._focal_length_mm(photo.id)
        picture = self._api.download(photo.id, url)
        return picture if focal_length_mm is None else with_focal_length(picture, focal_length_mm)

    def _pages(self, is_known: Callable[[str], bool]) -> Iterator[tuple[int, list[_Entry]]]:
        """Numbers and entries of pages, in order."""
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
        # No jump before this page: those before one that a jump has hit are gone through one by one.
        first_jump_page = page
        while entries := self._list_page(page):
            can_jump = self._does_seek and page >= first_jump_page and _are_known(entries, is_known)
            yield page, entries
            page += 1
            if can_jump:
                hit = self._jump(page - 1, is_known)
                if hit is None:
                    return
                page, first_jump_page = max(page, hit - self._seek_back_pages), hit

    def _jump(self, page: int, is_known: Callable[[str], bool]) -> int | None:
        """The page with unknown photographs that is found in doubling steps; None where the list ends before."""
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
            else:  # Over the end: on in small steps from the last page that there was.
                step = 1

    def _search_page(self, query: str, page: int) -> tuple[list[_Entry], float]:
        """Entries of a page, and the number of the last page."""
        parameters: dict[str, str | int] = {"query": query, "page": page}
        parameters |= {"per_page": self._per_page, "order_by": self._order_by}
        answer, _ = self._api.ask(f"{self._api.base_url}/search/photos", parameters)
        if not isinstance(answer, dict):
            raise SourceError("Unsplash answered a search with something else than results: try again later")
        if len(self._queries) == 1 and isinstance(total := answer.get("total"), int):
            self._tell_total(total)
        last_page = answer.get("total_pages")
        return _entries(answer.get("results")), last_page if isinstance(last_page, int) else math.inf

    def _list_page(self, page: int) -> list[_Entry]:
        """Entries of a page; none behind the last page."""
        if self._num_listed is not None and (page - 1) * self._per_page >= self._num_listed:
            return []
        parameters: dict[str, str | int] = {"page": page, "per_page": self._per_page, "order_by": self._order_by}
        answer, headers = self._api.ask(f"{self._api.base_url}/photos", parameters)
        total = headers.get("X-Total", "")
        self._num_listed = read_count(total)
        if self._num_listed is not None:
            self._tell_total(self._num_listed)
        return _entries(answer)

    def _tell_total(self, total: int) -> None:
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
        """A link as Unsplash's guidelines want it: it says who sends the reader."""
        if not url:
            return ""
        source = urlencode({"utm_source": self._app_name, "utm_medium": "referral"})
        return f"{url}{'&' if '?' in url else '?'}{source}"

    def _focal_length_mm(self, photo_id: str) -> float | None:
        """The focal length of a photograph; None where Unsplash does not know it, or fails.

        Raises:
            RateLimitError: Without it, the splat would have a wrong shape for good; later it can be had.
        """
        try:
            answer, _ = self._api.ask(f"{self._api.base_url}/photos/{photo_id}")
        except RateLimitError:
            raise
        except SourceError as error:
            _LOG.warning("photograph %s: its focal length is not known: %s", photo_id, error)
            return None
        value = _part(answer, "exif").get("focal_length") if isinstance(answer, dict) else None
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
    """Entries of a page; one that cannot be read keeps its place."""
    if not isinstance(value, list):
        raise SourceError("Unsplash answered with something else than a list of photographs: try again later")
    return [entry if isinstance(entry, dict) else {} for entry in value]


def _id(entry: _Entry) -> str:
    """The photograph's id; empty where it cannot be used, so that nothing waits for it to become known."""
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
