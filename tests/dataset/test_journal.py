"""The journal of a run, and journals that a disk or a person has damaged."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from sharp_cog.dataset.journal import PAGE_ROWS, Journal
from sharp_cog.dataset.photo import Photo
from sharp_cog.errors import OutputError


def photo(name: str) -> Photo:
    return Photo(id=name, where=f"/in/{name}.jpg", offset=3, row={"user_name": "\u00c4"})


def test_a_reopened_journal_has_everything(tmp_path: Path) -> None:
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


def test_a_photograph_has_two_tries(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.sqlite")
    journal.add([photo("a")])
    assert journal.fail("a", "first", state="fetched")
    assert journal.counts() == {"fetched": 1}
    assert not journal.fail("a", "second", state="fetched")
    (entry,) = journal.entries("failed")
    assert (entry.tries, entry.error) == (2, "second")
    journal.add([photo("a")])
    assert journal.counts() == {"failed": 1}, "a known photograph keeps its state"


def test_photographs_of_other_clients_are_set_aside(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.sqlite")
    journal.set_aside([photo("a"), photo("b")], "taken")
    journal.set_aside([photo("b"), photo("c")], "others")
    assert journal.states(["a", "b", "c", "d"]) == {"a": "taken", "b": "others", "c": "others"}
    journal.add([photo("a"), photo("c")])
    assert journal.states(["a", "c"]) == {"a": "seen", "c": "others"}
    journal.advance("a", "made")
    journal.set_aside([photo("a")], "others")
    assert journal.states(["a"]) == {"a": "done"}, "this client published it just before it was killed"


def test_entries_are_read_page_by_page(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.sqlite")
    names = [f"photo{number:05}" for number in range(2 * PAGE_ROWS + 1)]
    journal.add(map(photo, names))
    entries = journal.entries("seen")
    first = next(entries)
    journal.finish(names[PAGE_ROWS : PAGE_ROWS + 10])
    left = [first.photo.id, *(entry.photo.id for entry in entries)]
    assert left == [*names[:PAGE_ROWS], *names[PAGE_ROWS + 10 :]]
    assert len(journal.states(names)) == len(names)


def test_places_of_a_list_are_counted_up_to_the_first_gap(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.sqlite")
    assert journal.num_listed(max_gap=5) == 0
    journal.add([Photo(id="no-list", where="")])
    journal.add([Photo(id=f"p{place}", where="", offset=place) for place in (20, 21)])
    assert journal.num_listed(max_gap=5) == 0, "a range in the middle is not the beginning"
    journal.add([Photo(id=f"p{place}", where="", offset=place) for place in (0, 1, 2, 7, 8, 9)])
    assert journal.num_listed(max_gap=5) == 10
    assert journal.num_listed(max_gap=4) == 3
    journal.add([Photo(id=f"p{place}", where="", offset=place) for place in range(10, 20)])
    assert journal.num_listed(max_gap=5) == 22


def test_changes_are_synced_and_visible_to_other_processes(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.sqlite")
    assert journal._connection.execute("PRAGMA synchronous").fetchone() == (2,), "FULL"
    journal.add([photo("a")])
    other = sqlite3.connect(tmp_path / "journal.sqlite")
    assert other.execute("SELECT id FROM photos").fetchall() == [("a",)]
    other.close()


def test_an_error_with_a_broken_file_name_is_recorded(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.sqlite")
    journal.add([photo("a")])
    journal.fail("a", "caf\udce9.jpg cannot be\nread", state="seen")
    (entry,) = journal.entries("seen")
    assert entry.error == "caf .jpg cannot be read"


def changed_row(folder: Path, **columns: str) -> Path:
    """Return a journal with a row that another program has changed."""
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
def test_a_broken_row_is_named_and_the_others_are_read(tmp_path: Path, column: str, text: str) -> None:
    journal = Journal(changed_row(tmp_path, **{column: text}))
    with pytest.raises(OutputError, match=r"journal\.sqlite has a row .*, of id 'a' \(.*delete that row"):
        list(journal.entries("made"))
    assert [entry.photo.id for entry in journal.entries("seen")] == ["b"]


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "journal.sqlite").write_bytes(b"something else, and much of it" * 100)
    with pytest.raises(OutputError, match=r"the journal .*journal\.sqlite cannot be used: file is not a database"):
        Journal(tmp_path / "journal.sqlite")


def test_a_table_name_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    path = changed_row(tmp_path)
    path.write_bytes(path.read_bytes().replace(b"CREATE TABLE photos", b"CREATE TABLE \xf6hotos"))
    with pytest.raises(OutputError, match=r"the journal .*journal\.sqlite cannot be used"):
        Journal(path)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.8])
def test_a_truncated_journal_is_refused(tmp_path: Path, share: float) -> None:
    path = changed_row(tmp_path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])

    def read_all() -> tuple[object, ...]:
        journal = Journal(path)
        return list(journal.entries("seen")), journal.owner

    with pytest.raises(OutputError, match=r"the journal .*journal\.sqlite cannot be used"):
        read_all()


def test_an_index_that_misses_a_row_is_refused(tmp_path: Path) -> None:
    """Otherwise the photograph would be worked on, and be missing when its result is recorded."""
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
