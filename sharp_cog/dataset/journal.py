"""What has become of every photograph of a run, on disk before it counts: a killed run goes on where it was."""

from __future__ import annotations

import dataclasses
import json
import sqlite3
import threading
import time
import uuid
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sharp_cog.dataset.photo import Photo
from sharp_cog.errors import OutputError
from sharp_cog.text import plain, quoted, read_json

MAX_TRIES = 2
"""A photograph that failed so often is not tried again."""

State = Literal["seen", "fetched", "made", "done", "failed", "taken", "others"]
"""seen: known; fetched: its picture is on disk; made: its splats are; done: published, or made where nothing is.
failed: given up. taken: another client is at it; others: another client has done it."""

PAGE_ROWS = 500

_SCHEMA = """
CREATE TABLE IF NOT EXISTS photos (
    id TEXT PRIMARY KEY,
    state TEXT NOT NULL,
    tries INTEGER NOT NULL DEFAULT 0,
    photo TEXT NOT NULL,
    about TEXT NOT NULL DEFAULT '{}',
    error TEXT NOT NULL DEFAULT '',
    changed REAL NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS photos_by_state ON photos (state);
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """A photograph in the journal.

    Attributes:
        photo: What the source said of it.
        state: How far it is.
        tries: How often it failed.
        about: What was found out on the way: names of files, hashes, number of Gaussians, addresses.
        error: Of its last failure.
    """

    photo: Photo
    state: State
    tries: int
    about: Mapping[str, Any]
    error: str


class Journal:
    """The journal of one run, in `journal.sqlite`; for many threads of one process.

    It is checked as a whole when it is opened, at three seconds for a million photographs: what a damaged index hides
    would be begun anew, or missed half-way.

    Raises:
        OutputError: The file is damaged, or cannot be opened or written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        with self._translate_errors():
            self._connection = sqlite3.connect(path, timeout=30, isolation_level=None, check_same_thread=False)
            (found,) = self._connection.execute("PRAGMA integrity_check(1)").fetchone()
            if found != "ok":
                raise OutputError(
                    f"the journal {path} is damaged ({plain(found, 200)}): check the disk, and put a copy of "
                    "it back, save what is there by sqlite3's .recover, or choose another RUN_ID"
                )
            # Written ahead and synced at every change: what is told as done is done, power cut or not.
            self._connection.execute("PRAGMA journal_mode=WAL")
            self._connection.execute("PRAGMA synchronous=FULL")
            self._connection.executescript(_SCHEMA)

    def close(self) -> None:
        """Closes the file."""
        with self._lock:
            self._connection.close()

    def add(self, photos: Iterable[Photo]) -> None:
        """Notes photographs that are to be worked on; those that are known keep their state, but for `taken`."""
        self._note(photos, "seen", "'seen'", "WHERE state = 'taken'")

    def leave(self, photos: Iterable[Photo], state: Literal["taken", "others"]) -> None:
        """Notes photographs that are another client's, or that this one published just before it was killed."""
        self._note(
            photos, state, "CASE WHEN state = 'made' AND excluded.state = 'others' THEN 'done' ELSE excluded.state END"
        )

    def _note(self, photos: Iterable[Photo], state: State, state_of_known: str, condition: str = "") -> None:
        now = time.time()
        rows = [
            (photo.id, state, json.dumps({**dataclasses.asdict(photo), "row": dict(photo.row)}), now)
            for photo in photos
        ]
        with self._transaction() as connection:
            connection.executemany(
                "INSERT INTO photos (id, state, photo, changed) VALUES (?, ?, ?, ?) "  # noqa: S608 - our own words
                f"ON CONFLICT (id) DO UPDATE SET state = {state_of_known}, changed = excluded.changed {condition}",
                rows,
            )

    def advance(self, photo_id: str, state: State, **about: Any) -> None:
        """Notes how far a photograph is, and adds to what is known about it."""
        with self._transaction() as connection:
            row = connection.execute("SELECT about FROM photos WHERE id = ?", (photo_id,)).fetchone()
            known = {**self._about_of(photo_id, row[0]), **about}
            connection.execute(
                "UPDATE photos SET state = ?, about = ?, error = '', changed = ? WHERE id = ?",
                (state, json.dumps(known), time.time(), photo_id),
            )

    def finish(self, photo_ids: Iterable[str]) -> None:
        """Notes photographs as done."""
        now = time.time()
        with self._transaction() as connection:
            connection.executemany(
                "UPDATE photos SET state = 'done', error = '', changed = ? WHERE id = ?",
                [(now, photo_id) for photo_id in photo_ids],
            )

    def fail(self, photo_id: str, error: str, *, state: Literal["seen", "fetched"]) -> bool:
        """Notes a failure; returns whether another try is left, from a state on."""
        with self._lock, self._translate_errors():
            (tries,) = self._connection.execute(
                "UPDATE photos SET tries = tries + 1, error = ?, changed = ?, "
                "state = CASE WHEN tries + 1 >= ? THEN 'failed' ELSE ? END WHERE id = ? RETURNING tries",
                (plain(error, 500), time.time(), MAX_TRIES, state, photo_id),
            ).fetchone()
        return int(tries) < MAX_TRIES

    def get(self, photo_id: str) -> Entry | None:
        """A photograph, or None."""
        found = self._select("WHERE id = ?", (photo_id,))
        return found[0][1] if found else None

    def is_known(self, photo_id: str) -> bool:
        """Whether a photograph is in the journal."""
        with self._lock, self._translate_errors():
            return self._connection.execute("SELECT 1 FROM photos WHERE id = ?", (photo_id,)).fetchone() is not None

    def states(self, photo_ids: Collection[str]) -> dict[str, State]:
        """The states of those photographs that are known."""
        listed = list(photo_ids)
        found: dict[str, State] = {}
        for start in range(0, len(listed), PAGE_ROWS):
            part = listed[start : start + PAGE_ROWS]
            with self._lock, self._translate_errors():
                query = f"SELECT id, state FROM photos WHERE id IN ({_marks(part)})"  # noqa: S608 - question marks
                found.update(self._connection.execute(query, part).fetchall())
        return found

    def entries(self, *states: State) -> Iterator[Entry]:
        """Photographs in these states, in the order in which they came, as they are when their turn comes."""
        last = 0
        while True:
            page = self._select(
                f"WHERE state IN ({_marks(states)}) AND rowid > ? ORDER BY rowid LIMIT {PAGE_ROWS}", (*states, last)
            )
            for last, entry in page:  # noqa: B007
                yield entry
            if len(page) < PAGE_ROWS:
                return

    def counts(self) -> dict[str, int]:
        """How many photographs are in each state."""
        with self._lock, self._translate_errors():
            return dict(self._connection.execute("SELECT state, COUNT(*) FROM photos GROUP BY state").fetchall())

    def num_listed(self, max_gap: int) -> int:
        """How many places of a list, from its beginning on, were looked at; a few in a row may hold nothing of use."""
        query = """
            SELECT MIN(place) + 1 FROM (
                SELECT place, LEAD(place) OVER (ORDER BY place) AS next FROM (
                    SELECT json_extract(photo, '$.offset') AS place FROM photos UNION SELECT -1
                ) WHERE place IS NOT NULL
            ) WHERE next IS NULL OR next - place > ?
        """
        with self._lock, self._translate_errors():
            return int(self._connection.execute(query, (max_gap,)).fetchone()[0])

    def last_done(self) -> float | None:
        """When the last photograph was done, as Unix time; None where none is."""
        with self._lock, self._translate_errors():
            row = self._connection.execute("SELECT MAX(changed) FROM photos WHERE state = 'done'").fetchone()
        return None if row[0] is None else float(row[0])

    @property
    def owner(self) -> str:
        """The name under which this run claims, the same whenever it goes on."""
        with self._transaction() as connection:
            connection.execute("INSERT OR IGNORE INTO facts VALUES ('owner', ?)", (uuid.uuid4().hex,))
            return str(connection.execute("SELECT value FROM facts WHERE name = 'owner'").fetchone()[0])

    def _select(self, condition: str, values: tuple[Any, ...]) -> list[tuple[int, Entry]]:
        with self._lock, self._translate_errors():
            rows = self._connection.execute(
                f"SELECT rowid, id, state, tries, photo, about, error FROM photos {condition}",  # noqa: S608 - our own words
                values,
            ).fetchall()
        return [
            (
                rowid,
                Entry(
                    photo=self._photo_of(photo_id, photo),
                    state=state,
                    tries=tries,
                    about=self._about_of(photo_id, about),
                    error=error,
                ),
            )
            for rowid, photo_id, state, tries, photo, about, error in rows
        ]

    def _photo_of(self, photo_id: str, text: str) -> Photo:
        try:
            photo = Photo(**read_json(text))
            texts = (photo.where, photo.depth, *photo.row.keys(), *photo.row.values())
            if photo.id != photo_id or not all(isinstance(text, str) for text in texts):
                raise ValueError("a value of another kind")
        except (ValueError, TypeError, AttributeError) as error:
            raise self._broken_row(photo_id, error) from error
        return photo

    def _about_of(self, photo_id: str, text: str) -> dict[str, Any]:
        try:
            about: dict[str, Any] = {**read_json(text)}
            files = [*about.get("splats", {}).values(), *([about["image"]] if "image" in about else [])]
            if not all(isinstance(name, str) and Path(name).name == name for name in files):
                raise ValueError("the name of a file that is none")
            if not isinstance(about.get("sha256", {}), dict):
                raise ValueError("a value of another kind")
        except (ValueError, TypeError, AttributeError) as error:
            raise self._broken_row(photo_id, error) from error
        return about

    def _broken_row(self, photo_id: str, error: Exception) -> OutputError:
        return OutputError(
            f"the journal {self._path} has a row that this version did not write, of id {quoted(photo_id)} "
            f"({plain(error, 200)}): delete that row of the table photos, or choose another RUN_ID"
        )

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock, self._translate_errors():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:  # A full disk has ended it already.
                    self._connection.execute("ROLLBACK")
                raise

    @contextmanager
    def _translate_errors(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, UnicodeDecodeError) as error:  # Its errors repeat broken texts of the file.
            raise OutputError(
                f"the journal {self._path} cannot be used: {plain(error, 200)}: check the disk"
            ) from error


def _marks(values: Collection[object]) -> str:
    return ", ".join("?" for _ in values)
