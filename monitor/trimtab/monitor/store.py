"""The events of a run, in one SQLite file that outlives any process that is killed.

On one machine write-ahead logging lets readers (the dashboard, `trimtab status`) open the file
while the controller writes, and keeps every committed event when the writer is killed. A power
cut may lose the last commits (`synchronous=NORMAL`), never the file.
"""

import json
import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeVar, cast

from trimtab.core import serde
from trimtab.core.errors import InputError, RunDirError
from trimtab.core.events import AnyEvent, Event

STORE_VERSION: Final = 1
"""SQLite's `user_version` of the files this module writes and reads."""

E = TypeVar("E", bound=Event)

_SCHEMA = f"""
BEGIN;
CREATE TABLE events (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    time_s REAL NOT NULL,
    kind TEXT NOT NULL,
    step INTEGER,
    rank INTEGER,
    body TEXT NOT NULL
);
CREATE INDEX events_by_kind ON events (kind, step, rank);
PRAGMA user_version = {STORE_VERSION};
COMMIT;
"""
_BUSY_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredEvent:
    """An event and its place in the run: ids ascend in the order of `append`."""

    id: int
    event: AnyEvent


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredRow:
    """An event as it lies in the file, for readers of many that need few of their fields."""

    id: int
    time_s: float
    kind: str
    """Name of the event's class."""
    step: int | None
    rank: int | None
    body: str
    """The event as `core.serde.to_json` wrote it."""

    @property
    def fields(self) -> dict[str, Any]:
        """The event's fields as plain JSON values."""
        return cast(dict[str, Any], json.loads(self.body))


class EventStore:
    """One run's events. Use it from one thread at a time.

    Make one with `create` or `open`; it is a context manager that closes itself.
    """

    def __init__(self, connection: sqlite3.Connection, *, path: Path) -> None:
        self._connection = connection
        self._path = path

    @classmethod
    def create(cls, path: Path, *, shared: bool = False) -> Self:
        """Make a new, empty store and open it for writing; no reader ever sees half of it.

        Args:
            path: Where it will be.
            shared: Whether other machines read it over a network file system: write-ahead
                logging needs memory that all readers share, so it is left out.

        Raises:
            RunDirError: `path` exists, or cannot be written.
        """
        if path.exists():
            raise RunDirError(f"{path}: expected no event store yet, but there is one")
        draft = path.with_name(f"{path.name}.{os.getpid()}.new")
        try:
            with closing(sqlite3.connect(draft, isolation_level=None)) as connection:
                if not shared:
                    connection.execute("PRAGMA journal_mode = WAL")
                connection.executescript(_SCHEMA)
            draft.replace(path)
        except (sqlite3.Error, OSError) as error:
            raise RunDirError(f"{path}: cannot create the event store: {error}") from error
        return cls.open(path, read_only=False)

    @classmethod
    def open(cls, path: Path, *, read_only: bool = True) -> Self:
        """Open an existing store, which another process may be writing to.

        Raises:
            RunDirError: There is no store at `path`, or one of another version.
        """
        if not path.is_file():
            raise RunDirError(f"{path}: expected an event store, but there is no such file")
        mode = "ro" if read_only else "rw"
        try:
            connection = sqlite3.connect(
                f"{path.absolute().as_uri()}?mode={mode}",
                uri=True,
                isolation_level=None,
                timeout=_BUSY_TIMEOUT_S,
                check_same_thread=False,
            )
        except sqlite3.Error as error:
            raise RunDirError(f"{path}: cannot open the event store: {error}") from error
        try:
            _check_version(connection, path)
            connection.execute("PRAGMA synchronous = NORMAL")
        except BaseException:
            connection.close()
            raise
        return cls(connection, path=path)

    def append(self, events: Iterable[AnyEvent]) -> None:
        """Add `events` in this order, all or none of them.

        Raises:
            RunDirError: The file cannot be written (a full disk, say).
        """
        rows = [_row(event) for event in events]
        if not rows:
            return
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            with self._connection:
                self._connection.executemany(
                    "INSERT INTO events (time_s, kind, step, rank, body)"
                    " VALUES (?, ?, ?, ?, ?)",
                    rows,
                )
        except sqlite3.Error as error:
            raise RunDirError(f"{self._path}: cannot write events: {error}") from error

    def read(
        self, *, after: int = 0, kinds: tuple[type[Event], ...] = (), limit: int = 10_000
    ) -> list[StoredEvent]:
        """Events with an id above `after`, oldest first.

        Args:
            after: An id read before; 0 starts at the beginning.
            kinds: Only events of these classes; empty: of any.
            limit: At most this many.
        """
        rows = self.rows(after=after, kinds=kinds, limit=limit)
        return [StoredEvent(id=row.id, event=self._decode(row)) for row in rows]

    def all(self, *, kinds: tuple[type[Event], ...] = ()) -> Iterator[AnyEvent]:
        """Every event of these classes (empty: of any), oldest first, read page by page."""
        last_id = 0
        while page := self.read(after=last_id, kinds=kinds):
            yield from (stored.event for stored in page)
            last_id = page[-1].id

    def rows(
        self,
        *,
        after: int = 0,
        kinds: tuple[type[Event], ...] = (),
        step: int | None = None,
        rank: int | None = None,
        limit: int = 10_000,
    ) -> list[StoredRow]:
        """Like `read`, undecoded, and optionally only of one step or one rank."""
        query = _Query().where("id > ?", [after])
        if kinds:
            marks = ", ".join("?" * len(kinds))
            query.where(f"kind IN ({marks})", [kind.__name__ for kind in kinds])
        if step is not None:
            query.where("step = ?", [step])
        if rank is not None:
            query.where("rank = ?", [rank])
        return self._select(query, order="id", limit=limit)

    def latest(self, kind: type[E]) -> E | None:
        """The newest event of a class, or None where there is none yet."""
        query = _Query().where("kind = ?", [kind.__name__])
        rows = self._select(query, order="id DESC", limit=1)
        return cast(E, self._decode(rows[0])) if rows else None

    def last_id(self) -> int:
        """The newest event's id; 0 in an empty store."""
        rows = self._select(_Query(), order="id DESC", limit=1)
        return rows[0].id if rows else 0

    def close(self) -> None:
        """Close the file; closing twice does nothing."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _select(self, query: "_Query", *, order: str, limit: int) -> list[StoredRow]:
        columns = "id, time_s, kind, step, rank, body"
        text = f"SELECT {columns} FROM events {query.clause}"  # noqa: S608  values are bound
        try:
            cursor = self._connection.execute(
                f"{text} ORDER BY {order} LIMIT ?", [*query.values, limit]
            )
            return [
                StoredRow(id=i, time_s=time_s, kind=kind, step=step, rank=rank, body=body)
                for i, time_s, kind, step, rank, body in cursor
            ]
        except sqlite3.Error as error:
            raise RunDirError(f"{self._path}: cannot read events: {error}") from error

    def _decode(self, row: StoredRow) -> AnyEvent:
        try:
            return read_event(row.body)
        except InputError as error:
            raise RunDirError(f"{self._path}: event {row.id}: {error}") from error


def read_event(text: str) -> AnyEvent:
    """One event from its JSON document.

    Raises:
        InputError: The text is not an event of this version.
    """
    any_event: Any = AnyEvent  # a union is no type[T] to mypy
    return cast(AnyEvent, serde.from_json(any_event, text))


class _Query:
    """The WHERE clause of a query; every value goes through a placeholder."""

    def __init__(self) -> None:
        self._conditions: list[str] = []
        self.values: list[int | str] = []

    def where(self, condition: str, values: Sequence[int | str]) -> "_Query":
        self._conditions.append(condition)
        self.values.extend(values)
        return self

    @property
    def clause(self) -> str:
        return f"WHERE {' AND '.join(self._conditions)}" if self._conditions else ""


def _row(event: AnyEvent) -> tuple[float, str, int | None, int | None, str]:
    return (
        event.time_s,
        type(event).__name__,
        getattr(event, "step", None),
        getattr(event, "rank", None),
        serde.to_json(event),
    )


def _check_version(connection: sqlite3.Connection, path: Path) -> None:
    try:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
    except sqlite3.Error as error:
        raise RunDirError(f"{path}: expected an event store, but {error}") from error
    if version != STORE_VERSION:
        raise RunDirError(
            f"{path}: this Trimtab reads event stores of version {STORE_VERSION}, "
            f"the file has version {version}; use the Trimtab that wrote it"
        )
