"""What has become of every photograph of a run, on disk before it counts: a killed run goes on where it was."""

from __future__ import annotations

import dataclasses
import json
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sharp_cog.dataset.photo import Photo
from sharp_cog.errors import OutputError

MAX_TRIES = 2
"""A photograph that failed so often is not tried again."""

State = Literal["seen", "fetched", "made", "done", "failed"]
"""seen: known; fetched: its picture is on disk; made: its splats are; done: published, or made where nothing is."""

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

    Raises:
        OutputError: The file cannot be opened or written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        with self._translated():
            self._connection = sqlite3.connect(path, timeout=30, isolation_level=None, check_same_thread=False)
            # Written ahead and synced at every change: what is told as done is done, power cut or not.
            self._connection.execute("PRAGMA journal_mode=WAL")
            self._connection.execute("PRAGMA synchronous=FULL")
            self._connection.executescript(_SCHEMA)

    def close(self) -> None:
        """Closes the file."""
        with self._lock:
            self._connection.close()

    def add(self, photo: Photo) -> None:
        """Notes a photograph that was not known."""
        text = json.dumps({**dataclasses.asdict(photo), "row": dict(photo.row)})
        self._write(
            "INSERT OR IGNORE INTO photos (id, state, photo, changed) VALUES (?, 'seen', ?, ?)",
            (photo.id, text, time.time()),
        )

    def advance(self, photo_id: str, state: State, **about: Any) -> None:
        """Notes how far a photograph is, and adds to what is known about it."""
        with self._lock, self._translated():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                row = self._connection.execute("SELECT about FROM photos WHERE id = ?", (photo_id,)).fetchone()
                known = {**json.loads(row[0]), **about}
                self._connection.execute(
                    "UPDATE photos SET state = ?, about = ?, error = '', changed = ? WHERE id = ?",
                    (state, json.dumps(known), time.time(), photo_id),
                )
                self._connection.execute("COMMIT")
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise

    def fail(self, photo_id: str, error: str) -> bool:
        """Notes a failure; returns whether another try is left."""
        with self._lock, self._translated():
            (tries,) = self._connection.execute(
                "UPDATE photos SET tries = tries + 1, error = ?, changed = ?, "
                "state = CASE WHEN tries + 1 >= ? THEN 'failed' ELSE 'seen' END WHERE id = ? RETURNING tries",
                (error[:500], time.time(), MAX_TRIES, photo_id),
            ).fetchone()
        return int(tries) < MAX_TRIES

    def forget(self, photo_id: str) -> None:
        """Takes out a photograph that is another client's."""
        self._write("DELETE FROM photos WHERE id = ? AND state = 'seen'", (photo_id,))

    def get(self, photo_id: str) -> Entry | None:
        """A photograph, or None."""
        return next(self._select("WHERE id = ?", (photo_id,)), None)

    def is_known(self, photo_id: str) -> bool:
        """Whether a photograph is in the journal."""
        with self._lock, self._translated():
            return self._connection.execute("SELECT 1 FROM photos WHERE id = ?", (photo_id,)).fetchone() is not None

    def entries(self, *states: State) -> Iterator[Entry]:
        """Photographs in these states, in the order in which they came; all of them at once."""
        marks = ", ".join("?" for _ in states)
        return self._select(f"WHERE state IN ({marks}) ORDER BY rowid", states)

    def counts(self) -> dict[str, int]:
        """How many photographs are in each state."""
        with self._lock, self._translated():
            return dict(self._connection.execute("SELECT state, COUNT(*) FROM photos GROUP BY state").fetchall())

    def done_since(self, start: float) -> int:
        """How many were done after a time."""
        with self._lock, self._translated():
            query = "SELECT COUNT(*) FROM photos WHERE state = 'done' AND changed >= ?"
            return int(self._connection.execute(query, (start,)).fetchone()[0])

    def fact(self, name: str, default: str = "") -> str:
        """A fact about the run."""
        with self._lock, self._translated():
            row = self._connection.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return default if row is None else str(row[0])

    def set_fact(self, name: str, value: str) -> None:
        """Notes a fact about the run."""
        self._write("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, value))

    def _write(self, query: str, values: tuple[Any, ...]) -> None:
        with self._lock, self._translated():
            self._connection.execute(query, values)

    def _select(self, condition: str, values: tuple[Any, ...]) -> Iterator[Entry]:
        with self._lock, self._translated():
            rows = self._connection.execute(
                f"SELECT state, tries, photo, about, error FROM photos {condition}",  # noqa: S608 - our own words
                values,
            ).fetchall()
        for state, tries, photo, about, error in rows:
            yield Entry(
                photo=Photo(**json.loads(photo)), state=state, tries=tries, about=json.loads(about), error=error
            )

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise OutputError(f"the journal {self._path} cannot be used: {error}: check the disk") from error
