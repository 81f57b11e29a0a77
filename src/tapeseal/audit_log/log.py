"""Writing the audit log: one chain of entries, whatever processes write it and whenever they die."""

import calendar
import collections
import contextlib
import errno
import fcntl
import functools
import hashlib
import json
import logging
import os
import pwd
import random
import re
import secrets
import socket
import stat
import sys
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from json.encoder import encode_basestring_ascii as quoted
from pathlib import Path
from typing import NamedTuple

from tapeseal import files
from tapeseal._core import file_state, process_epoch
from tapeseal.audit import active, operation, stop
from tapeseal.audit_log import chain
from tapeseal.audit_log.anchors import AnchorSchedule, LogAnchor
from tapeseal.audit_log.chain import ChainKey, Head, LogHeader
from tapeseal.audit_log.sinks import Sink, SinkThread, sink
from tapeseal.closing import Closing
from tapeseal.datakey import Keyring
from tapeseal.errors import AuditError, ForkError, ServiceUnavailableError, TapesealError
from tapeseal.files import StrPath
from tapeseal.keyrings import keyring as keyring_of
from tapeseal.layout import Recipient

logger = logging.getLogger("tapeseal.audit")

LOCK_SECONDS = 10.0
"""How long an entry waits for another process that holds the log."""
MAX_UNWRITTEN = 10_000
"""Entries that are kept while the log cannot take them."""

# Of subjects and details; what is longer is cut, and says so.
_MAX_TEXT = 1024
# Characters of all details; those of one entry that are more are dropped, and it says so.
_MAX_DETAILS = 16384
_FIRST_PAUSE, _LONGEST_PAUSE = 20e-6, 10e-3
_COMPACT = json.JSONEncoder(separators=(",", ":"))


def head_path(path: StrPath) -> str:
    """Return the name of the head of a log."""
    return f"{os.fspath(path)}.head"


def file_path(path: StrPath, number: int) -> str:
    """Return the name of an earlier file of a log."""
    return f"{os.fspath(path)}.{number:06d}"


def earlier_files(path: StrPath) -> list[tuple[int, str]]:
    """Return number and name of each earlier file of a log that stands beside it, in their order."""
    directory, base = os.path.split(os.path.abspath(path))
    pattern = re.compile(rf"{re.escape(base)}\.([0-9]{{6,}})")
    return sorted(
        (int(match[1]), os.path.join(directory, name))
        for name in os.listdir(directory)
        if (match := pattern.fullmatch(name))
    )


def create_log(
    path: StrPath,
    *,
    keyring: Keyring,
    roll_size: int | None = None,
    roll_seconds: int | None = None,
    mode: int = 0o600,
) -> str:
    """Make a new, empty audit log with its head, durably, and return its id in hexadecimal digits.

    Args:
        path: where there is nothing yet.
        keyring: makes and wraps the log's key; whoever is to write or verify the log must be able to unwrap it.
        roll_size: begin the next file when one has so many bytes; None: never by size.
        roll_seconds: begin the next file when the time, in seconds since 1970 in UTC, passes a multiple of this: 86400
            begins one each day; None: never by time.
        mode: permission bits; 0o660 lets the users of a group share the log.

    Raises:
        FileExistsError: something stands at the path, or where its head or earlier files do; it is left as it is.
        ValueError: a limit below 1, or a mode that lets everybody in.
        KeyUnavailableError: the keyring could not make a key.
    """
    name = os.fspath(path)
    if (1 if roll_size is None else roll_size) < 1 or (
        1 if roll_seconds is None else roll_seconds
    ) < 1:
        raise ValueError("roll_size and roll_seconds are 1 or more")
    if mode & ~0o660 or mode & 0o600 != 0o600:
        raise ValueError("an audit log is its owner's alone, or also its group's: 0o600 to 0o660")
    for each in (name, head_path(name), f"{name}.new", *(old for _, old in earlier_files(name))):
        # What is left of a log whose file was taken away is evidence.
        if os.path.lexists(each):
            raise FileExistsError(errno.EEXIST, "the file exists", each)
    log_id = secrets.token_bytes(16)
    key, recipients = chain.new_key(keyring, log_id)
    with contextlib.closing(key):
        header, line = chain.first_header(log_id, roll_size, roll_seconds, recipients).sealed(key)
        head = Head(1, 0, header.size, header.mac)
        # The head first: a log without one is a log of which somebody took it away.
        with files.new_file(head_path(name), mode, replace=False) as fd:
            os.fchmod(fd, mode)
            files.write_all(fd, chain.build_head(log_id, head, key))
            os.fsync(fd)
        try:
            with files.new_file(name, mode, replace=False) as fd:
                os.fchmod(fd, mode)
                files.write_all(fd, line)
                os.fsync(fd)
        except BaseException:
            os.unlink(head_path(name))
            raise
    files.sync_directory(name)
    return log_id.hex()


class _Item:
    """An entry on its way into the log."""

    __slots__ = ("done", "error", "text")

    def __init__(self, text: bytes) -> None:
        self.text = text
        """The line from the comma behind its number to before its MAC."""
        self.done = False
        self.error: Exception | None = None


class _Writing:
    """Makes a thread the one that writes; it waits not for ever, for the key may come from a slow service."""

    __slots__ = ("_lock", "_path")

    def __init__(self, lock: threading.Lock, path: str) -> None:
        self._lock, self._path = lock, path

    def __enter__(self) -> None:
        if not self._lock.acquire(timeout=2 * LOCK_SECONDS):
            raise AuditError(
                f"another thread has held the audit log {self._path} for {2 * LOCK_SECONDS:g} seconds"
            )

    def __exit__(self, *error: object) -> None:
        self._lock.release()


_Facts = dict[str, str | int]
_NewKey = tuple[ChainKey, list[Recipient]]


class _Note(NamedTuple):
    """What a writer found amiss: an entry of the log's own that goes before all others."""

    action: str
    details: _Facts


class AuditLog(Closing):
    """An audit log that is open for entries; `tapeseal.audit.start(log)` has the process's operations go there.

    Threads share it, and any number of processes may write one log at once. An entry is in the file, for every
    reader, when append() returns; it survives the death of the process at any instant, and a power cut as
    `sync_seconds` says. What a crash or somebody else did to the file meanwhile is never mended in silence: it stays
    as evidence, and an entry says what was found.

    Args:
        path: the log, made by create_log() or `tapeseal audit create`.
        keyring: unwraps the log's key: a keyring, or the URI of one or several. By a URI a process that was forked
            opens the log again for itself; with a keyring its entries are refused.
        identity: who this is, beyond the user of the system: a service, a person.
        sync_seconds: an entry is on the disk (fdatasync) at most so much later; 0: before append() returns; None: when
            the system pleases.
        strict: raise AuditError where an entry cannot be taken, so that nothing goes unrecorded; False: log a warning
            and go on. Either way the entries are kept, 10,000 of them, and written when that is possible again.
        sinks: where each entry goes as well, each a Sink or its name, such as "syslog"; they are tried again and
            again in threads of their own, and what they do never holds up or harms the file.
        anchors: has anchors of the log signed and kept elsewhere.

    Raises:
        FileNotFoundError: there is no log.
        AuditError: the file can be read by everybody, is a link, or is no regular file.
        DamagedError: its header was changed.
        KeyUnavailableError: the keyring has no key for it.
        ValueError: a keyring or a sink that there is not.
    """

    def __init__(
        self,
        path: StrPath,
        *,
        keyring: Keyring | str | Sequence[str],
        identity: str | None = None,
        sync_seconds: float | None = 1.0,
        strict: bool = True,
        sinks: Sequence[Sink | str] = (),
        anchors: AnchorSchedule | None = None,
    ) -> None:
        self.path = os.path.abspath(path)
        # As file_state() takes them.
        self._raw_path = os.fsencode(self.path)
        self._raw_head_path = os.fsencode(head_path(self.path))
        self.strict = strict
        self.identity = identity
        self.sync_seconds = sync_seconds
        self.written = 0
        """Entries that this object wrote."""
        self.lost = 0
        """Entries that were given up, since too many could not be written."""
        self._keyring = keyring
        self._sinks = tuple(sink(each) if isinstance(each, str) else each for each in sinks)
        self._anchors = anchors
        self._closed = False
        self._begin_process()
        with self._as_opener():
            self._open()
        _logs.add(self)

    def _begin_process(self) -> None:
        """Set up what no fork may take over."""
        self._epoch = process_epoch()
        self._queue: collections.deque[_Item] = collections.deque()
        self._unwritten: collections.deque[_Item] = collections.deque()
        self._writer = threading.Lock()
        self._writing = _Writing(self._writer, self.path)
        self._opener = 0
        self._key: ChainKey | None = None
        self._fd = self._head_fd = -1
        self._inode = self._head_inode = (0, 0)
        self._raw_head = b""
        self._head = Head(0, 0, 0, b"")
        self._dirty = threading.Event()
        self._stop = threading.Event()
        self._keeper: threading.Thread | None = None
        self._sink_threads = [SinkThread(sink) for sink in self._sinks]
        self._warned_at = -1e9
        self._failure: Exception | None = None
        # Whether the file does not end with one: a crash cut its last line.
        self._lacks_newline = False

    # What audit.operation calls

    def check(self) -> None:
        """Raise AuditError where entries cannot be written now; those that are waiting are tried first."""
        if self._opener == threading.get_ident():
            return  # It is the unwrapping of the log's own key, with the writer's lock.
        self._be_ready("the operation was not begun")
        if self._failure is not None:
            with self._writing:
                self._write_queue()
                failure = self._failure
            if failure is not None and self.strict:
                raise _refused(self.path, failure, "the operation was not begun")

    def append(self, entry: operation) -> None:
        """Write the entry of an operation.

        Raises:
            AuditError: it could not be written, and the log is strict. The operation is done, and the entry is kept.
        """
        if self._opener == threading.get_ident():
            return  # It is the unwrapping of the log's own key.
        self._be_ready("the operation itself is over")
        if self._key is None:
            self.lost += 1  # In a fork that could not open it.
            return
        item = _Item(self._text(entry))
        self._queue.append(item)
        # Whoever comes first writes what all have queued; a batch is one write.
        with self._writing:
            if not item.done:
                self._write_queue()
        if item.error is not None and self.strict:
            raise _refused(self.path, item.error, "the operation itself is over")

    def close(self) -> None:
        """Write what is waiting, make it durable, and give up the file; closing again does nothing.

        Where it is the process's log, operations go unrecorded from here on. Sinks that are behind get two seconds.
        """
        if self._closed:
            return
        self._closed = True
        _logs.discard(self)
        if active() is self:
            stop()
        if self._epoch != process_epoch():
            return
        self._stop.set()
        self._dirty.set()
        if self._keeper is not None:
            self._keeper.join()
        with self._writer:
            if self._unwritten:
                self._write_queue()
            if self._fd >= 0 and self.sync_seconds is not None:
                with contextlib.suppress(OSError):
                    os.fdatasync(self._fd)
            self._give_up_file()
        for thread in self._sink_threads:
            thread.close(2.0)

    def __repr__(self) -> str:
        return f"<AuditLog {self.path}>"

    def __reduce__(self) -> str:
        raise TypeError("an AuditLog is neither pickled nor copied")

    def sink_failures(self) -> dict[str, tuple[int, int]]:
        """Return for each sink how often it failed, and how many entries were given up for it."""
        return {
            str(thread.sink): (thread.failures, thread.dropped) for thread in self._sink_threads
        }

    # Opening

    @property
    def _is_open(self) -> bool:
        return self._key is not None

    @contextlib.contextmanager
    def _as_opener(self) -> Iterator[None]:
        self._opener = threading.get_ident()
        try:
            yield
        finally:
            self._opener = 0

    def _make_keyring(self) -> Keyring:
        given = self._keyring
        return keyring_of(given) if isinstance(given, str | Sequence) else given

    def _open(self) -> None:
        # Not at the fork: the user's name comes from libc, which another thread may have been in.
        self._who = _who(self.identity)
        fd, header = _open_file(self.path)
        try:
            self._key = chain.unlock(header, self._make_keyring())
            self._adopt(fd, header)
        except BaseException:
            os.close(fd)
            raise
        opened = operation("audit.open", self.path)
        opened.result = "done"
        self._queue.append(_Item(self._text(opened)))

    def _adopt(self, fd: int, header: LogHeader) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        self._fd, self._header = fd, header
        if header.roll_seconds is not None:
            created = time.strptime(header.created, "%Y-%m-%dT%H:%M:%SZ")
            self._period = calendar.timegm(created) // header.roll_seconds
        self._inode = _inode(os.fstat(fd))
        self._raw_head = b""

    def _give_up_file(self) -> None:
        for fd in (self._fd, self._head_fd):
            if fd >= 0:
                os.close(fd)
        self._fd = self._head_fd = -1
        if self._key is not None:
            self._key.close()
            self._key = None

    def _be_ready(self, what: str) -> None:
        """Open the log for a process that was forked; where it cannot be and is strict, raise."""
        if self._epoch != process_epoch():
            _after_fork_of(self)
        if self._key is not None or self._opener == threading.get_ident():
            return
        if self._closed:
            raise AuditError(f"the audit log {self.path} is closed; {what}")
        with self._writing:
            if self._is_open:
                return
            if not isinstance(self._keyring, str | Sequence):
                said = (
                    f"the audit log {self.path} belongs to the process that opened it: open it in the fork, "
                    "or give it its keyring as a URI"
                )
                if self.strict:
                    raise ForkError(said)
                self._warn(said)
                return
            for sink in self._sinks:
                sink.close()  # What it has open is the parent's.
            try:
                with self._as_opener():
                    self._open()
            except (TapesealError, OSError, ValueError) as error:
                self._warn(f"a fork could not open it: {error}")
                if self.strict:
                    raise _refused(self.path, error, what) from None

    # Text

    def _text(self, entry: operation) -> bytes:
        text = (
            f',"time":"{_time_text()}",{self._who},"action":{_quoted(entry.action)}'
            f',"subject":{_quoted(entry.subject)}'
        )
        if entry.version is not None:
            text += f',"version":{_value(entry.version)}'
        text += f',"result":{_quoted(str(entry.result))},"seconds":{entry.seconds:.6f}'
        if entry.details:
            details = ",".join(
                f"{_quoted(name)}:{_value(value)}" for name, value in entry.details.items()
            )
            if len(details) > _MAX_DETAILS:
                details = f'"dropped":{len(entry.details)}'
            text += f',"details":{{{details}}}'
        return text.encode()

    def _note_text(self, note: _Note) -> bytes:
        entry = operation(note.action, self.path)
        entry.result = "done"
        entry.details.update(note.details)
        return self._text(entry)

    # Writing

    def _write_queue(self) -> None:
        """Write what waits, in its order; with the writer's lock."""
        items = [*self._unwritten]
        self._unwritten.clear()
        while self._queue:
            items.append(self._queue.popleft())
        try:
            lines = self._write(items)
        except (OSError, TapesealError) as error:
            self._keep_waiting(items, error)
            self._warn(f"it takes no entries: {error}; {len(self._unwritten)} are waiting")
            return
        except BaseException:  # An interrupt: the next one writes what this one did not.
            self._keep_waiting(items, None)
            raise
        self._failure = None
        self.written += len(items)
        for thread in self._sink_threads:
            thread.put(lines)
        if self._keeper is None and (self.sync_seconds or self._anchors is not None):
            self._keeper = threading.Thread(target=self._keep, name="tapeseal audit", daemon=True)
            self._keeper.start()
        if not self._dirty.is_set():
            self._dirty.set()

    def _keep_waiting(self, items: Sequence[_Item], error: Exception | None) -> None:
        """Keep the items that were not written for the next time."""
        self._failure = error
        self._raw_head = b""  # So that what was found amiss is found again.
        for item in items:
            if not item.done:
                item.error = error
                self._unwritten.append(item)
        while len(self._unwritten) > MAX_UNWRITTEN:
            self._unwritten.popleft()
            self.lost += 1

    def _warn(self, text: str) -> None:
        """Tell Python's logging, once a minute at most."""
        now = time.monotonic()
        if now - self._warned_at >= 60:
            self._warned_at = now
            logger.error("%s: %s", self.path, text)

    def _write(self, items: Sequence[_Item]) -> list[bytes]:
        """Append the lines of items, and before them what was found amiss; all or none of them."""
        try:
            self._lock()
            notes = self._look()
            # What was found amiss is said in the file that it is in.
            if not notes and not self._lacks_newline and self._is_roll_due():
                try:
                    self._roll(None)
                except (OSError, AuditError) as error:
                    # Better a file that is too large than no entry.
                    self._warn(f"it goes on in its present file: {error}")
            return self._add(notes, items)
        finally:
            self._unlock()

    def _add(self, notes: Sequence[_Note], items: Sequence[_Item]) -> list[bytes]:
        """Append the lines to the file as it was seen, and make the head say so; with the lock."""
        texts = [self._note_text(note) for note in notes]
        if self.lost and items:
            texts.append(self._note_text(_Note("audit.lost", {"entries": self.lost})))
        texts += [item.text for item in items]
        if not texts and not self._lacks_newline:
            return []
        key = self._key
        assert key is not None
        file, sequence, size, mac = self._head
        lines = []
        for text in texts:
            sequence += 1
            body = b'{"sequence":%d%b' % (sequence, text)
            mac = key.entry(mac, body)
            lines.append(chain.build_line(body, mac))
        data = b"".join(lines)
        if self._lacks_newline:
            data = b"\n" + data
        try:
            files.write_all(self._fd, data)
        except OSError:
            # Our own bytes alone: the lock is ours.
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, size)
            raise
        for item in items:
            item.done, item.error = True, None
        self._lacks_newline = False
        self._write_head(Head(file, sequence, size + len(data), mac))
        if self.sync_seconds == 0:
            try:
                os.fdatasync(self._fd)
            except OSError as error:
                for item in items:
                    item.error = error
                raise
        if items:
            self.lost = 0
        return lines

    def _write_head(self, head: Head) -> None:
        assert self._key is not None
        raw = chain.build_head(self._header.log_id, head, self._key)
        self._head, self._raw_head = head, raw
        # A page is written as a whole or not at all, whenever the process is killed.
        files.pwrite_all(self._head_fd, raw, 0)

    def _lock(self) -> None:
        """Take the head's lock, which all who write the log wait for.

        An interrupt can come when it is there already: _unlock() follows also where this raises.
        """
        while True:
            if self._head_fd < 0:
                self._open_head()
            take_lock(self._head_fd, fcntl.LOCK_EX, self.path)
            try:
                if file_state(self._raw_head_path)[:2] == self._head_inode:
                    return
            except FileNotFoundError:
                pass
            self._unlock()
            os.close(self._head_fd)
            self._head_fd = -1

    def _unlock(self) -> None:
        if self._head_fd >= 0:
            fcntl.flock(self._head_fd, fcntl.LOCK_UN)

    def _open_head(self) -> None:
        """Open the head; where somebody took it away, an empty one, which _look() then finds."""
        name = head_path(self.path)
        mode = stat.S_IMODE(os.fstat(self._fd).st_mode)
        try:
            fd = os.open(
                name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, mode
            )
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
            raise AuditError(f"the head {name} of the audit log is a symbolic link") from None
        try:
            self._head_inode = _inode(_check_status(fd, name))
        except BaseException:
            os.close(fd)
            raise
        self._head_fd = fd
        self._raw_head = b""

    # Looking at what others did

    def _look(self) -> list[_Note]:
        """See what others have added since the last entry of ours, and return what is amiss; with the lock."""
        raw = os.pread(self._head_fd, chain.HEAD_SIZE + 1, 0)
        try:
            state = file_state(self._raw_path)
        except FileNotFoundError:
            _mend_roll(self.path, raw)
            state = file_state(self._raw_path)
        if raw == self._raw_head and raw and state == (*self._inode, self._head.size):
            return []
        known = self._head
        notes = self._look_again(raw, state[:2], state[2])
        if self._head.sequence < known.sequence:
            # Log and head were put back together; what this process saw is gone.
            found: _Facts = {
                "size": self._head.size,
                "expected": known.size,
                "mac": known.mac.hex(),
            }
            self._head = self._head._replace(sequence=known.sequence, mac=known.mac)
            return [_Note("audit.cut", found), *notes]
        return notes

    def _look_again(self, raw: bytes, inode: tuple[int, int], size: int) -> list[_Note]:
        """Look at head and file anew, and take what stands there."""
        if inode != self._inode:
            self._take_next_file()
            size = os.fstat(self._fd).st_size
        assert self._key is not None
        header = self._header
        self._lacks_newline = os.pread(self._fd, 1, max(0, size - 1)) != b"\n"
        start = Head(header.file, header.sequence, header.size, header.mac)
        head = chain.check_head(raw, header.log_id, self._key)
        if head is not None and head.file == header.file:
            if size < head.size:
                self._head = head._replace(size=size)
                found: _Facts = {"size": size, "expected": head.size, "mac": head.mac.hex()}
                return [_Note("audit.cut", found)]
            return self._scan(head, size)
        if head is not None and (head.sequence, head.mac) == (header.sequence, header.previous):
            return self._scan(start, size)  # Another writer died between the new file and its head.
        parsed = chain.parse_head(raw)
        if (
            head is None
            and parsed is not None
            and (parsed[1].sequence, parsed[1].mac) == (header.sequence, header.previous)
            and self._is_head_before(raw)
        ):
            return self._scan(start, size)  # The same, where the new file has another key.
        if head is not None and head.file > header.file:
            # An older file was put back: the chain goes on from where it was.
            self._head = Head(header.file, head.sequence, size, head.mac)
            found = {"file": header.file, "expected_file": head.file, "mac": head.mac.hex()}
            return [_Note("audit.cut", found)]
        notes = self._scan(start, size)
        state = "missing" if not raw else "forged" if head is None else "old"
        return [_Note("audit.head", {"head": state}), *notes]

    def _is_head_before(self, raw: bytes) -> bool:
        """Whether a head is an authentic one of the file before, which has another key."""
        try:
            fd = os.open(
                file_path(self.path, self._header.file - 1),
                os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK,
            )
            try:
                header = read_header(fd)
            finally:
                os.close(fd)
            with (
                self._as_opener(),
                contextlib.closing(chain.unlock(header, self._make_keyring())) as key,
            ):
                head = chain.check_head(raw, self._header.log_id, key)
        except ServiceUnavailableError:
            raise  # It can be told later.
        except (TapesealError, OSError):
            return False
        return head is not None and head.file == header.file == self._header.file - 1

    def _scan(self, start: Head, size: int) -> list[_Note]:
        """Take the lines that stand behind a head which their writer did not get to update."""
        assert self._key is not None
        at, sequence, mac = start.size, start.sequence, start.mac
        rest = b""
        while at < size:
            block = files.pread_exact(self._fd, 1 << 20, at + len(rest))
            lines = (rest + block).split(b"\n")
            # Of the last line the newline alone may be missing.
            rest = b"" if len(block) < 1 << 20 else lines.pop()
            for line in lines:
                split = chain.split_line(line)
                if (
                    split is None
                    or chain.sequence_of(line) != sequence + 1
                    or self._key.entry(mac, split[0]) != split[1]
                ):
                    break
                sequence, mac, at = sequence + 1, split[1], min(size, at + len(line) + 1)
            else:
                if len(rest) <= chain.MAX_LINE_SIZE and block:
                    continue
            break
        self._head = Head(self._header.file, sequence, size, mac)
        if at == size:
            return []
        digest = digest_of(self._fd, at, size)
        found: _Facts = {"offset": at, "bytes": size - at, "sha256": digest}
        return [_Note("audit.torn", found)]

    # Files

    def _take_next_file(self) -> None:
        """Open the file that now has the log's name."""
        fd, header = _open_file(self.path)
        try:
            assert self._key is not None
            if header.log_id != self._header.log_id:
                raise AuditError(
                    f"another audit log was put in the place of {self.path}: it is {header.log_id.hex()}, and "
                    f"this one {self._header.log_id.hex()}"
                )
            if header.recipients == self._header.recipients:
                if self._key.header(header.body) != header.mac:
                    raise AuditError(f"the header of {self.path} is forged: its MAC is wrong")
            else:
                self._change_key(header)
            self._adopt(fd, header)
        except BaseException:
            os.close(fd)
            raise

    def _change_key(self, header: LogHeader) -> None:
        with self._as_opener():
            key = chain.unlock(header, self._make_keyring())
        old, self._key = self._key, key
        if old is not None:
            old.close()

    def _is_roll_due(self) -> bool:
        header = self._header
        if self._head.sequence == header.sequence:
            return False  # It holds nothing yet.
        if header.roll_size is not None and self._head.size >= header.roll_size:
            return True
        if header.roll_seconds is None:
            return False
        return int(time.time()) // header.roll_seconds != self._period

    def roll(self, to: Keyring | None = None) -> str:
        """Begin the log's next file now, and return the name that the old one has from here on.

        Args:
            to: wraps a new key for the new file; None: the key stays. Whoever writes the log must be able to unwrap
                it too.

        Raises:
            AuditError, OSError: it could not be; the log goes on in its present file.
            KeyUnavailableError: the keyring could not make a key.
        """
        self._be_ready("it was not rolled")
        with self._writing:
            made: _NewKey | None = None
            if to is not None:
                # Not with the lock: it may take a service, or be recorded in this very log by the process's own object.
                with self._as_opener():
                    made = chain.new_key(to, self._header.log_id)
            try:
                while True:
                    # Whatever a crash or somebody left behind is in the old file.
                    self._write([])
                    try:
                        self._lock()
                        if not self._look():
                            return self._roll(made)
                        self._raw_head = b""
                    finally:
                        self._unlock()
            finally:
                if made is not None and made[0] is not self._key:
                    made[0].close()

    def _roll(self, made: _NewKey | None) -> str:
        """Begin the next file; with the lock. A crash leaves the old one or the new one under the log's name."""
        assert self._key is not None
        # Another writer may have died before it did: the end of the old file is what the head is known by.
        self._write_head(self._head)
        key, recipients = made or (self._key, self._header.recipients)
        before = self._head
        header, line = chain.next_header(self._header, before, recipients).sealed(key)
        old = file_path(self.path, self._header.file)
        if os.path.lexists(old):
            raise AuditError(f"{old} stands where the audit log's present file is to go")
        new = Path(f"{self.path}.new")
        new.unlink(missing_ok=True)
        os.fdatasync(self._fd)
        status = os.fstat(self._fd)
        with contextlib.ExitStack() as stack:
            fd = os.open(
                new, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600
            )
            stack.callback(os.close, fd)
            with contextlib.suppress(PermissionError):
                os.fchown(fd, -1, status.st_gid)
            os.fchmod(fd, stat.S_IMODE(status.st_mode))
            files.write_all(fd, line)
            os.fsync(fd)
            os.rename(self.path, old)
            os.rename(new, self.path)
            stack.pop_all()
        files.sync_directory(self.path)
        if key is not self._key:
            self._key.close()
            self._key = key
        self._adopt(fd, header)
        self._write_head(Head(header.file, header.sequence, header.size, header.mac))
        return old

    # In the background

    def _keep(self) -> None:
        """Make entries durable, and have anchors signed, when it is time."""
        tried, anchored = time.monotonic(), 0
        while not self._stop.is_set():
            self._dirty.wait(None if self._anchors is None else min(1.0, self._anchors.seconds))
            if self.sync_seconds:
                self._stop.wait(self.sync_seconds)
            if self._dirty.is_set() and not self._stop.is_set():
                self._dirty.clear()
                if self.sync_seconds:
                    self._sync()
            if self._anchors is not None and not self._stop.is_set():
                now = time.monotonic()
                more = self.written - anchored
                if more and (now - tried >= self._anchors.seconds or more >= self._anchors.entries):
                    tried = now
                    if self._anchor(self._anchors):
                        # What the signature itself left in the log asks for no other one.
                        anchored = self.written

    def _sync(self) -> None:
        with self._writer:
            fd = os.dup(self._fd) if self._fd >= 0 else -1
        if fd < 0:
            return
        try:
            os.fdatasync(fd)
        except OSError as error:
            # The kernel may have dropped what it could not write; what is in the file now says so.
            logger.error("%s could not be made durable: %s", self.path, error.strerror)
            note = _Note("audit.unsynced", {"last": self._head.sequence})
            self._queue.append(_Item(self._note_text(note)))
        finally:
            os.close(fd)

    def _anchor(self, schedule: AnchorSchedule) -> bool:
        try:
            schedule.keep(self.anchor().signed(schedule.signer))
            return True
        except Exception as error:  # Whatever it is, the next time may go well.
            logger.warning("no anchor of %s: %s", self.path, type(error).__name__)
            with contextlib.suppress(AuditError), operation("audit.anchor", self.path) as entry:
                entry.result = type(error).__name__
            return False

    def anchor(self) -> LogAnchor:
        """Return how far the log has come, to be signed and kept elsewhere."""
        self._be_ready("no anchor was made")
        with self._writing:
            # Whatever a crash or somebody left behind is in the log first.
            self._write([])
            return LogAnchor(
                self._header.log_id, self._head.file, self._head.sequence, self._head.mac
            )


def take_lock(fd: int, kind: int, path: str) -> None:
    """Take the lock of a log's head, LOCK_EX or LOCK_SH of fcntl, and wait for it for a while.

    Not asleep in the system: of all who sleep there each is woken when the lock is given up, and that has no deadline.

    Raises:
        AuditError: somebody has held it for too long.
    """
    end = 0.0
    pause = _FIRST_PAUSE
    while True:
        try:
            fcntl.flock(fd, kind | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            now = time.monotonic()
            end = end or now + LOCK_SECONDS
        if now > end:
            raise AuditError(
                f"another process has held the audit log {path} for {LOCK_SECONDS:g} seconds"
            )
        time.sleep(pause * random.uniform(0.5, 1.0))
        pause = min(8 * pause, _LONGEST_PAUSE)


def _refused(path: str, error: Exception, what: str) -> AuditError:
    said = (
        error.strerror or type(error).__name__
        if isinstance(error, OSError) and not isinstance(error, TapesealError)
        else str(error)
    )
    return AuditError(f"the audit log {path} takes no entry: {said}; {what}")


def _open_file(path: str) -> tuple[int, LogHeader]:
    """Open a file of a log for appending, and read its header."""
    flags = os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        if not os.path.lexists(path):
            with contextlib.suppress(FileNotFoundError), open(head_path(path), "r+b", 0) as head:
                take_lock(head.fileno(), fcntl.LOCK_EX, path)
                if not os.path.lexists(path):
                    _mend_roll(path, head.read(chain.HEAD_SIZE + 1))
        fd = os.open(path, flags)
    except FileNotFoundError:
        raise FileNotFoundError(
            errno.ENOENT,
            "there is no audit log; `tapeseal audit create` makes one, and where one was, somebody took it away",
            path,
        ) from None
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise AuditError(f"the audit log {path} is a symbolic link; give the file itself") from None
    try:
        _check_status(fd, path)
        return fd, read_header(fd)
    except BaseException:
        os.close(fd)
        raise


def _mend_roll(path: str, head: bytes) -> None:
    """Give a log its name back where a writer died between the two renamings of a roll; with the lock."""
    parsed = chain.parse_head(head)
    if parsed is not None and os.path.exists(f"{path}.new"):
        old = file_path(path, parsed[1].file)
        with contextlib.suppress(FileNotFoundError):
            os.rename(old, path)


def read_header(fd: int) -> LogHeader:
    """Read the first line of a file of a log; nothing of it is authenticated.

    Raises:
        DamagedError: it is no header.
    """
    start = files.pread_exact(fd, chain.MAX_HEADER_SIZE, 0)
    return chain.parse_header(start[: start.find(b"\n") + 1])


def digest_of(fd: int, start: int, stop: int) -> str:
    """Return the SHA-256 of some bytes of a file, however many somebody put there."""
    digest = hashlib.sha256()
    for offset in range(start, stop, 1 << 20):
        digest.update(files.pread_exact(fd, min(1 << 20, stop - offset), offset))
    return digest.hexdigest()


def _check_status(fd: int, path: str) -> os.stat_result:
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        raise AuditError(f"{path} is not a regular file, as an audit log is")
    if status.st_nlink > 1:
        raise AuditError(f"{path} has another name (a hard link), by which it can be changed")
    if status.st_mode & 0o007:
        raise AuditError(
            f"{path} is open to everybody (mode {stat.S_IMODE(status.st_mode):04o}); run: chmod o-rwx {path}"
        )
    return status


def _inode(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


# Who


def _who(identity: str | None) -> str:
    """Return the members of an entry that say who this process is."""
    uid = os.geteuid()
    who: dict[str, str | int] = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "user": _user_name(uid),
    }
    login = _login_name(uid)
    if login is not None:
        who["login"] = _cut(login)
    if identity:
        who["identity"] = _cut(identity)
    who["program"] = _cut(program())
    return _COMPACT.encode(who)[1:-1]


def program() -> str:
    """Return the name of what runs, without its arguments: one of them may be anything."""
    name = sys.argv[0] if sys.argv else ""
    base = os.path.basename(name)
    if base == "__main__.py":
        base = os.path.basename(os.path.dirname(name))
    return {"": "python", "-c": "python -c"}.get(base, base)


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _login_name(uid: int) -> str | None:
    """Return who logged in, where that is another one than who this now runs as."""
    try:
        # The kernel's audit keeps it through su and sudo, and nobody without privilege changes it.
        login = int(Path("/proc/self/loginuid").read_text())
    except (OSError, ValueError):
        login = 0xFFFFFFFF
    if login != 0xFFFFFFFF:
        return _user_name(login) if login != uid else None
    return os.environ.get("SUDO_USER")


# Values


def _cut(text: str) -> str:
    # A character outside of the basic plane is written as two: so all members of an entry together fit into a line.
    most = _MAX_TEXT if text.isascii() or max(text) <= "\uffff" else _MAX_TEXT // 2
    return text if len(text) <= most else f"{text[:most]}… (+{len(text) - most})"


# The same few stand in most entries.
@functools.lru_cache(256)
def _quoted(text: str) -> str:
    return quoted(_cut(text))


def _value(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, str):
        return _quoted(value)
    if isinstance(value, int):
        return str(int(value))
    return quoted(f"<{type(value).__name__}>")  # Whatever it is, it was not looked at.


_second = (0, "")


def _time_text() -> str:
    global _second
    now = time.time_ns()
    seconds, rest = divmod(now, 1_000_000_000)
    known, text = _second
    if known != seconds:
        text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
        _second = (seconds, text)
    return f"{text}.{rest:09d}Z"


# Forks

_logs: "weakref.WeakSet[AuditLog]" = weakref.WeakSet()


def _after_fork_of(log: AuditLog) -> None:
    # Otherwise a lock of the parent's would last as long as the child has the file open.
    for fd in (log._fd, log._head_fd):
        if fd >= 0:
            with contextlib.suppress(OSError):
                os.close(fd)
    log._begin_process()


def _after_fork() -> None:
    for log in list(_logs):
        _after_fork_of(log)


os.register_at_fork(after_in_child=_after_fork)
