"""The journal of a run: the state of every photograph, on disk before it counts, so that a killed run can continue."""

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
"""Maximum tries of one photograph."""

State = Literal["seen", "fetched", "made", "done", "failed", "taken", "others"]
"""Progress of a photograph.

- seen: The source has named it.
- fetched: Its image is on disk.
- made: Its splats are on disk.
- done: Its splats are published, or nothing is to be published.
- failed: All tries failed.
- taken: Another client works on it.
- others: Another client has finished it.
"""

PAGE_ROWS = 500
"""Rows that one query reads or names."""

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
        photo: The photograph as the source described it.
        state: Its progress.
        tries: Number of its failures.
        about: Facts found on the way: file names, hashes, number of Gaussians, addresses.
        error: Message of the last failure.
    """

    photo: Photo
    state: State
    tries: int
    about: Mapping[str, Any]
    error: str


class Journal:
    """The journal of one run in `journal.sqlite`, for many threads of one process.

    Opening it checks the whole file, which takes three seconds for a million photographs.

    Raises:
        OutputError: The file is damaged, or cannot be opened or written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        with self._translate_errors():
            # Autocommit: transactions begin and end in `_transaction`. Threads share the connection under `_lock`. The
            # time-out is for `sharp-cog dataset status`, which opens the file from another process.
            self._connection = sqlite3.connect(path, timeout=30, isolation_level=None, check_same_thread=False)
            # A photograph that a damaged index hides would be made again, or be missing halfway.
            (found,) = self._connection.execute("PRAGMA integrity_check(1)").fetchone()
            if found != "ok":
                raise OutputError(
                    f"the journal {path} is damaged ({plain(found, 200)}): check the disk, then restore a copy, "
                    "recover the file with sqlite3's .recover, or choose another RUN_ID"
                )
            # A change is on the disk before the next step begins, so that a power cut loses nothing.
            self._connection.execute("PRAGMA journal_mode=WAL")
            # NORMAL, which some builds of SQLite have as their default, would sync at checkpoints only.
            self._connection.execute("PRAGMA synchronous=FULL")
            self._connection.executescript(_SCHEMA)

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._connection.close()

    def add(self, photos: Iterable[Photo]) -> None:
        """Record photographs to work on; known ones keep their state, except `taken`, which becomes `seen`."""
        self._insert(photos, "seen", "'seen'", "WHERE state = 'taken'")

    def set_aside(self, photos: Iterable[Photo], state: Literal["taken", "others"]) -> None:
        """Record photographs of other clients.

        A photograph that this client has made and that is published already becomes `done`: this client published it
        just before it was killed.
        """
        self._insert(
            photos, state, "CASE WHEN state = 'made' AND excluded.state = 'others' THEN 'done' ELSE excluded.state END"
        )

    def _insert(self, photos: Iterable[Photo], state: State, state_of_known: str, condition: str = "") -> None:
        now = time.time()
        rows = [
            (photo.id, state, json.dumps({**dataclasses.asdict(photo), "row": dict(photo.row)}), now)
            for photo in photos
        ]
        with self._transaction() as connection:
            # An update keeps the row's number, and with it the order of arrival. Of a known photograph it changes
            # nothing but the state.
            connection.executemany(
                "INSERT INTO photos (id, state, photo, changed) VALUES (?, ?, ?, ?) "  # noqa: S608 - constant text
                f"ON CONFLICT (id) DO UPDATE SET state = {state_of_known}, changed = excluded.changed {condition}",
                rows,
            )

    def advance(self, photo_id: str, state: State, **about: Any) -> None:
        """Record the new state of a photograph, and add facts about it."""
        with self._transaction() as connection:
            row = connection.execute("SELECT about FROM photos WHERE id = ?", (photo_id,)).fetchone()
            known = {**self._about(photo_id, row[0]), **about}
            connection.execute(
                "UPDATE photos SET state = ?, about = ?, error = '', changed = ? WHERE id = ?",
                (state, json.dumps(known), time.time(), photo_id),
            )

    def finish(self, photo_ids: Iterable[str]) -> None:
        """Record photographs as done."""
        now = time.time()
        with self._transaction() as connection:
            connection.executemany(
                "UPDATE photos SET state = 'done', error = '', changed = ? WHERE id = ?",
                [(now, photo_id) for photo_id in photo_ids],
            )

    def fail(self, photo_id: str, error: str, *, state: Literal["seen", "fetched"]) -> bool:
        """Record a failure.

        Args:
            photo_id: Id of the photograph.
            error: Message of the failure.
            state: State to restart from at the next try.

        Returns:
            Whether another try is left.
        """
        with self._lock, self._translate_errors():
            # One statement, so that it needs no transaction. It counts from the old value in both places, and RETURNING
            # has the new one.
            (tries,) = self._connection.execute(
                "UPDATE photos SET tries = tries + 1, error = ?, changed = ?, "
                "state = CASE WHEN tries + 1 >= ? THEN 'failed' ELSE ? END WHERE id = ? RETURNING tries",
                (plain(error, 500), time.time(), MAX_TRIES, state, photo_id),
            ).fetchone()
        return int(tries) < MAX_TRIES

    def get(self, photo_id: str) -> Entry | None:
        """Return a photograph, or None if it is unknown."""
        found = self._select("WHERE id = ?", (photo_id,))
        return found[0][1] if found else None

    def is_known(self, photo_id: str) -> bool:
        """Return whether a photograph is in the journal."""
        with self._lock, self._translate_errors():
            return self._connection.execute("SELECT 1 FROM photos WHERE id = ?", (photo_id,)).fetchone() is not None

    def states(self, photo_ids: Collection[str]) -> dict[str, State]:
        """Return the states of those photographs that are known."""
        listed = list(photo_ids)
        found: dict[str, State] = {}
        for start in range(0, len(listed), PAGE_ROWS):
            part = listed[start : start + PAGE_ROWS]
            with self._lock, self._translate_errors():
                query = f"SELECT id, state FROM photos WHERE id IN ({_placeholders(part)})"  # noqa: S608 - question marks
                found.update(self._connection.execute(query, part).fetchall())
        return found

    def entries(self, *states: State) -> Iterator[Entry]:
        """Yield the photographs in these states, in the order of their arrival, read page by page."""
        # By row number, so that rows which change their state between two pages neither shift others nor come twice.
        last = 0
        while True:
            page = self._select(
                f"WHERE state IN ({_placeholders(states)}) AND rowid > ? ORDER BY rowid LIMIT {PAGE_ROWS}",
                (*states, last),
            )
            for last, entry in page:  # noqa: B007
                yield entry
            if len(page) < PAGE_ROWS:
                return

    def counts(self) -> dict[str, int]:
        """Return the number of photographs in each state."""
        with self._lock, self._translate_errors():
            return dict(self._connection.execute("SELECT state, COUNT(*) FROM photos GROUP BY state").fetchall())

    def assumptions(self, *, limit: int) -> dict[str, int]:
        """Return the most frequent assumptions about photographs with splats, each with its number of photographs."""
        # Journals of earlier versions record none.
        query = """
            SELECT value, COUNT(*) AS number FROM photos, json_each(about, '$.assumptions')
            WHERE state IN ('made', 'done') GROUP BY value ORDER BY number DESC, value LIMIT ?
        """
        with self._lock, self._translate_errors():
            return dict(self._connection.execute(query, (limit,)).fetchall())

    def num_listed(self, max_gap: int) -> int:
        """Return the number of places of a list, from its first one on, that were looked at.

        Args:
            max_gap: Number of places in a row that may be missing, since unusable photographs are not recorded.
        """
        # Each place with the next one on record; -1 is before the list. The first place whose successor is missing or
        # too far away ends what was looked at.
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
        """Return the Unix time at which the last photograph was finished, or None."""
        with self._lock, self._translate_errors():
            row = self._connection.execute("SELECT MAX(changed) FROM photos WHERE state = 'done'").fetchone()
        return None if row[0] is None else float(row[0])

    @property
    def owner(self) -> str:
        """Name of this run's leases, the same after a restart."""
        with self._transaction() as connection:
            connection.execute("INSERT OR IGNORE INTO facts VALUES ('owner', ?)", (uuid.uuid4().hex,))
            return str(connection.execute("SELECT value FROM facts WHERE name = 'owner'").fetchone()[0])

    def _select(self, condition: str, values: tuple[Any, ...]) -> list[tuple[int, Entry]]:
        with self._lock, self._translate_errors():
            rows = self._connection.execute(
                f"SELECT rowid, id, state, tries, photo, about, error FROM photos {condition}",  # noqa: S608 - constant text
                values,
            ).fetchall()
        return [
            (
                rowid,
                Entry(
                    photo=self._photo(photo_id, photo),
                    state=state,
                    tries=tries,
                    about=self._about(photo_id, about),
                    error=error,
                ),
            )
            for rowid, photo_id, state, tries, photo, about, error in rows
        ]

    def _photo(self, photo_id: str, text: str) -> Photo:
        with self._check_row(photo_id):
            photo = Photo(**read_json(text))
            # The dataclass does not check types, and a number in place of a text would fail far from here.
            texts = (photo.where, photo.depth, *photo.row.keys(), *photo.row.values())
            if photo.id != photo_id or not all(isinstance(text, str) for text in texts):
                raise ValueError("a value has another type")
            return photo

    def _about(self, photo_id: str, text: str) -> dict[str, Any]:
        with self._check_row(photo_id):
            about: dict[str, Any] = {**read_json(text)}
            # The files of these names are published, so a name with a folder in it could leak any file.
            files = [*about.get("splats", {}).values(), *([about["image"]] if "image" in about else [])]
            if not all(isinstance(name, str) and Path(name).name == name for name in files):
                raise ValueError("a file name is not one")
            assumptions = about.get("assumptions", [])
            is_text = isinstance(assumptions, list) and all(isinstance(each, str) for each in assumptions)
            if not isinstance(about.get("sha256", {}), dict) or not is_text:
                raise ValueError("a value has another type")
            return about

    @contextmanager
    def _check_row(self, photo_id: str) -> Iterator[None]:
        try:
            yield
        except (ValueError, TypeError, AttributeError) as error:
            raise OutputError(
                f"the journal {self._path} has a row that this version did not write, of id {quoted(photo_id)} "
                f"({plain(error, 200)}): delete that row of the table photos, or choose another RUN_ID"
            ) from error

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock, self._translate_errors():
            # IMMEDIATE takes the write lock at once; a transaction that begins with a read may be refused later.
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            # Ctrl-C included: a transaction that stays open would refuse the next BEGIN.
            except BaseException:
                if self._connection.in_transaction:  # A full disk has ended it already.
                    self._connection.execute("ROLLBACK")
                raise

    @contextmanager
    def _translate_errors(self) -> Iterator[None]:
        try:
            yield
        # sqlite3 decodes its own messages, which quote the file: broken text in it raises UnicodeDecodeError.
        except (sqlite3.Error, UnicodeDecodeError) as error:
            raise OutputError(
                f"the journal {self._path} cannot be used: {plain(error, 200)}: check the disk"
            ) from error


def _placeholders(values: Collection[object]) -> str:
    return ", ".join("?" for _ in values)
