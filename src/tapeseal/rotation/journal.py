"""The journal of rotations: a SQLite file that says, before and after each step, how far each of them has come.

Whatever a run does it notes here first. After `kill -9` at any instant the next run reads what had begun and what had
ended, and goes on. It holds names, versions and times, never a secret.
"""

import contextlib
import errno
import fcntl
import json
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from tapeseal.closing import Closing
from tapeseal.files import StrPath
from tapeseal.rotation import commands
from tapeseal.rotation.schedule import Sessions

RUNNING: Final = "running"
WAITING: Final = "waiting"
"""For consumers."""
MONITORING: Final = "monitoring"
ROLLING_BACK: Final = "rolling back"
FINISHED: Final = "finished"
ROLLED_BACK: Final = "rolled back"
OPEN_STATES: Final = (RUNNING, WAITING, MONITORING, ROLLING_BACK)

BY_COMMAND: Final = "rolled back by command"
"""The error of a rotation that somebody had rolled back."""

ROTATE: Final = "rotate"
EMERGENCY: Final = "emergency"
ROLLBACK: Final = "rollback"

_LONGEST_WAIT: Final = 8 * 86400.0
"""Seconds; longer than break-glass grants access."""

_APPLICATION_ID: Final = 0x7461_726F  # "taro"
_VERSION: Final = 1
_SCHEMA: Final = """
CREATE TABLE rotations (
    id TEXT PRIMARY KEY, secret TEXT NOT NULL, kind TEXT NOT NULL, step TEXT NOT NULL, state TEXT NOT NULL,
    emergency INTEGER NOT NULL, reason TEXT NOT NULL, facts TEXT NOT NULL, started REAL NOT NULL,
    updated REAL NOT NULL, made REAL, adopted_by REAL, revoked REAL, waiting TEXT NOT NULL, held REAL,
    error TEXT NOT NULL, alarm TEXT NOT NULL
) STRICT;
CREATE UNIQUE INDEX open_rotation ON rotations (secret)
    WHERE state IN ('running', 'waiting', 'monitoring', 'rolling back');
CREATE INDEX rotations_by_secret ON rotations (secret);
CREATE TABLE events (
    rotation TEXT NOT NULL REFERENCES rotations, at REAL NOT NULL, step TEXT NOT NULL, event TEXT NOT NULL,
    detail TEXT NOT NULL
) STRICT;
CREATE INDEX events_by_rotation ON events (rotation);
CREATE TABLE secrets (
    name TEXT PRIMARY KEY, version TEXT, made REAL, expires REAL, seen REAL, succeeded REAL, failures INTEGER NOT NULL,
    retry REAL
) STRICT;
CREATE TABLE requests (
    id INTEGER PRIMARY KEY, at REAL NOT NULL, action TEXT NOT NULL, secret TEXT NOT NULL, reason TEXT NOT NULL
) STRICT;
CREATE TABLE calendars (
    market TEXT PRIMARY KEY, package TEXT NOT NULL, first REAL NOT NULL, until REAL NOT NULL, opens TEXT NOT NULL,
    closes TEXT NOT NULL
) STRICT;
"""

crash_hook: Callable[[str], None] | None = None
"""Called before and after each write, and where else a crash would be worst, for tests that end the process there."""


def reached(point: str) -> None:
    """Come to a point at which tests may end the process."""
    if crash_hook is not None:
        crash_hook(point)


@dataclass
class Record:
    """A rotation as the journal has it. Times are seconds of Unix time."""

    id: str
    secret: str
    kind: str
    step: str
    """The next one, or the one that has begun."""
    state: str = RUNNING
    emergency: bool = False
    reason: str = ""
    """Why, in an emergency."""
    facts: dict[str, str | int | None] = field(default_factory=dict)
    started: float = 0.0
    updated: float = 0.0
    made: float | None = None
    """When the new credential was there."""
    adopted_by: float | None = None
    """When the consumers' grace ends."""
    revoked: float | None = None
    waiting: list[str] = field(default_factory=list)
    """The consumers that were not yet seen on the new version."""
    held: float | None = None
    """Until when its window is closed."""
    error: str = ""
    """Why the last try came no further."""
    alarm: str = ""
    """What somebody must look at."""

    @property
    def open(self) -> bool:
        """Whether there is something left to do."""
        return self.state in OPEN_STATES


@dataclass(frozen=True)
class Known:
    """What was last seen of a secret. Times are in UTC."""

    version: str | None = None
    made: datetime | None = None
    expires: datetime | None = None
    seen: datetime | None = None
    """When its service was asked."""
    succeeded: datetime | None = None
    """When its last rotation ended well."""
    failures: int = 0
    """How many rotations in a row were rolled back."""
    retry: datetime | None = None
    """Not to be tried again before, after a failure."""


@dataclass(frozen=True)
class Request:
    """What somebody asked of the runner that has the journal."""

    id: int
    action: str
    """ROTATE, EMERGENCY or ROLLBACK."""
    secret: str
    reason: str


_COLUMNS = tuple(each.name for each in fields(Record))


def utc(seconds: float | None) -> datetime | None:
    """Return a time of the journal."""
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


def _seconds(time: datetime | None) -> float | None:
    return None if time is None else time.timestamp()


class Journal(Closing):
    """The journal in a file that is made where it is not there, for its owner alone. Threads may share one.

    Several processes may have it open: to look, to ask for something. Only the one in `running()` works on rotations.

    Args:
        path: the file; beside it stand its log (-wal, -shm) and its lock (.lock).

    Raises:
        OSError: it cannot be opened, or written to, here and in every method.
        ValueError: it is something else, or of a later release.
    """

    def __init__(self, path: StrPath) -> None:
        self.path = Path(path)
        self._lock = threading.RLock()
        # SQLite gives the files that it adds the permissions of this one.
        try:
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        except FileNotFoundError:
            raise FileNotFoundError(
                errno.ENOENT,
                "there is no such directory for the journal of rotations: make it, or change `state` of the plan",
                str(self.path.parent),
            ) from None
        self._database = sqlite3.connect(
            self.path, timeout=10.0, isolation_level=None, check_same_thread=False
        )
        try:
            with self._errors():
                self._prepare()
        except BaseException:
            self._database.close()
            raise

    def _prepare(self) -> None:
        # FULL: what is written is on the disk before the step that it announces begins.
        self._database.execute("PRAGMA synchronous = FULL")
        try:
            identity = self._database.execute("PRAGMA application_id").fetchone()[0]
            if identity == 0 and not self._database.execute("PRAGMA schema_version").fetchone()[0]:
                self._database.execute("PRAGMA journal_mode = WAL")
                self._create()
                identity = _APPLICATION_ID
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise
            identity = 0
        if identity != _APPLICATION_ID:
            raise ValueError(f"{self.path} is no journal of rotations")
        version = self._database.execute("PRAGMA user_version").fetchone()[0]
        if version != _VERSION:
            raise ValueError(
                f"the journal {self.path} is of another release of tapeseal ({version}, this one writes {_VERSION})"
            )

    def _create(self) -> None:
        self._database.execute("BEGIN IMMEDIATE")
        # Another process may have been first.
        if not self._database.execute("PRAGMA application_id").fetchone()[0]:
            for statement in _SCHEMA.split(";"):
                self._database.execute(statement)
            self._database.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
            self._database.execute(f"PRAGMA user_version = {_VERSION}")
        self._database.execute("COMMIT")

    def close(self) -> None:
        """Close it; closing again does nothing."""
        with self._lock:
            self._database.close()

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Be the one that works on rotations, together with the commands that are started meanwhile.

        Where this process is killed, the command that it was at goes on: nobody else is the one until that has ended.

        Raises:
            BlockingIOError: another process, or another Journal of this one, is.
        """
        fd = os.open(f"{self.path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise BlockingIOError(
                    error.errno,
                    "another runner has the journal, or a command of one that was killed",
                    str(self.path),
                ) from None
            with commands.keep_open(fd):
                yield
            # Also for what commands have left running.
            fcntl.flock(fd, fcntl.LOCK_UN)
        finally:
            os.close(fd)

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise OSError(
                errno.EIO, f"the journal cannot be used: {error}", str(self.path)
            ) from None

    @contextlib.contextmanager
    def _writing(self, what: str) -> Iterator[sqlite3.Connection]:
        reached(f"before {what}")
        with self._lock, self._errors():
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield self._database
                self._database.execute("COMMIT")
            except BaseException:
                if self._database.in_transaction:
                    self._database.execute("ROLLBACK")
                raise
        reached(f"after {what}")

    def _read(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        with self._lock, self._errors():
            return self._database.execute(query, values).fetchall()

    # Rotations

    def begin(self, record: Record) -> None:
        """Note a new rotation."""
        with self._writing("begin") as database:
            record.updated = record.started
            names = ", ".join(_COLUMNS)
            marks = ", ".join("?" * len(_COLUMNS))
            database.execute(f"INSERT INTO rotations ({names}) VALUES ({marks})", _row(record))

    def write(
        self,
        record: Record,
        event: str,
        *,
        step: str,
        now: float,
        detail: str = "",
        known: Known | None = None,
    ) -> None:
        """Note how far a rotation has come, and the event that it is for.

        Args:
            record: the rotation.
            event: "begin", "end" or "fail" of a step, and what else is worth a line.
            step: which.
            now: the present.
            detail: more about it.
            known: what is now known of the secret.
        """
        record.updated = now
        with self._writing(f"{step} {event}") as database:
            names = ", ".join(f"{name} = ?" for name in _COLUMNS[1:])
            database.execute(
                f"UPDATE rotations SET {names} WHERE id = ?", (*_row(record)[1:], record.id)
            )
            database.execute(
                "INSERT INTO events VALUES (?, ?, ?, ?, ?)", (record.id, now, step, event, detail)
            )
            if known is not None:
                _note(database, {record.secret: known})

    def records(self, *, open_only: bool = False) -> dict[str, Record]:
        """Return the latest rotation of each secret, or the open ones."""
        where = "rowid IN (SELECT max(rowid) FROM rotations GROUP BY secret)"
        if open_only:
            # As the index has it, so that it serves here.
            where = "state IN ('running', 'waiting', 'monitoring', 'rolling back')"
        rows = self._read(f"SELECT {', '.join(_COLUMNS)} FROM rotations WHERE {where}")
        return {row[1]: _record(row) for row in rows}

    def last(self, secret: str) -> Record | None:
        """Return the latest rotation of a secret."""
        rows = self._read(
            f"SELECT {', '.join(_COLUMNS)} FROM rotations WHERE secret = ?"
            " ORDER BY rowid DESC LIMIT 1",
            secret,
        )
        return _record(rows[0]) if rows else None

    def begun(self, rotation: str) -> set[str]:
        """Return the steps of a rotation that have begun."""
        return {
            row[0]
            for row in self._read(
                "SELECT DISTINCT step FROM events WHERE rotation = ? AND event = 'begin'", rotation
            )
        }

    def events(self, rotation: str) -> list[tuple[float, str, str, str]]:
        """Return time, step, event and detail of all that happened to a rotation."""
        rows = self._read(
            "SELECT at, step, event, detail FROM events WHERE rotation = ? ORDER BY rowid", rotation
        )
        return [(at, step, event, detail) for at, step, event, detail in rows]

    # Secrets

    def known(self, secret: str | None = None) -> dict[str, Known]:
        """Return what was last seen of a secret; None: of each of them."""
        rows = self._read(
            "SELECT name, version, made, expires, seen, succeeded, failures, retry FROM secrets"
            " WHERE ? IS NULL OR name = ?",
            secret,
            secret,
        )
        return {
            name: Known(
                version, utc(made), utc(expires), utc(seen), utc(succeeded), failures, utc(retry)
            )
            for name, version, made, expires, seen, succeeded, failures, retry in rows
        }

    def note(self, secrets: dict[str, Known], before: dict[str, Known] | None = None) -> None:
        """Note what was seen of secrets, but not of those of which more was noted since `before` was read."""
        with self._writing("secrets") as database:
            now = self.known()
            _note(
                database,
                {
                    name: each
                    for name, each in secrets.items()
                    if before is None or now.get(name) == before.get(name)
                },
            )

    # Requests

    def ask(self, action: str, secret: str, reason: str, at: float) -> Request:
        """Leave a request for the runner, to be taken up at a time, or now."""
        with self._writing("request") as database:
            made = database.execute(
                "INSERT INTO requests (at, action, secret, reason) VALUES (?, ?, ?, ?)",
                (at, action, secret, reason),
            )
            return Request(int(made.lastrowid or 0), action, secret, reason)

    def requests(self, now: float) -> list[Request]:
        """Return the requests that are to be taken up by now, the oldest first."""
        rows = self._read(
            "SELECT id, action, secret, reason FROM requests WHERE at <= ? OR at > ? ORDER BY id",
            now,
            # What is for so much later was left by a clock that has been put right since.
            now + _LONGEST_WAIT,
        )
        return [Request(*row) for row in rows]

    def answer(self, request: Request) -> None:
        """Take a request off the list."""
        with self._writing("answer") as database:
            database.execute("DELETE FROM requests WHERE id = ?", (request.id,))

    # Calendars

    def calendar(self, market: str, package: str, first: float) -> Sessions | None:
        """Return the sessions of a market that this release of exchange_calendars gave, if they start early enough."""
        rows = self._read(
            "SELECT opens, closes, until FROM calendars WHERE market = ? AND package = ? AND first <= ?",
            market,
            package,
            first,
        )
        if not rows:
            return None
        opens, closes, until = rows[0]
        return Sessions(json.loads(opens), json.loads(closes), until)

    def keep_calendar(self, market: str, package: str, first: float, sessions: Sessions) -> None:
        """Keep the sessions of a market."""
        texts = json.dumps(sessions.opens), json.dumps(sessions.closes)
        with self._writing("calendar") as database:
            database.execute(
                "INSERT OR REPLACE INTO calendars VALUES (?, ?, ?, ?, ?, ?)",
                (market, package, first, sessions.until, *texts),
            )


def _note(database: sqlite3.Connection, secrets: dict[str, Known]) -> None:
    database.executemany(
        "INSERT OR REPLACE INTO secrets VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        [
            (
                name,
                known.version,
                _seconds(known.made),
                _seconds(known.expires),
                _seconds(known.seen),
                _seconds(known.succeeded),
                known.failures,
                _seconds(known.retry),
            )
            for name, known in secrets.items()
        ],
    )


def _row(record: Record) -> tuple[Any, ...]:
    values = []
    for name in _COLUMNS:
        value = getattr(record, name)
        if name in ("facts", "waiting"):
            value = json.dumps(value)
        values.append(int(value) if isinstance(value, bool) else value)
    return tuple(values)


def _record(row: tuple[Any, ...]) -> Record:
    values = dict(zip(_COLUMNS, row, strict=True))
    values["emergency"] = bool(values["emergency"])
    values["facts"], values["waiting"] = json.loads(values["facts"]), json.loads(values["waiting"])
    return Record(**values)
