"""The small parts of a run: the queue between its steps, the journal, the folder as a store, what is shown."""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from sharp_cog.config.dataset import DatasetSettings
from sharp_cog.config.settings import Settings
from sharp_cog.dataset.bounded_queue import BoundedQueue
from sharp_cog.dataset.build import build
from sharp_cog.dataset.folder import Folder
from sharp_cog.dataset.folder_store import FolderStore
from sharp_cog.dataset.gpu import GpuLog
from sharp_cog.dataset.journal import PAGE_ROWS, Journal
from sharp_cog.dataset.outlet import Outlet
from sharp_cog.dataset.photo import Photo, SourceError
from sharp_cog.dataset.show import duration, shown, status
from sharp_cog.dataset.store import Change, Put, View
from sharp_cog.errors import OutputError
from tests.dataset.client import run_of
from tests.dataset.photographs import photographs


def photo(name: str) -> Photo:
    return Photo(id=name, where=f"/in/{name}.jpg", offset=3, row={"user_name": "\u00c4"})


# ---- the queue


def test_a_pipe_holds_so_many_items_and_gives_them_in_order() -> None:
    pipe: BoundedQueue[int] = BoundedQueue(2)
    seen: list[int] = []
    most = 0

    def fill() -> None:
        for number in range(20):
            assert pipe.put(number)
        pipe.close()

    thread = threading.Thread(target=fill)
    thread.start()
    while (item := pipe.take()) is not None:
        most = max(most, len(pipe))
        seen.append(item)
    thread.join(5)
    assert seen == list(range(20))
    assert most <= 2
    assert pipe.is_over


def test_many_who_take_all_hear_of_the_end() -> None:
    pipe: BoundedQueue[int] = BoundedQueue(4)
    with ThreadPoolExecutor(3) as takers:
        futures = [takers.submit(lambda: list(iter(pipe.take, None))) for _ in range(3)]
        for number in range(30):
            pipe.put(number)
        pipe.close()
        taken = [item for future in futures for item in future.result(5)]
    assert sorted(taken) == list(range(30))


def test_a_pipe_that_is_broken_off_holds_nobody_up() -> None:
    pipe: BoundedQueue[int] = BoundedQueue(1)
    assert pipe.put(1)
    with ThreadPoolExecutor(1) as filler:
        future = filler.submit(pipe.put, 2)
        time.sleep(0.05)
        assert not future.done()
        pipe.break_off()
        assert future.result(5) is False
    assert pipe.take() is None
    assert pipe.is_over


def test_taking_can_wait_for_a_while() -> None:
    pipe: BoundedQueue[int] = BoundedQueue(1)
    begun = time.monotonic()
    assert pipe.take(0.05) is None
    assert time.monotonic() - begun >= 0.05
    assert not pipe.is_over


# ---- the journal


def test_a_journal_keeps_what_it_was_told(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.sqlite")
    journal.add([photo("a"), photo("b")])
    journal.advance("a", "fetched", image="a.jpg")
    journal.advance("a", "made", splats={"ply": "a.ply"})
    owner = journal.owner
    journal.close()
    again = Journal(tmp_path / "journal.sqlite")
    entry = again.get("a")
    assert entry is not None
    assert (entry.photo, entry.state) == (photo("a"), "made")
    assert entry.about == {"image": "a.jpg", "splats": {"ply": "a.ply"}}
    assert again.owner == owner
    assert len(owner) == 32
    assert again.counts() == {"made": 1, "seen": 1}
    assert again.get("c") is None
    assert (again.is_known("b"), again.is_known("c")) == (True, False)
    assert again.last_done() is None


def test_a_second_failure_is_the_last(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.sqlite")
    journal.add([photo("a")])
    assert journal.fail("a", "first", state="fetched")
    assert journal.counts() == {"fetched": 1}
    assert not journal.fail("a", "second", state="fetched")
    (entry,) = journal.entries("failed")
    assert (entry.tries, entry.error) == (2, "second")
    journal.add([photo("a")])
    assert journal.counts() == {"failed": 1}, "what is known keeps its state"


def test_what_is_another_clients_comes_back_when_it_is_free(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.sqlite")
    journal.leave([photo("a"), photo("b")], "taken")
    journal.leave([photo("b"), photo("c")], "others")
    assert journal.states(["a", "b", "c", "d"]) == {"a": "taken", "b": "others", "c": "others"}
    journal.add([photo("a"), photo("c")])
    assert journal.states(["a", "c"]) == {"a": "seen", "c": "others"}
    journal.advance("a", "made")
    journal.leave([photo("a")], "others")
    assert journal.states(["a"]) == {"a": "done"}, "it was ours, published just before we were killed"


def test_many_entries_come_page_by_page_as_they_are_then(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.sqlite")
    names = [f"photo{number:05}" for number in range(2 * PAGE_ROWS + 1)]
    journal.add(map(photo, names))
    entries = journal.entries("seen")
    first = next(entries)
    journal.finish(names[PAGE_ROWS : PAGE_ROWS + 10])
    left = [first.photo.id, *(entry.photo.id for entry in entries)]
    assert left == [*names[:PAGE_ROWS], *names[PAGE_ROWS + 10 :]]
    assert len(journal.states(names)) == len(names)


def test_how_much_of_a_list_was_looked_at(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.sqlite")
    assert journal.num_listed(max_gap=5) == 0
    journal.add([Photo(id="no-list", where="")])
    journal.add([Photo(id=f"p{place}", where="", offset=place) for place in (20, 21)])
    assert journal.num_listed(max_gap=5) == 0, "a range in the middle is no beginning"
    journal.add([Photo(id=f"p{place}", where="", offset=place) for place in (0, 1, 2, 7, 8, 9)])
    assert journal.num_listed(max_gap=5) == 10
    assert journal.num_listed(max_gap=4) == 3
    journal.add([Photo(id=f"p{place}", where="", offset=place) for place in range(10, 20)])
    assert journal.num_listed(max_gap=5) == 22


def test_a_file_that_is_no_journal_is_told(tmp_path: Path) -> None:
    (tmp_path / "journal.sqlite").write_bytes(b"something else, and much of it" * 100)
    with pytest.raises(OutputError, match=r"the journal .*journal\.sqlite cannot be used: file is not a database"):
        Journal(tmp_path / "journal.sqlite")


def test_a_journal_is_synced_at_every_change(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.sqlite")
    assert journal._connection.execute("PRAGMA synchronous").fetchone() == (2,), "FULL"
    # Another process reads it while a run writes.
    journal.add([photo("a")])
    other = sqlite3.connect(tmp_path / "journal.sqlite")
    assert other.execute("SELECT id FROM photos").fetchall() == [("a",)]
    other.close()


def changed_row(folder: Path, **columns: str) -> Path:
    """A journal with a row that somebody else wrote."""
    path = folder / "journal.sqlite"
    with closing(Journal(path)) as journal:
        journal.add([photo("a"), photo("b")])
        journal.advance("a", "made", image="a.jpg", splats={"ply": "a.ply"})
    with closing(sqlite3.connect(path)) as connection, connection:
        for name, value in columns.items():
            connection.execute(f"UPDATE photos SET {name} = ? WHERE id = 'a'", (value,))
    return path


@pytest.mark.parametrize(
    ("column", "text"),
    [
        ("photo", "{"),
        ("photo", "[1]"),
        ("photo", "null"),
        ("photo", '{"id": "a"}'),
        ("photo", '{"id": "a", "where": "", "more": 1}'),
        ("photo", '{"id": "a", "where": 5}'),
        ("photo", '{"id": "b", "where": ""}'),
        ("photo", '{"id": "../a", "where": ""}'),
        ("photo", '{"id": "a", "where": "", "row": ["x"]}'),
        ("photo", '{"id": "a", "where": "", "row": {"x": 1}}'),
        ("photo", "[" * 100_000),
        ("about", ""),
        ("about", "5"),
        ("about", '{"image": 5}'),
        ("about", '{"image": "../../etc/passwd"}'),
        ("about", '{"splats": ["a"]}'),
        ("about", '{"splats": {"ply": "/a.ply"}}'),
        ("about", '{"sha256": "0"}'),
    ],
)
def test_a_row_that_a_journal_cannot_have_is_told_with_its_place(tmp_path: Path, column: str, text: str) -> None:
    journal = Journal(changed_row(tmp_path, **{column: text}))
    with pytest.raises(OutputError, match=r"journal\.sqlite has a row .*, of id 'a' \(.*delete that row"):
        list(journal.entries("made"))
    assert [entry.photo.id for entry in journal.entries("seen")] == ["b"], "the others are read"


def test_splats_of_which_too_little_was_noted_are_made_anew(tmp_path: Path) -> None:
    journal = Journal(changed_row(tmp_path))
    for name in ("images/a.jpg", "gaussians/a.ply"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    (entry,) = journal.entries("made")
    assert not Outlet(journal, tmp_path, claims=None, publisher=None, share=None).has_splats(entry)


def test_an_error_that_names_a_file_of_an_old_disk_is_noted(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.sqlite")
    journal.add([photo("a")])
    journal.fail("a", "caf\udce9.jpg cannot be\nread", state="seen")
    (entry,) = journal.entries("seen")
    assert entry.error == "caf .jpg cannot be read"


def test_a_journal_whose_tables_have_names_that_are_no_text_is_told(tmp_path: Path) -> None:
    path = changed_row(tmp_path)
    path.write_bytes(path.read_bytes().replace(b"CREATE TABLE photos", b"CREATE TABLE \xf6hotos"))
    with pytest.raises(OutputError, match=r"the journal .*journal\.sqlite cannot be used"):
        Journal(path)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.8])
def test_a_journal_that_was_cut_off_is_told(tmp_path: Path, share: float) -> None:
    path = changed_row(tmp_path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])

    def read_all() -> tuple[object, ...]:
        journal = Journal(path)
        return list(journal.entries("seen")), journal.owner

    with pytest.raises(OutputError, match=r"the journal .*journal\.sqlite cannot be used"):
        read_all()


def test_a_journal_whose_index_misses_a_photograph_is_told(tmp_path: Path) -> None:
    """Whose table has it: it would be worked on, and not be there when that is noted."""
    path = changed_row(tmp_path)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("PRAGMA writable_schema = ON")
        where = "WHERE name = 'photos_by_state'"
        index = connection.execute(f"SELECT * FROM sqlite_schema {where}").fetchone()
        connection.execute(f"DELETE FROM sqlite_schema {where}")
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("INSERT INTO photos (id, state, photo, changed) VALUES ('c', 'seen', '{}', 0)")
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute("INSERT INTO sqlite_schema VALUES (?, ?, ?, ?, ?)", index)
    with pytest.raises(OutputError, match=r"journal\.sqlite is damaged \(row 3 missing from index photos_by_state\)"):
        Journal(path)


# ---- the folder as a store


def test_a_file_that_came_in_between_makes_it_look_again(tmp_path: Path) -> None:
    """As where a network file system has no locks worth the name: another client creates it after we have looked."""
    store = FolderStore(tmp_path)
    looks = 0

    def decide(view: View) -> tuple[Change, bytes | None]:
        nonlocal looks
        looks += 1
        there = view.read("locks/a")
        if looks == 1:
            (tmp_path / "locks").mkdir()
            (tmp_path / "locks" / "a").write_bytes(b"theirs")
        operations = [] if there else [Put(path="locks/a", content=b"ours")]
        return Change(operations=operations, message=""), there

    assert store.change(decide) == b"theirs"
    assert looks == 2
    assert os.listdir(tmp_path / "locks") == ["a"], "no scratch is left"


def test_changes_of_many_threads_are_all_done(tmp_path: Path) -> None:
    def add(_: int) -> None:
        def decide(view: View) -> tuple[Change, None]:
            number = int(view.read("count") or b"0")
            return Change(operations=[Put(path="count", content=b"%d" % (number + 1))], message=""), None

        FolderStore(tmp_path).change(decide)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(add, range(40)))
    assert (tmp_path / "count").read_bytes() == b"40"


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be made"):
        FolderStore(tmp_path / "file" / "shared")


# ---- the folder as a source


def test_pictures_of_a_folder_and_their_depth_maps(tmp_path: Path) -> None:
    for name in ("b.JPG", "a/c.png", "a/c.depth.png", "notes.txt", ".hidden.jpg", "a/d.heic", "x.depth.npy", "x.webp"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(name.encode())
    found = list(Folder(tmp_path).photos(lambda _: False))
    assert [Path(item.where).relative_to(tmp_path).as_posix() for item in found] == [
        *("a/c.png", "a/d.heic", "b.JPG", "x.webp")
    ]
    assert [Path(item.depth).name for item in found] == ["c.depth.png", "", "", "x.depth.npy"]
    assert len({item.id for item in found}) == 4
    assert found[0].id.startswith("a-c-")
    assert [item.id for item in Folder(tmp_path).photos(lambda _: False)] == [item.id for item in found]
    assert [item.id for item in Folder(tmp_path).photos(lambda name: name != found[2].id)] == [found[2].id]


def test_a_name_that_is_no_utf8_is_a_photograph_like_others(tmp_path: Path) -> None:
    """As of a disk that was written by a system of the nineties."""
    path = os.path.join(os.fsencode(tmp_path), b"caf\xe9.jpg")
    with open(path, "wb") as file:
        file.write(b"picture")
    folder = Folder(tmp_path)
    (found,) = folder.photos(lambda _: False)
    assert found.id.startswith("caf-")
    assert folder.fetch(found) == b"picture"
    journal = Journal(tmp_path / "journal.sqlite")
    journal.add([found])
    (entry,) = journal.entries("seen")
    assert folder.fetch(entry.photo) == b"picture"


def test_a_folder_without_pictures_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "room.depth.png").write_bytes(b"a depth map")
    assert list(Folder(tmp_path).photos(lambda _: False)) == []
    assert f"no picture is below {tmp_path}" in caplog.text
    assert ".jpg" in caplog.text


def test_a_file_that_is_too_large_for_a_picture_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "a.jpg").open("wb") as file:
        file.truncate(10**12)
    folder = Folder(tmp_path)
    (found,) = folder.photos(lambda _: False)
    with pytest.raises(SourceError, match="has more than 200 MB"):
        folder.fetch(found)


def test_rows_say_whose_pictures_they_are(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"1")
    settings = DatasetSettings(
        input_dir=str(tmp_path), runs_dir=str(tmp_path / "runs"), input_license="CC BY 4.0", input_author="Ann"
    )
    with closing(Journal(tmp_path / "journal.sqlite")) as journal:
        run = build(settings, journal, Settings(model="lift"))
    (photo,) = run.source.photos(lambda _: False)
    assert (photo.row["license"], photo.row["user_name"]) == ("CC BY 4.0", "Ann")


def test_pictures_of_one_name_in_two_folders_are_two_photographs(tmp_path: Path) -> None:
    ids = set()
    for folder, content in (("mine", b"1"), ("yours", b"22")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "IMG_0001.jpg").write_bytes(content)
        ids |= {item.id for item in Folder(tmp_path / folder).photos(lambda _: False)}
    assert len(ids) == 2


# ---- what is shown


def test_durations_are_for_people() -> None:
    assert [duration(value) for value in (0, 119.4, 120, 7199, 7260, 172_800, 10**6)] == [
        *("0 s", "119 s", "2 min", "119 min", "2 h 1 min", "2 d 0 h", "11 d 13 h")
    ]


def test_without_a_terminal_lines_are_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sharp_cog.dataset.show.LINE_SECONDS", 0.1)
    folder = photographs(tmp_path / "in", 6)
    settings = DatasetSettings(input_dir=str(folder), runs_dir=str(tmp_path / "runs"))
    run = run_of(settings, seconds=0.1)
    with caplog.at_level(logging.INFO, logger="sharp_cog"), shown(run):
        run.work()
    lines = [record.message for record in caplog.records if record.name == "sharp_cog.dataset.show"]
    assert len(lines) >= 3
    assert lines[-1].startswith("done: 6; failed: 0; an hour: ")
    assert "time left: 0 s" in lines[-1]
    assert "waiting: " in lines[-1]


def test_status_tells_the_first_failures(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.sqlite")
    names = [f"photo{number}" for number in range(12)]
    journal.add(map(photo, names))
    for name in names:
        journal.fail(name, "broken", state="seen")
        journal.fail(name, "invalid_image: broken", state="seen")
    journal.add([photo("fine")])
    journal.finish(["fine"])
    lines = status(journal).splitlines()
    assert lines[0].split() == ["done", "1"]
    assert "  photo0: invalid_image: broken" in lines
    assert lines[-1] == "  and 2 more"


def test_memory_of_a_gpu_is_a_table(tmp_path: Path) -> None:
    log = GpuLog(tmp_path / "gpu_mem_log.csv")
    log.write("a")
    log.write("b")
    rows = [line.split(",") for line in (tmp_path / "gpu_mem_log.csv").read_text().splitlines()]
    assert rows[0] == ["time", "photo", "allocated_bytes", "reserved_bytes", "peak_bytes", "free_bytes"]
    assert [row[1] for row in rows[1:]] == ["a", "b"]
    assert all(len(row) == 6 for row in rows)
