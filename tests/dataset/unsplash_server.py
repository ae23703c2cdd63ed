"""A server on loopback with the API of Unsplash, and the images on another address."""

from __future__ import annotations

import contextlib
import io
import json
import threading
from collections.abc import Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from PIL import Image

ACCESS_KEY = "sesame-key"


class UnsplashServer:
    """Photographs `pic000`, `pic001` and so on, the newest first.

    Attributes:
        url: Address of the API.
        picture_url: Address of the images.
        photos: Answers of the API about each photograph, in order; a test may change them.
        pictures: Image files by id.
        requests: Path and query of every request, to both addresses, in order.
        keys: Authorization header of each request, or an empty string.
        rate_limit: Number of requests that the API answers before it refuses them until `reset`; None is unlimited.
        limit_status: HTTP status of these refusals.
        tells_rate_limit: Whether answers report the number of requests left.
        failures: Number of 503 answers of a path, without its query, before it works.
        broken: Ids whose image is text.
        truncated: Number of times that the image of an id ends early before it arrives whole.
    """

    def __init__(self, count: int = 8, *, size: tuple[int, int] = (64, 48), focal_length: str | None = None) -> None:
        self.requests: list[str] = []
        self.keys: list[str] = []
        self.rate_limit: int | None = None
        self.limit_status = 403
        self.tells_rate_limit = True
        self.failures: dict[str, int] = {}
        self.broken: set[str] = set()
        self.truncated: dict[str, int] = {}
        self._lock = threading.Lock()
        self._api = _serve(self._answer_api)
        self._files = _serve(self._answer_file)
        self.url = f"http://127.0.0.1:{self._api.server_address[1]}"
        self.picture_url = f"http://127.0.0.1:{self._files.server_address[1]}"
        self.photos = [self._describe(f"pic{number:03}", focal_length) for number in range(count)]
        self.pictures = {photo["id"]: _jpeg(number, size) for number, photo in enumerate(self.photos)}

    @property
    def ids(self) -> list[str]:
        return [photo["id"] for photo in self.photos]

    def paths(self) -> list[str]:
        """All requests, without their queries."""
        return [urlsplit(request).path for request in self.requests]

    def num_downloads(self, photo_id: str) -> int:
        """How often the download of a photograph was counted."""
        return self.paths().count(f"/photos/{photo_id}/download")

    def pages(self) -> list[int]:
        """Which pages were asked for, of the list or of a search."""
        parts = (urlsplit(request) for request in self.requests)
        return [int(parse_qs(part.query)["page"][0]) for part in parts if part.path in ("/photos", "/search/photos")]

    def reset(self, rate_limit: int | None = None) -> None:
        """The next hour."""
        with self._lock:
            self.rate_limit = rate_limit

    def close(self) -> None:
        """Ends both servers."""
        for server in (self._api, self._files):
            server.shutdown()
            server.server_close()

    def _describe(self, photo_id: str, focal_length: str | None) -> dict[str, Any]:
        return {
            "id": photo_id,
            "created_at": "2024-05-01T12:00:00Z",
            "alt_description": f"a view of {photo_id}",
            "description": None,
            "tags": [{"title": "tree"}, {"title": "old town"}],
            "topics": [{"title": "Nature"}],
            "links": {
                "html": f"https://unsplash.com/photos/{photo_id}",
                "download_location": f"{self.url}/photos/{photo_id}/download?ixid=of-{photo_id}",
            },
            "user": {"username": "ansel", "name": "Ansel A.", "links": {"html": "https://unsplash.com/@ansel"}},
            "exif": {"make": "Canon", "model": "EOS R5", "focal_length": focal_length},
        }

    def _answer_api(self, handler: BaseHTTPRequestHandler) -> None:
        parts = urlsplit(handler.path)
        headers: dict[str, str] = {}
        with self._lock:
            is_failing = self._note(handler)
            if self.rate_limit is not None:
                is_limited = self.rate_limit <= 0
                self.rate_limit = max(0, self.rate_limit - 1)
                if self.tells_rate_limit:
                    headers["X-Ratelimit-Remaining"] = str(self.rate_limit)
                if is_limited:
                    _send(handler, b"Rate Limit Exceeded", self.limit_status, headers)
                    return
        if is_failing:
            _send(handler, b"busy", 503, headers)
        elif handler.headers["Authorization"] != f"Client-ID {ACCESS_KEY}" or handler.headers["Accept-Version"] != "v1":
            send_json(handler, {"errors": ["OAuth error: The access token is invalid"]}, 401, headers)
        else:
            query = {name: values[0] for name, values in parse_qs(parts.query).items()}
            self._answer(handler, parts.path.split("/")[1:], query, headers)

    def _answer(
        self, handler: BaseHTTPRequestHandler, path: list[str], query: dict[str, str], headers: dict[str, str]
    ) -> None:
        by_id = {photo["id"]: photo for photo in self.photos}
        match path:
            case ["photos"]:
                ordered = self.photos[::-1] if query["order_by"] == "oldest" else self.photos
                send_json(handler, _page(ordered, query), 200, {**headers, "X-Total": str(len(ordered))})
            case ["search", "photos"]:
                found = [photo for photo in self.photos if {"title": query["query"]} in photo["tags"]]
                num_pages = -(-len(found) // int(query["per_page"]))
                results = {"total": len(found), "total_pages": num_pages, "results": _page(found, query)}
                send_json(handler, results, 200, headers)
            case ["photos", photo_id] if photo_id in by_id:
                send_json(handler, by_id[photo_id], 200, headers)
            case ["photos", photo_id, "download"] if photo_id in by_id:
                send_json(handler, {"url": f"{self.picture_url}/{photo_id}.jpg?signature=1"}, 200, headers)
            case _:
                send_json(handler, {"errors": ["Couldn't find Photo"]}, 404, headers)

    def _answer_file(self, handler: BaseHTTPRequestHandler) -> None:
        photo_id = urlsplit(handler.path).path.strip("/").removesuffix(".jpg")
        with self._lock:
            is_failing = self._note(handler)
            is_truncated = self.truncated.get(photo_id, 0) > 0
            if is_truncated:
                self.truncated[photo_id] -= 1
        picture = b"this is no picture" if photo_id in self.broken else self.pictures.get(photo_id)
        if is_failing:
            _send(handler, b"busy", 503, {})
        elif picture is None:
            _send(handler, b"gone", 404, {})
        else:
            sent = picture[: len(picture) // 2] if is_truncated else picture
            _send(handler, sent, 200, {"Content-Type": "image/jpeg", "Content-Length": str(len(picture))})

    def _note(self, handler: BaseHTTPRequestHandler) -> bool:
        """Remembers a request; whether it is to fail."""
        self.requests.append(handler.path)
        self.keys.append(handler.headers.get("Authorization", ""))
        path = urlsplit(handler.path).path
        if self.failures.get(path, 0) <= 0:
            return False
        self.failures[path] -= 1
        return True


def _serve(answer: Any) -> ThreadingHTTPServer:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer(self)

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    return server


def _page(photos: list[dict[str, Any]], query: dict[str, str]) -> list[dict[str, Any]]:
    """Returns a photograph as lists show it, without the fields that only the details hold."""
    per_page = min(int(query["per_page"]), 30)
    start = (int(query["page"]) - 1) * per_page
    return [
        {name: value for name, value in photo.items() if name != "exif"} for photo in photos[start : start + per_page]
    ]


def send_json(handler: BaseHTTPRequestHandler, content: Any, status: int, headers: dict[str, str]) -> None:
    _send(handler, json.dumps(content).encode(), status, {**headers, "Content-Type": "application/json"})


def _send(handler: BaseHTTPRequestHandler, body: bytes, status: int, headers: dict[str, str]) -> None:
    handler.send_response(status)
    for name, value in {"Content-Length": str(len(body)), **headers}.items():
        handler.send_header(name, value)
    handler.end_headers()
    with contextlib.suppress(OSError):
        handler.wfile.write(body)


def _jpeg(number: int, size: tuple[int, int]) -> bytes:
    """Returns a JPEG that differs from every other one."""
    width, height = size
    image = Image.new("RGB", size)
    image.putdata(list(_pixels(number, width, height)))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=90)
    return file.getvalue()


def _pixels(number: int, width: int, height: int) -> Iterable[tuple[int, int, int]]:
    for y in range(height):
        for x in range(width):
            yield (x * 255 // width, y * 255 // height, number * 37 % 256)
