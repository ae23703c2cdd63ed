"""Inputs of a dataset run: its journal, files of other clients, and answers of services."""

from __future__ import annotations

import functools
import hashlib
import io
import json
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import requests
from dotenv import dotenv_values
from PIL import Image

from sharp_cog.cli.dataset import read_variables
from sharp_cog.config.dataset import DatasetSettings
from sharp_cog.config.settings import process_environment
from sharp_cog.dataset import unsplash as unsplash_module
from sharp_cog.dataset.exif import with_focal_length
from sharp_cog.dataset.folder_store import FolderStore
from sharp_cog.dataset.gsplat import Calls, GsplatError, _found
from sharp_cog.dataset.hub import HubError, HubView, Stat
from sharp_cog.dataset.index import Index, full_row
from sharp_cog.dataset.journal import Journal
from sharp_cog.dataset.leases import Leases
from sharp_cog.dataset.photo import Photo, SourceError
from sharp_cog.dataset.publish import Publisher
from sharp_cog.dataset.ranges import Ranges
from sharp_cog.dataset.show import status
from sharp_cog.dataset.unsplash import Unsplash, UnsplashApi
from sharp_cog.errors import OutputError, SettingError
from sharp_cog.files.retry import RetryPolicy
from sharp_cog.imaging.pixels import DECODER_ERRORS
from tests.fuzz.harness import Target
from tests.fuzz.raw_server import raw, raw_server
from tests.fuzz.targets_weights import folder

# ---- the journal

PHOTO = Photo(id="a", where="/in/a.jpg", offset=3, row={"user_name": "\u00c4"})
MADE: dict[str, Any] = {
    "image": "a.jpg",
    "splats": {"ply": "a.ply"},
    "sha256": {"ply": "0" * 64},
    "num_gaussians": 5,
    "focal_length_px": 900.0,
    "focal_length_source": "exif",
    "width": 3,
    "height": 2,
    "model": "lift",
    "sharp_cog": "0.1.0",
}


def filled(path: Path) -> None:
    """Write a journal in one file."""
    for left in path.parent.glob(f"{path.name}*"):
        left.unlink()
    with closing(Journal(path)) as journal:
        journal.add([PHOTO, Photo(id="b", where="b")])
        journal.advance("a", "made", **MADE)
        journal.fail("b", "broken", state="seen")
        assert journal.owner
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode=DELETE")


def journal_seeds() -> list[bytes]:
    filled(folder() / "seed.sqlite")
    return [(folder() / "seed.sqlite").read_bytes()]


def resume(path: Path) -> None:
    """Do everything that a run does with its journal when it continues."""
    with closing(Journal(path)) as journal:
        Publisher(DatasetSettings(input_dir=".", runs_dir=str(folder())), journal).requeue_incomplete()
        for entry in list(journal.entries("seen", "fetched", "made")):
            assert journal.get(entry.photo.id) is not None
            journal.advance(entry.photo.id, "made", image="b.jpg")
            journal.fail(entry.photo.id, "\ud800", state="seen")
        journal.add([PHOTO])
        journal.states(["a", "b"])
        assert journal.num_listed(max_gap=5) >= 0
        journal.last_done()
        assert journal.owner
        assert status(journal)


def open_journal(content: bytes) -> None:
    path = folder() / "journal.sqlite"
    for left in path.parent.glob(f"{path.name}*"):
        left.unlink()
    path.write_bytes(content)
    resume(path)


def row_seeds() -> list[bytes]:
    photo = json.dumps({"id": "a", "where": "/in/a.jpg", "depth": "", "offset": 3, "row": {"user_name": "A"}})
    return [photo.encode() + b"\0" + json.dumps(MADE).encode()]


def open_row(content: bytes) -> None:
    path = folder() / "rows.sqlite"
    if not path.exists():
        filled(path)
    photo, _, about = (part.decode("utf-8", "replace") for part in content.partition(b"\0"))
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE photos SET photo = ?, about = ?, state = 'made' WHERE id = 'a'", (photo, about))
        connection.execute("UPDATE photos SET state = 'seen', tries = 0, about = '{}' WHERE id = 'b'")
    resume(path)


# ---- files of other clients


class OneFile:
    """A repository that has an index and nothing else."""

    def __init__(self, content: bytes) -> None:
        self.content = content

    def stat(self, path: str) -> Stat:
        return Stat(size=len(self.content), hash=hashlib.sha256(self.content).hexdigest(), is_lfs=True)

    def read(self, path: str, *, start: int = 0) -> bytes:
        return self.content[start:]


def index_seeds() -> list[bytes]:
    rows = [full_row({"image_id": name, "user_name": "\u00c4\u2028", "splat_paths": "{}"}) for name in ("a", "b", "c")]
    return ["".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows).encode()]


def add_to_index(content: bytes) -> None:
    """Check that a row that is added is read again, after all others."""
    cache = folder() / ".index.jsonl"
    index = Index("data/train.jsonl", cache)
    index.update(cast(HubView, OneFile(content)))
    path = index.draft([full_row({"image_id": "new\ud800", "alt_description": "\udfff"})])
    try:
        whole = path.read_bytes()
        assert whole.startswith(content)
        ids = set(index.ids)
        index.update(cast(HubView, OneFile(whole)))
        assert index.ids == ids | {"new?"}
    finally:
        path.unlink()


def lease_seeds() -> list[bytes]:
    state = {"range_start": 0, "range_end": 29, "frontier": 7, "holes": [[1, 2]], "page": 1, "pp": 30}
    lock = f"{time.time():.3f}\nsomebody\n17\n".encode()
    return [
        lock,
        json.dumps(state).encode(),
        json.dumps({"ts": time.time(), "owner": "somebody", "reason": ""}).encode(),
    ]


def acquire(content: bytes) -> None:
    """Check that broken files of other clients neither fail nor block a lease."""
    place = folder() / "leases"
    for name in ("locks/a", "ranges/locks/0-29", "ranges/progress/0-29.json", "ranges/abandoned/30-59.json"):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(content)
    store = FolderStore(place)
    leases = Leases(store, "me", stale_s=60)
    assert not leases.acquire([PHOTO]).done
    leases.heartbeat()
    leases.release_all()
    ranges = Ranges(store, "me", size=30, page_size=30, stale_s=60)
    acquired = ranges.acquire(120)
    assert acquired is not None
    area, start = acquired
    assert area.start <= start <= area.end + 1
    ranges.finish(area)
    assert (place / f"ranges/done/{area}").exists()
    (place / f"ranges/done/{area}").unlink()


# ---- answers of services


def photo_json(name: str) -> dict[str, Any]:
    links = {"html": f"https://unsplash.com/{name}", "download_location": f"{raw_server().url}/photos/{name}/download"}
    user = {"username": "ann", "name": "Ann", "links": {"html": "https://unsplash.com/@ann"}}
    return {"id": name, "links": links, "user": user, "tags": [{"title": "sea"}], "alt_description": "the sea"}


def unsplash_seeds() -> list[bytes]:
    page = json.dumps([photo_json("a"), photo_json("b")]).encode()
    found = json.dumps({"total": 1, "total_pages": 1, "results": [photo_json("c")]}).encode()
    download = json.dumps({"url": f"{raw_server().url}/c.jpg", "exif": {"focal_length": "35.0"}}).encode()
    return [raw(body, "X-Ratelimit-Remaining: 40", "X-Total: 2") for body in (page, found, download)]


def go_through_unsplash(content: bytes) -> None:
    """Use an answer as a list, a search and an image: it must fit at least one of them."""
    server, errors = raw_server(), []
    server.answer = content
    for mode in ("list", "search"):
        try:
            for photo in unsplash(mode).photos(lambda _: False):
                assert all(isinstance(text, str) for text in photo.row.values())
        except SourceError as error:
            errors.append(error)
    try:
        assert unsplash("list").fetch(Photo(id="a", where=f"{server.url}/photos/a/download"))
    except SourceError as error:
        errors.append(error)
    if len(errors) == 3:
        raise errors[0]


def unsplash(mode: str) -> Unsplash:
    unsplash_module.RETRIES = RetryPolicy(max_tries=1, first_wait_s=0.0)  # The second try would get the same answer.
    api = UnsplashApi("key", stop_on_rate_limit=True, base_url=raw_server().url, sleep=lambda _: None)
    return Unsplash(
        api,
        app_name="sharp_cog",
        mode="list" if mode == "list" else "search",
        queries=("sea",),
        order_by="latest",
        per_page=30,
        max_scan=60,
        auto_seek=False,
        seek_back_pages=2,
    )


def gsplat_seeds() -> list[bytes]:
    results = ({"json": {"shareId": "abc", "id": 5}}, {"shareId": "abc"})
    return [raw(json.dumps([{"result": {"data": result}}]).encode(), "Retry-After: 1") for result in results]


def share(content: bytes) -> None:
    server = raw_server()
    server.answer = content
    with requests.Session() as session:
        calls = Calls(session, server.url, "127.0.0.1", deadline=time.monotonic() + 5, answer_s=2, sleep=lambda _: None)
        assert _found(calls("createOrder", {"title": "a"}), "shareId")


# ---- .env, and images that get their focal length back


def environment_seeds() -> list[bytes]:
    return [
        b"# mine\nexport SOURCE='folder'\nSHARP_INPUT_DIR=.\nQUERIES=\"sea, forest\"\nRUN_ID=${SOURCE}\nMAX_IMAGES=5\n"
    ]


def read_environment(content: bytes) -> None:
    path = folder() / ".env"
    path.write_bytes(content)
    variables = read_variables(str(path), dotenv_values)
    DatasetSettings.build({"SHARP_INPUT_DIR": ".", **process_environment(variables)})


@functools.cache
def jpeg_seeds() -> list[bytes]:
    exif = Image.Exif()
    exif[0x010F] = "Maker"
    images = []
    for rest in ({}, {"exif": exif}):
        file = io.BytesIO()
        Image.new("RGB", (16, 8), "teal").save(file, "JPEG", **rest)
        images.append(file.getvalue())
    return images


def put_focal_length(content: bytes) -> None:
    """Check that the pixels stay as they are, in the file and as Pillow reads them."""
    made = with_focal_length(content, 35.0)
    assert made.startswith(content[:2])
    assert made.endswith(content[max(content.rfind(b"\xff\xda"), 0) :])
    assert pixels(made) == pixels(content)


def pixels(content: bytes) -> bytes | None:
    """Return the pixels that Pillow reads; None if it reads nothing, or more than a megapixel."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            return image.tobytes() if image.width * image.height <= 1 << 20 else None
    except (*DECODER_ERRORS, Image.DecompressionBombError):
        return None


TARGETS = (
    Target("dataset-journal", journal_seeds, open_journal, (OutputError,)),
    Target("dataset-row", row_seeds, open_row, (OutputError,)),
    Target("dataset-index", index_seeds, add_to_index, (HubError,)),
    Target("dataset-lease", lease_seeds, acquire, ()),
    Target("dataset-unsplash", unsplash_seeds, go_through_unsplash, (SourceError,)),
    Target("dataset-gsplat", gsplat_seeds, share, (GsplatError,)),
    Target("dataset-env", environment_seeds, read_environment, (SettingError,)),
    Target("dataset-exif", jpeg_seeds, put_focal_length, ()),
)
