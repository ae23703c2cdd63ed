"""Unsplash as a source, against a server on loopback."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest

from sharp_cog.dataset import unsplash as unsplash_module
from sharp_cog.dataset.photo import Photo, RateLimitError, Source, SourceError
from sharp_cog.dataset.unsplash import Unsplash, UnsplashApi
from sharp_cog.errors import SettingError
from sharp_cog.imaging.images import decode
from tests.dataset.unsplash_server import ACCESS_KEY, UnsplashServer
from tests.fuzz.raw_server import RawServer, raw

HOUR = 3600.0


class Clock:
    """A clock that only waiting moves, and that records every wait."""

    def __init__(self, start: float = 1000 * HOUR + 3000) -> None:
        self.time = start
        self.waits: list[float] = []
        self.on_hour: Callable[[], object] = lambda: None

    def now(self) -> float:
        return self.time

    def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        hour = self.time // HOUR
        self.time += seconds
        if self.time // HOUR > hour:
            self.on_hour()


@pytest.fixture
def server() -> Iterator[UnsplashServer]:
    found = UnsplashServer(count=8)
    yield found
    found.close()


@pytest.fixture
def clock() -> Clock:
    return Clock()


def source(server: UnsplashServer, clock: Clock, **changes: Any) -> Unsplash:
    api: dict[str, Any] = {
        "access_key": ACCESS_KEY,
        "stop_on_rate_limit": False,
        "base_url": server.url,
        "sleep": clock.sleep,
        "now": clock.now,
    }
    api |= {name: changes.pop(name) for name in api.keys() & changes.keys()}
    settings: dict[str, Any] = {
        "app_name": "my app",
        "mode": "list",
        "queries": (),
        "order_by": "latest",
        "per_page": 3,
        "max_scan": None,
        "auto_seek": False,
        "seek_back_pages": 1,
    }
    return Unsplash(UnsplashApi(**api), **{**settings, **changes})


def nothing(photo_id: str) -> bool:
    return False


def ids(found: Iterator[Photo]) -> list[str]:
    return [photo.id for photo in found]


def first(found: Unsplash) -> Photo:
    return next(found.photos(nothing))


# Lists and searches


def test_list_is_read_page_by_page_with_offsets(server: UnsplashServer, clock: Clock) -> None:
    found: Source = source(server, clock, order_by="oldest")
    photos = list(found.photos(nothing))
    assert [photo.id for photo in photos] == server.ids[::-1]
    assert [photo.offset for photo in photos] == list(range(8))
    assert server.requests[0] == "/photos?page=1&per_page=3&order_by=oldest"
    assert server.pages() == [1, 2, 3], "the length of the list is known, so that no fourth page is asked for"
    assert set(server.keys) == {f"Client-ID {ACCESS_KEY}"}


def test_list_from_the_oldest_starts_at_the_given_page(server: UnsplashServer, clock: Clock) -> None:
    photos = list(source(server, clock, order_by="oldest", start_page=2).photos(nothing))
    assert [photo.id for photo in photos] == server.ids[::-1][3:]
    assert [photo.offset for photo in photos] == [3, 4, 5, 6, 7]


def test_pages_are_requested_only_when_needed(server: UnsplashServer, clock: Clock) -> None:
    photos = source(server, clock).photos(nothing)
    assert server.requests == []
    for _ in range(3):
        next(photos)
    assert server.pages() == [1]
    next(photos)
    assert server.pages() == [1, 2]


def test_search_runs_all_queries(server: UnsplashServer, clock: Clock) -> None:
    for number in (1, 2, 4, 7):
        server.photos[number]["tags"] = [{"title": "sea"}]
    server.photos[5]["tags"].append({"title": "sea"})
    photos = list(source(server, clock, mode="search", queries=("sea", "tree"), order_by="popular").photos(nothing))
    # pic005 is found twice and comes once.
    assert [photo.id[-1] for photo in photos] == ["1", "2", "4", "5", "7", "0", "3", "6"]
    assert {photo.offset for photo in photos} == {None}
    assert server.requests[0] == "/search/photos?query=sea&page=1&per_page=3&order_by=popular"
    assert server.pages() == [1, 2, 1, 2]


def test_search_without_results_ends(server: UnsplashServer, clock: Clock) -> None:
    assert ids(source(server, clock, mode="search", queries=("no such thing",)).photos(nothing)) == []
    assert server.pages() == [1]


def test_known_photographs_are_skipped_without_a_request(server: UnsplashServer, clock: Clock) -> None:
    known = {"pic000", "pic004"}
    assert ids(source(server, clock).photos(known.__contains__)) == [name for name in server.ids if name not in known]
    assert server.paths() == ["/photos"] * 3


@pytest.mark.parametrize(("max_scan", "expected", "num_pages"), [(0, 0, 1), (2, 1, 1), (3, 2, 1), (4, 3, 2)])
def test_max_scan_limits_the_photographs(
    server: UnsplashServer, clock: Clock, max_scan: int, expected: int, num_pages: int
) -> None:
    found = ids(source(server, clock, max_scan=max_scan).photos({"pic000"}.__contains__))
    assert len(found) == expected
    assert len(server.pages()) == num_pages


def test_unusable_photographs_are_left_out(server: UnsplashServer, clock: Clock) -> None:
    server.photos[7]["id"] = "../../etc/passwd"
    server.photos[6]["id"] = None
    del server.photos[5]["links"]["download_location"]
    server.photos[4] = {"id": "pic004"}
    photos = list(source(server, clock, order_by="oldest").photos(nothing))
    assert [photo.id for photo in photos] == ["pic003", "pic002", "pic001", "pic000"]
    assert photos[0].offset == 4, "what is left out keeps its place"


def test_index_row_credits_the_author(server: UnsplashServer, clock: Clock) -> None:
    photo = first(source(server, clock))
    assert photo.where == f"{server.url}/photos/pic000/download?ixid=of-pic000"
    assert photo.row == {
        "image_id": "pic000",
        "tags": "tree,old town",
        "topics": "Nature",
        "tags_text": "tree old town",
        "topics_text": "Nature",
        "alt_description": "a view of pic000",
        "description": "",
        "unsplash_id": "pic000",
        "unsplash_url": "https://unsplash.com/photos/pic000?utm_source=my+app&utm_medium=referral",
        "created_at": "2024-05-01T12:00:00Z",
        "user_username": "ansel",
        "user_name": "Ansel A.",
        "user_url": "https://unsplash.com/@ansel?utm_source=my+app&utm_medium=referral",
        "license": "Unsplash License",
        "license_url": "https://unsplash.com/license",
    }


def test_index_row_holds_only_strings_when_fields_are_missing(server: UnsplashServer, clock: Clock) -> None:
    where = server.photos[0]["links"]["download_location"]
    server.photos[0] = {"id": "pic000", "links": {"download_location": where}, "tags": None, "user": [1], "topics": [2]}
    row = first(source(server, clock)).row
    assert all(isinstance(value, str) for value in row.values())
    filled = {"image_id", "unsplash_id", "license", "license_url"}
    assert {name for name, value in row.items() if value} == filled


def test_attribution_keeps_the_query_of_an_address(server: UnsplashServer, clock: Clock) -> None:
    server.photos[0]["links"]["html"] = "https://unsplash.com/photos/pic000?a=b"
    query = parse_qs(urlsplit(first(source(server, clock)).row["unsplash_url"]).query)
    assert query == {"a": ["b"], "utm_source": ["my app"], "utm_medium": ["referral"]}


# Jumping over known pages


@pytest.fixture
def long_server() -> Iterator[UnsplashServer]:
    found = UnsplashServer(count=60)
    yield found
    found.close()


def test_known_pages_are_jumped_over(long_server: UnsplashServer, clock: Clock) -> None:
    known = set(long_server.ids[:30])  # Pages 1 to 10.
    found = source(long_server, clock, auto_seek=True, seek_back_pages=2, start_page=7)
    assert ids(found.photos(known.__contains__)) == long_server.ids[39:]
    # 1 and then 2, 4, 8, 16; back by two; page by page to the end.
    assert long_server.pages() == [1, 2, 4, 8, 16, 14, 15, 16, 17, 18, 19, 20]


def test_going_back_can_cover_a_whole_jump(long_server: UnsplashServer, clock: Clock) -> None:
    known = set(long_server.ids[:30])
    found = source(long_server, clock, auto_seek=True, seek_back_pages=1000, order_by="popular")
    assert ids(found.photos(known.__contains__)) == long_server.ids[30:]
    assert long_server.pages()[:5] == [1, 2, 4, 8, 16]
    assert long_server.pages()[5:] == list(range(2, 21)), "never before where the jump began, and no second jump"


def test_second_run_of_known_pages_is_jumped_over_too(long_server: UnsplashServer, clock: Clock) -> None:
    known = {*long_server.ids[:6], *long_server.ids[15:48]}  # Pages 1 and 2, 6 to 16.
    found = source(long_server, clock, auto_seek=True, seek_back_pages=0)
    assert ids(found.photos(known.__contains__)) == long_server.ids[9:15] + long_server.ids[57:]
    # Page 21 is behind the end, so that the second jump starts anew after page 13.
    assert long_server.pages() == [1, 2, 4, 4, 5, 6, 7, 9, 13, 14, 16, 20, 20]


def test_list_that_is_known_to_its_end_is_finished(long_server: UnsplashServer, clock: Clock) -> None:
    found = source(long_server, clock, auto_seek=True)
    assert ids(found.photos(long_server.ids.__contains__)) == []
    assert long_server.pages()[-1] == 20
    assert len(long_server.pages()) < 15


def test_jump_past_the_end_finds_the_last_page(long_server: UnsplashServer, clock: Clock) -> None:
    known = set(long_server.ids[:-1])
    assert ids(source(long_server, clock, auto_seek=True).photos(known.__contains__)) == long_server.ids[-1:]


def test_unusable_photographs_do_not_stop_a_jump(long_server: UnsplashServer, clock: Clock) -> None:
    known = set(long_server.ids[:30])
    long_server.photos[0]["id"] = "no/id"
    found = source(long_server, clock, auto_seek=True, seek_back_pages=2)
    assert ids(found.photos(known.__contains__)) == long_server.ids[39:]


@pytest.mark.parametrize("changes", [{"order_by": "oldest"}, {"auto_seek": False}])
def test_auto_seek_can_be_switched_off(long_server: UnsplashServer, clock: Clock, changes: dict[str, Any]) -> None:
    found = source(long_server, clock, **{"auto_seek": True, **changes})
    assert ids(found.photos(lambda photo_id: True)) == []
    assert long_server.pages() == list(range(1, 21))


# Fetching


def test_fetched_photograph_is_counted_once(server: UnsplashServer, clock: Clock) -> None:
    found = source(server, clock)
    photo = first(found)
    server.requests.clear()
    server.keys.clear()
    assert found.fetch(photo) == server.pictures["pic000"]
    assert server.requests == [
        "/photos/pic000/download?ixid=of-pic000",
        "/photos/pic000",
        "/pic000.jpg?signature=1",
    ]
    assert server.keys == [f"Client-ID {ACCESS_KEY}"] * 2 + [""], "the key does not go to where pictures lie"


def test_netrc_does_not_replace_the_key(
    server: UnsplashServer, clock: Clock, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "netrc").write_text("default login somebody password else\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    found = source(server, clock)
    assert found.fetch(first(found)) == server.pictures["pic000"]
    assert server.keys[-1] == ""


@pytest.mark.parametrize("where", ["{pictures}/pic000.jpg", "http://[", "file:///etc/passwd", "", "pic000"])
def test_key_is_sent_only_to_the_api(server: UnsplashServer, clock: Clock, where: str) -> None:
    photo = Photo(id="pic000", where=where.format(pictures=server.picture_url))
    with pytest.raises(SourceError, match="the key is sent nowhere else"):
        source(server, clock).fetch(photo)
    assert server.requests == []


def test_focal_length_is_written_back(clock: Clock) -> None:
    server = UnsplashServer(count=1, focal_length="35.0")
    found = source(server, clock)
    picture = found.fetch(first(found))
    server.close()
    before, after = decode(server.pictures["pic000"]), decode(picture)
    assert before.camera.focal_length_source == "default"
    assert after.camera.focal_length_source == "exif"
    assert after.camera.focal_length_px == pytest.approx(35 * math.hypot(64, 48) / math.hypot(36, 24))
    np.testing.assert_array_equal(after.rgb, before.rgb)


@pytest.mark.parametrize(
    ("make", "model", "equivalent_mm"),
    [("Canon", "EOS 40D", 56.5), ("Canon", "Canon EOS 6D", 35.0), ("NIKON CORPORATION", "NIKON D5300", 53.5)],
)
def test_the_camera_is_written_back_so_that_its_sensor_counts(
    clock: Clock, make: str, model: str, equivalent_mm: float
) -> None:
    server = UnsplashServer(count=1, focal_length="35.0")
    server.photos[0]["exif"] |= {"make": make, "model": model}
    found = source(server, clock)
    camera = decode(found.fetch(first(found))).camera
    server.close()
    assert camera.focal_length_px == pytest.approx(equivalent_mm * math.hypot(64, 48) / math.hypot(36, 24), rel=0.02)


@pytest.mark.parametrize("make", [None, 5, ["Canon"], "\u00e9" * 100_000, ""])
def test_an_odd_name_of_the_camera_does_no_harm(clock: Clock, make: object) -> None:
    server = UnsplashServer(count=1, focal_length="35.0")
    server.photos[0]["exif"] |= {"make": make, "model": make}
    found = source(server, clock)
    assert decode(found.fetch(first(found))).camera.focal_length_source == "default"
    server.close()


@pytest.mark.parametrize("value", [None, "", "wide", "nan", "0.0", "-35", "1e9", {"mm": 35}])
def test_implausible_focal_length_is_left_out(server: UnsplashServer, clock: Clock, value: object) -> None:
    server.photos[0]["exif"] = {"focal_length": value}
    found = source(server, clock)
    assert found.fetch(first(found)) == server.pictures["pic000"]


def test_failing_details_cost_only_the_focal_length(
    server: UnsplashServer, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    server.failures["/photos/pic000"] = 100
    server.photos[1]["exif"] = None
    found = source(server, clock)
    photos = found.photos(nothing)
    assert found.fetch(next(photos)) == server.pictures["pic000"]
    assert "its focal length is not known" in caplog.text
    assert found.fetch(next(photos)) == server.pictures["pic001"]


def test_text_in_place_of_an_image_is_returned_unchanged(server: UnsplashServer, clock: Clock) -> None:
    server.broken.add("pic000")
    server.photos[0]["exif"]["focal_length"] = "50"
    found = source(server, clock)
    assert found.fetch(first(found)) == b"this is no picture"


def test_truncated_image_is_fetched_again(server: UnsplashServer, clock: Clock) -> None:
    server.truncated["pic000"] = 3
    found = source(server, clock)
    assert found.fetch(first(found)) == server.pictures["pic000"]
    assert server.paths().count("/pic000.jpg") == 4
    assert server.num_downloads("pic000") == 1
    assert clock.waits == [1, 2, 4]


def test_image_that_never_arrives_whole_is_given_up(server: UnsplashServer, clock: Clock) -> None:
    server.truncated["pic000"] = 100
    found = source(server, clock)
    with pytest.raises(SourceError, match=r"the image of photograph pic000 .*, 4 times"):
        found.fetch(first(found))
    assert server.paths().count("/pic000.jpg") == 4


def test_image_over_the_limit_is_refused(server: UnsplashServer, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    found = source(server, clock)
    photo = first(found)
    monkeypatch.setattr(unsplash_module, "MAX_IMAGE_BYTES", len(server.pictures["pic000"]))
    assert found.fetch(photo) == server.pictures["pic000"]
    monkeypatch.setattr(unsplash_module, "MAX_IMAGE_BYTES", len(server.pictures["pic000"]) - 1)
    with pytest.raises(SourceError, match="is larger than"):
        found.fetch(photo)


def test_missing_image_fails_at_once(server: UnsplashServer, clock: Clock) -> None:
    del server.pictures["pic000"]
    found = source(server, clock)
    with pytest.raises(SourceError, match=r"pic000 cannot be fetched: 127\.0\.0\.1 answered 404") as caught:
        found.fetch(first(found))
    assert "signature" not in str(caught.value)
    assert clock.waits == []


def test_missing_photograph_fails_at_once(server: UnsplashServer, clock: Clock) -> None:
    found = source(server, clock)
    photo = first(found)
    del server.photos[0]
    with pytest.raises(SourceError, match="answered 404"):
        found.fetch(photo)
    assert clock.waits == []


# Failures


def test_busy_api_is_asked_again(server: UnsplashServer, clock: Clock) -> None:
    server.failures = {"/photos": 3, "/photos/pic000/download": 2, "/pic000.jpg": 1}
    found = source(server, clock)
    assert found.fetch(first(found)) == server.pictures["pic000"]
    assert clock.waits == [1, 2, 4, 1, 2, 1]


def test_api_that_stays_busy_is_given_up(server: UnsplashServer, clock: Clock) -> None:
    server.failures["/photos"] = 4
    with pytest.raises(SourceError, match=r"Unsplash \(/photos\) answered 503, 4 times: try again later"):
        first(source(server, clock))
    assert server.pages() == [1] * 4


def test_unreachable_api_is_given_up(server: UnsplashServer, clock: Clock) -> None:
    server.close()
    with pytest.raises(SourceError, match=r"\(ConnectionError\), 4 times") as caught:
        first(source(server, clock))
    assert ACCESS_KEY not in str(caught.value)
    assert clock.waits == [1, 2, 4]


def test_wrong_key_is_reported_but_not_shown(
    server: UnsplashServer, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with pytest.raises(SourceError, match="check UNSPLASH_ACCESS_KEY") as caught:
        first(source(server, clock, access_key="wrong-key"))
    assert server.keys == ["Client-ID wrong-key"]
    assert "wrong-key" not in f"{caught.value} {caught.value.__cause__} {caught.value.__context__} {caplog.text}"
    assert clock.waits == []


@pytest.mark.parametrize("key", ["", " ", "two words", "new\nline", "schlüssel"])
def test_impossible_key_is_not_quoted(server: UnsplashServer, clock: Clock, key: str) -> None:
    with pytest.raises(SettingError, match="UNSPLASH_ACCESS_KEY is empty or has") as caught:
        source(server, clock, access_key=key)
    assert not key.strip() or key not in str(caught.value)


# The rate limit


def test_requests_left_are_reported(server: UnsplashServer, clock: Clock) -> None:
    found = source(server, clock)
    assert found.rate_limit_left is None
    server.rate_limit = 10
    assert len(ids(found.photos(nothing))) == 8
    assert found.rate_limit_left == 7


@pytest.mark.parametrize("status", [403, 429])
@pytest.mark.parametrize("is_told", [False, True])
def test_rate_limit_is_waited_for(server: UnsplashServer, clock: Clock, status: int, is_told: bool) -> None:
    server.rate_limit, server.limit_status, server.tells_rate_limit = 2, status, is_told
    clock.on_hour = server.reset
    assert ids(source(server, clock).photos(nothing)) == server.ids
    # Where it is told that none is left, the API is not asked in vain.
    assert server.pages() == ([1, 2, 3] if is_told else [1, 2, 3, 3])
    assert sum(clock.waits) == pytest.approx(603), "10 minutes to the full hour, and a little more"
    assert max(clock.waits) <= 5


@pytest.mark.parametrize("status", [403, 429])
@pytest.mark.parametrize("is_told", [False, True])
def test_rate_limit_can_end_the_source(server: UnsplashServer, clock: Clock, status: int, is_told: bool) -> None:
    server.rate_limit, server.limit_status, server.tells_rate_limit = 2, status, is_told
    found = source(server, clock, stop_on_rate_limit=True)
    photos = found.photos(nothing)
    assert [next(photos).id for _ in range(6)] == server.ids[:6], "the last answer still counts"
    with pytest.raises(RateLimitError, match="go on in 600 s") as caught:
        next(photos)
    assert caught.value.wait_s == 600
    assert clock.waits == []
    num_requests = len(server.requests)
    with pytest.raises(RateLimitError):
        found.fetch(Photo(id="pic000", where=server.photos[0]["links"]["download_location"]))
    assert len(server.requests) == num_requests, "nothing is asked before the hour is over"
    clock.time += 600
    server.reset()
    assert ids(found.photos(nothing)) == server.ids


def test_lasting_rate_limit_is_waited_for_again(server: UnsplashServer, clock: Clock) -> None:
    server.rate_limit, server.tells_rate_limit = 0, False
    hours = iter([lambda: None, server.reset])
    clock.on_hour = lambda: next(hours)()
    assert first(source(server, clock)).id == "pic000"
    assert server.pages() == [1, 1, 1]
    assert sum(clock.waits) == pytest.approx(600 + HOUR + 3)


def test_other_refusals_are_not_waited_for(server: UnsplashServer, clock: Clock) -> None:
    server.photos.clear()
    with pytest.raises(SourceError, match="answered 404") as caught:
        source(server, clock).fetch(Photo(id="pic000", where=f"{server.url}/photos/pic000/download"))
    assert not isinstance(caught.value, RateLimitError)
    assert clock.waits == []


def test_waiting_can_be_interrupted(server: UnsplashServer, clock: Clock) -> None:
    server.rate_limit = 0

    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        first(source(server, clock, sleep=interrupt))


def test_rate_limit_between_download_and_details_stops_the_photograph(server: UnsplashServer, clock: Clock) -> None:
    """Without its focal length the photograph would become a splat of the wrong shape for good."""
    found = source(server, clock, stop_on_rate_limit=True)
    photo = first(found)
    server.rate_limit = 1
    with pytest.raises(RateLimitError):
        found.fetch(photo)
    waiting = source(server, clock)
    server.reset(1)
    clock.on_hour = server.reset
    assert waiting.fetch(photo) == server.pictures["pic000"]


@pytest.mark.parametrize(
    "answer",
    [
        raw(b"[" * 100_000),
        raw(b"[]", "X-Total: " + "9" * 5000),
        raw(b"[" + b" " * (17 << 20) + b"]"),
        raw(b"", "Location: http://[", status="302 Found"),
        raw(b"", f"Location: http://{'a' * 80}.example/", status="302 Found"),
        raw(b'"x"'),
    ],
    ids=["deep", "total", "long", "brackets", "label", "text"],
)
def test_nonsense_answers_give_an_error_or_no_photographs(answer: bytes, clock: Clock) -> None:
    server = RawServer()
    server.answer = answer
    api = UnsplashApi(ACCESS_KEY, stop_on_rate_limit=True, base_url=server.url, sleep=clock.sleep, now=clock.now)
    found = Unsplash(
        api,
        app_name="a",
        mode="list",
        queries=(),
        order_by="latest",
        per_page=3,
        max_scan=3,
        auto_seek=False,
        seek_back_pages=1,
    )
    photos: list[Photo] = []
    with contextlib.suppress(SourceError):
        photos += found.photos(nothing)
    assert photos == []


def test_focal_length_of_thousands_of_digits_is_ignored(server: UnsplashServer, clock: Clock) -> None:
    found = source(server, clock)
    photo = first(found)
    for described in server.photos:
        described["exif"]["focal_length"] = int("9" * 4000)
    assert found.fetch(photo) == server.pictures[photo.id]
