"""Verifying an audit log offline: whatever was changed, removed, moved, added or cut is found."""

import contextlib
import fcntl
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from tapeseal import files
from tapeseal.audit_log import chain
from tapeseal.audit_log.anchors import LogAnchor
from tapeseal.audit_log.chain import ChainKey, Head, LogHeader
from tapeseal.audit_log.log import digest_of, earlier_files, head_path, read_header, take_lock
from tapeseal.body import Anchor
from tapeseal.datakey import Keyring
from tapeseal.errors import DamagedError
from tapeseal.files import StrPath

MAX_PROBLEMS: Final = 10_000
"""Problems that are listed; what follows is not looked at."""

KINDS: Final = (
    "header",
    "changed",
    "removed",
    "reordered",
    "added",
    "cut",
    "head",
    "anchor",
)
"""Kinds of problems: a forged header; an entry that was changed, removed, moved, or never written by the log; entries
missing at the end; a head that is missing or forged; an anchor that the log does not meet."""

_READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
_BLOCK = 1 << 20
_LINE_START = b'{"sequence":'
_TAPE_ANCHOR = b'"anchor":"tapeseal-anchor:'
_OWN = b'"action":"audit.'


class LogProblem(NamedTuple):
    """Something wrong with an audit log."""

    file: str
    line: int
    """In the file, from 1 on; 0: of the file or the log as a whole."""
    kind: str
    """One of KINDS."""
    text: str
    """What is wrong there."""


@dataclass
class LogVerification:
    """What verify_log() found."""

    log_id: str = ""
    """In hexadecimal digits; empty where no header tells it."""
    files: list[str] = field(default_factory=list)
    """The files that were read, in the order of the log."""
    entries: int = 0
    """Entries that are authentic, each in its place or not."""
    unchecked: int = 0
    """Entries that nothing contradicts, but whose predecessor is gone, so that nothing proves them."""
    last: int = 0
    """The number of the last entry."""
    problems: list[LogProblem] = field(default_factory=list)
    """Everything that is wrong, in the order in which it was met."""
    notices: list[LogProblem] = field(default_factory=list)
    """What a crash or a full disk left behind, and the log accounts for."""
    anchors: int = 0
    """Anchors that the log meets."""
    tapes: dict[bytes, "TapeRecord"] = field(default_factory=dict)
    """What it says of tapes, by their ids: the newest of each."""

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


class TapeRecord(NamedTuple):
    """The newest anchor of a tape that a log holds."""

    anchor: Anchor
    path: str
    """Where the tape was."""
    time: str


def verify_log(
    path: StrPath,
    *,
    keyring: Keyring,
    anchors: Iterable[LogAnchor] = (),
    from_file: int = 1,
    each: Callable[[bytes], None] | None = None,
    progress: Callable[[int, int | None], None] | None = None,
) -> LogVerification:
    """Authenticate every entry of an audit log, and go on past what is wrong to list all of it. Writers may go on.

    Args:
        path: the log; its earlier files are found beside it.
        keyring: unwraps its key.
        anchors: of the log, their signatures checked: read_anchors() gives them.
        from_file: the number of the first file that is looked at: what came before is elsewhere, or was examined.
        each: called with the line of every entry that is authentic, without its newline.
        progress: called with the bytes read so far and in all.

    Raises:
        FileNotFoundError: there is no log.
        KeyUnavailableError: the keyring has no key for it.
    """
    checker = _Checker(os.fspath(path), keyring, list(anchors), each, progress)
    with contextlib.ExitStack() as stack:
        checker.run(stack, from_file)
    return checker.found


@dataclass
class _Gap:
    """Entries that do not stand where they belong."""

    first: int
    last: int
    before: bytes | None
    """The MAC of the entry before the first one, where that is known."""
    problem: int
    """Which of the problems says so; -1: none yet."""
    follower: tuple[bytes, bytes, int] | None = None
    """Body, MAC and line of the entry behind the last one."""


class _Line(NamedTuple):
    """A line of a file without its newline."""

    number: int
    offset: int
    text: bytes
    whole: bool
    """Whether a newline follows."""


class _Checker:
    def __init__(
        self,
        path: str,
        keyring: Keyring,
        anchors: list[LogAnchor],
        each: Callable[[bytes], None] | None,
        progress: Callable[[int, int | None], None] | None,
    ) -> None:
        self.found = LogVerification()
        self._path = path
        self._keyring = keyring
        self._anchors = anchors
        self._each = each
        self._progress = progress
        self._done = self._total = 0
        self._header: LogHeader | None = None
        self._key: ChainKey | None = None
        self._file = path
        # What the next line is to have; no MAC: the line before it is gone or not readable.
        self._expected = 1
        self._before: list[bytes] = []
        # Whether the line before it was changed, and maybe its MAC too.
        self._is_doubtful = False
        self._gaps: list[_Gap] = []
        # Entries that were met too early, by their numbers: line, body and MAC.
        self._early: dict[int, tuple[_Line, bytes, bytes]] = {}
        self._wanted: dict[int, list[LogAnchor]] = {}
        self._head: Head | None = None
        self._is_head_met = False
        # The number before the first entry that is looked at.
        self._first = 0

    # The files

    def run(self, stack: contextlib.ExitStack, from_file: int) -> None:
        raw, earlier, present = self._snapshot(stack, from_file)
        self._total = sum(os.path.getsize(name) for name in earlier)
        if present >= 0:
            self._total += os.fstat(present).st_size
        number = from_file
        for name in [*earlier, self._path] if present >= 0 else earlier:
            self._file = name
            self.found.files.append(name)
            # One at a time: there may be more of them than descriptors. What was rolled changes no more.
            fd = present if name == self._path else os.open(name, _READ)
            try:
                header = self._take_header(fd, number, raw)
                if header is None and self._key is None:
                    return
                number = number if header is None else header.file
                self._check_lines(fd)
                number += 1
            finally:
                if fd != present:
                    os.close(fd)
        self._file = self._path
        self._settle_early()
        self._check_head(raw)
        self._check_anchors()
        if self._key is not None:
            self._key.close()

    def _snapshot(
        self, stack: contextlib.ExitStack, from_file: int
    ) -> tuple[bytes, list[str], int]:
        """Look at the log while no writer is at work.

        Returns:
            Its head, the names of its earlier files, and a descriptor of its present one, -1 where that is gone.
        """
        raw = b""
        with contextlib.ExitStack() as locked:
            with contextlib.suppress(FileNotFoundError):
                head = os.open(head_path(self._path), _READ)
                locked.callback(os.close, head)
                take_lock(head, fcntl.LOCK_SH, self._path)
                if stat.S_ISREG(os.fstat(head).st_mode):
                    raw = files.pread_exact(head, chain.HEAD_SIZE + 1, 0)
            earlier = [name for number, name in earlier_files(self._path) if number >= from_file]
            try:
                present = os.open(self._path, _READ)
                stack.callback(os.close, present)
            except FileNotFoundError:
                if not earlier and not raw:
                    raise
                self._problem(0, "cut", "the present file of the log is gone")
                present = -1
        return raw, earlier, present

    def _take_header(self, fd: int, number: int, raw: bytes) -> LogHeader | None:
        """Authenticate a file's header, and see that it follows the file before."""
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise DamagedError("it is not a regular file", 0)
            header = read_header(fd)
            before = self._header
            if before is not None and header.log_id != before.log_id:
                raise DamagedError("the file is of another log", 0)
            if before is not None and header.recipients == before.recipients:
                assert self._key is not None
                if self._key.header(header.body) != header.mac:
                    raise DamagedError("the header is forged: its MAC is wrong", 0)
            else:
                key = chain.unlock(header, self._keyring)
                if self._key is not None:
                    self._key.close()
                self._key = key
        except DamagedError as error:
            self._problem(1, "header", error.problem)
            return None
        if before is None:
            self.found.log_id = header.log_id.hex()
            if header.file != number:
                self._problem(
                    0,
                    "removed",
                    f"the log begins here with its file {header.file}: entries 1 to {header.sequence} are not here",
                )
            self._begin_at(header)
            self._first = header.sequence
            for anchor in self._anchors:
                self._wanted.setdefault(anchor.sequence, []).append(anchor)
            if header.previous is not None:
                # An anchor of the file before, made when that was at its end.
                self._meet(header.sequence, header.previous)
        elif header.file != number:
            text = f"files {number} to {header.file - 1} are" if header.file > number + 1 else ""
            self._problem(
                0,
                "removed" if header.file > number else "added",
                f"{text or f'file {number} is'} not here: this is file {header.file}",
            )
            self._begin_at(header)
        elif header.sequence != self._expected - 1:
            self._settle_early()
            if header.sequence != self._expected - 1:
                text = f"entries {self._expected} to {header.sequence} at the end of the file before are gone"
                self._problem(0, "cut" if header.sequence >= self._expected else "added", text)
            self._begin_at(header)
        else:
            if self._before and header.previous not in self._before:
                self._problem(
                    1, "changed", "the file before does not end with what this one follows"
                )
            self._begin_at(header)
        self._header = header
        assert self._key is not None
        if self._head is None or self._head.file >= header.file:
            # By the key of the file that it names: who has an older one could have made it.
            self._head = chain.check_head(raw, header.log_id, self._key)
        self._meet(header.sequence, header.mac)
        return header

    def _begin_at(self, header: LogHeader) -> None:
        self._expected = header.sequence + 1
        self._before = [header.mac]

    # The lines

    def _lines(self, fd: int, start: int) -> Iterator[_Line]:
        """Yield the lines of a file from an offset on; of one that is too long its start."""
        status = os.fstat(fd)
        size = status.st_size if stat.S_ISREG(status.st_mode) else 0
        number, at, read, rest = (2 if start else 1), start, start, b""
        while read < size:
            block = files.pread_exact(fd, min(_BLOCK, size - read), read)
            if not block:
                break
            read += len(block)
            self._done += len(block)
            if self._progress is not None:
                self._progress(min(self._done, self._total), self._total)
            lines = (rest + block).split(b"\n")
            rest = lines.pop()
            for line in lines:
                yield _Line(number, at, line, True)
                number += 1
                at += len(line) + 1
            while len(rest) > 4 * chain.MAX_HEADER_SIZE:
                # No line of ours is so long: the rest up to its newline is passed over.
                long, skipped = rest, len(rest)
                rest = b""
                while read < size:
                    block = files.pread_exact(fd, min(_BLOCK, size - read), read)
                    if not block:
                        break
                    read += len(block)
                    end = block.find(b"\n")
                    skipped += len(block) if end < 0 else end
                    if end >= 0:
                        rest = block[end + 1 :]
                        break
                yield _Line(number, at, long[:200], True)
                number += 1
                at += skipped + 1
                *more, rest = rest.split(b"\n")
                for line in more:
                    yield _Line(number, at, line, True)
                    number += 1
                    at += len(line) + 1
        if rest:
            yield _Line(number, at, rest, False)

    def _check_lines(self, fd: int) -> None:
        header = self._header
        key, each, found = self._key, self._each, self.found
        assert header is not None
        assert key is not None
        head = self._head.sequence if self._head is not None else -1
        wanted = self._wanted
        lines = self._lines(fd, header.size)
        line = next(lines, None)
        while line is not None:
            following = next(lines, None)
            text = line.text
            body = text[: -chain.TAIL_SIZE]
            if len(self._before) == 1 and line.whole:
                # The usual case, in few steps.
                mac = key.entry(self._before[0], body)
                if text == b'%b,"mac":"%b"}' % (body, mac.hex().encode()) and text.startswith(
                    b'{"sequence":%d,' % self._expected
                ):
                    if self._expected == head or self._expected in wanted:
                        self._meet(self._expected, mac)
                    self._expected += 1
                    self._before[0] = mac
                    found.entries += 1
                    if each is not None:
                        each(text)
                    if _OWN in text or _TAPE_ANCHOR in text:
                        self._note(line)
                    line = following
                    continue
            self._settle_early(chain.sequence_of(text))
            if len(found.problems) >= MAX_PROBLEMS:
                self._problem(line.number, "changed", "there is more that is wrong than is listed")
                return
            self._check_line(line, following, fd)
            line = following

    def _check_line(self, line: _Line, following: _Line | None, fd: int) -> None:
        """Look at a line that does not simply follow the one before."""
        split = chain.split_line(line.text) if line.whole or self._is_behind_head(line) else None
        sequence = chain.sequence_of(line.text)
        next_sequence = None if following is None else chain.sequence_of(following.text)
        if split is None or sequence is None or len(line.text) >= chain.MAX_LINE_SIZE:
            self._check_malformed(line, following, next_sequence, fd)
            return
        body, mac = split
        if self._is_cut_note(line, sequence, body, mac):
            return
        if self._follows(self._before, body, mac) and sequence == self._expected:
            self._accept(line, sequence, mac)
        elif sequence == self._expected:
            if not self._before or self._is_doubtful:
                # What would prove it is gone, or changed: that is a problem there, and not here.
                self.found.unchecked += 1
                gap = self._gaps[-1] if self._gaps and self._gaps[-1].last == sequence - 1 else None
                if gap is not None:
                    gap.follower = (body, mac, line.number)
                self._advance(sequence, [mac])
                return
            after = None if following is None else chain.split_line(following.text)
            if (
                next_sequence == sequence
                and after is not None
                and self._follows(self._before, *after)
            ):
                self._problem(line.number, "added", f"a line that says to be entry {sequence}")
                return
            self._problem(line.number, "changed", f"entry {sequence} is not as it was written")
            self._advance(sequence, [mac, *(self._mac(before, body) for before in self._before)])
            self._is_doubtful = True
        elif sequence > self._expected:
            self._check_too_early(line, following, next_sequence, sequence, body, mac)
        else:
            self._check_too_late(line, next_sequence, sequence, body, mac)

    def _check_malformed(
        self, line: _Line, following: _Line | None, next_sequence: int | None, fd: int
    ) -> None:
        if following is None and not line.whole:
            if self._is_behind_head(line):
                self._notice(
                    line.number, "torn", "the last line is not whole: its writer died, or is at it"
                )
                return
            self._problem(line.number, "cut", f"the file ends inside of entry {self._expected}")
            self._advance(self._expected, [])
            return
        if following is not None and next_sequence == self._expected:
            split = chain.split_line(following.text)
            if split is not None and self._follows(self._before, *split):
                if self._is_torn(line, following, fd):
                    self._notice(
                        line.number, "torn", "a line that a crash cut short, kept as it was"
                    )
                else:
                    self._problem(line.number, "added", "a line that the log did not write")
                return
            self._problem(line.number, "added", "a line that the log did not write")
            return
        self._problem(
            line.number, "changed", f"entry {self._expected} is no longer a line of the log"
        )
        guesses = [self._mac(each, line.text[: -chain.TAIL_SIZE]) for each in self._before]
        # Where only the MAC suffered, the next line proves it.
        split = None if following is None else chain.split_line(following.text)
        guesses = [each for each in guesses if split is not None and self._follows([each], *split)]
        self._advance(self._expected, guesses)

    def _is_behind_head(self, line: _Line) -> bool:
        """Whether a line stands where a writer died, or is at it: behind what the head says to be there."""
        head, header = self._head, self._header
        if head is None or header is None or head.file > header.file:
            return False
        return head.file < header.file or line.offset >= head.size

    def _check_too_early(
        self,
        line: _Line,
        following: _Line | None,
        next_sequence: int | None,
        sequence: int,
        body: bytes,
        mac: bytes,
    ) -> None:
        """An entry stands before some that come before it."""
        expected = self._expected
        if following is not None and next_sequence == expected + 1 and sequence != expected + 1:
            split = chain.split_line(following.text)
            if split is not None and self._follows([mac], *split):
                self._problem(line.number, "changed", f"entry {expected} is not as it was written")
                self._advance(expected, [mac])
                return
            self._early.setdefault(sequence, (line, body, mac))
            before = self._before[0] if self._before else None
            self._problem(
                line.number, "reordered", f"entry {sequence} stands where entry {expected} belongs"
            )
            self._gaps.append(_Gap(expected, expected, before, -1))
            self._advance(expected, [])
            return
        if next_sequence == expected:
            self._early.setdefault(sequence, (line, body, mac))
            self._problem(
                line.number, "reordered", f"entry {sequence} stands before entry {expected}"
            )
            return
        missing = sequence - expected
        what = (
            f"entry {expected} is" if missing == 1 else f"entries {expected} to {sequence - 1} are"
        )
        before = self._before[0] if self._before else None
        gap = _Gap(expected, sequence - 1, before, len(self.found.problems))
        self._problem(line.number, "removed", f"{what} gone, before entry {sequence}")
        gap.follower = (body, mac, line.number)
        self._gaps.append(gap)
        self.found.unchecked += 1
        self._advance(sequence, [mac])

    def _check_too_late(
        self, line: _Line, next_sequence: int | None, sequence: int, body: bytes, mac: bytes
    ) -> None:
        """An entry stands behind some that come after it, or once more."""
        for gap in self._gaps:
            if not gap.first <= sequence <= gap.last:
                continue
            provable = gap.first == sequence and gap.before is not None
            authentic = provable and self._follows([gap.before or b""], body, mac)
            text = f"entry {sequence} stands behind entry {self._expected - 1}"
            if provable and not authentic:
                self._problem(line.number, "changed", f"{text}, and is not as it was written")
            else:
                self._problem(line.number, "reordered", text)
            if authentic:
                self.found.entries += 1
                if self._each is not None:
                    self._each(line.text)
            elif not provable:
                self.found.unchecked += 1
            if gap.last == sequence and gap.follower is not None and authentic:
                follower_body, follower_mac, number = gap.follower
                if self._follows([mac], follower_body, follower_mac):
                    self.found.unchecked -= 1
                    self.found.entries += 1
                else:
                    self._problem(
                        number, "changed", f"entry {sequence + 1} is not as it was written"
                    )
            gap.before = mac
            gap.first = sequence + 1
            break
        else:
            self._problem(line.number, "added", f"entry {sequence} stands here once more")
        if next_sequence == self._expected + 1 and self._expected not in self._early:
            before = self._before[0] if self._before else None
            self._problem(line.number, "removed", f"entry {self._expected} is gone from here")
            self._gaps.append(_Gap(self._expected, self._expected, before, -1))
            self._advance(self._expected, [])

    # Helpers

    def _settle_early(self, sequence: int | None = None) -> None:
        """Take entries that were met too early where they belong, unless the line at hand is one itself."""
        while self._expected in self._early and sequence != self._expected:
            line, body, mac = self._early.pop(self._expected)
            if not self._before:
                self.found.unchecked += 1
                self._advance(self._expected, [mac])
            elif self._follows(self._before, body, mac):
                self._accept(line, self._expected, mac)
            else:
                self._problem(
                    line.number, "changed", f"entry {self._expected} is not as it was written"
                )
                self._advance(self._expected, [mac])

    def _accept(self, line: _Line, sequence: int, mac: bytes) -> None:
        self.found.entries += 1
        self._meet(sequence, mac)
        if self._each is not None:
            self._each(line.text)
        if _OWN in line.text or _TAPE_ANCHOR in line.text:
            self._note(line)
        self._advance(sequence, [mac])

    def _advance(self, sequence: int, before: list[bytes]) -> None:
        self._expected = sequence + 1
        self._before = before
        self._is_doubtful = False

    def _mac(self, before: bytes, body: bytes) -> bytes:
        assert self._key is not None
        return self._key.entry(before, body)

    def _follows(self, before: Iterable[bytes], body: bytes, mac: bytes) -> bool:
        return any(self._mac(each, body) == mac for each in before)

    def _meet(self, sequence: int, mac: bytes) -> None:
        """Compare an entry, or a header, with what head and anchors say of it."""
        if self._head is not None and sequence == self._head.sequence and mac == self._head.mac:
            self._is_head_met = True
        kept = []
        for anchor in self._wanted.get(sequence, ()):
            if anchor.mac == mac and anchor.log_id.hex() == self.found.log_id:
                self.found.anchors += 1
            else:
                kept.append(anchor)
        if sequence in self._wanted:
            self._wanted[sequence] = kept

    def _is_cut_note(self, line: _Line, sequence: int, body: bytes, mac: bytes) -> bool:
        """Whether a line is what a writer says of a log that it found cut; the problem is then noted."""
        if b'"action":"audit.cut"' not in line.text:
            return False
        fields = chain.parse_object(line.text)
        details = fields.get("details") if fields is not None else None
        try:
            before = bytes.fromhex(details["mac"]) if isinstance(details, dict) else b""
        except (ValueError, TypeError, LookupError):
            return False
        if fields is None or sequence < self._expected or not self._follows([before], body, mac):
            return False
        gone = "the end of the log is"
        if sequence > self._expected:
            gone = f"entries {self._expected} to {sequence - 1} are"
        self._problem(line.number, "cut", f"{gone} gone: so found a writer at {fields.get('time')}")
        self._accept(line, sequence, mac)
        return True

    def _is_torn(self, line: _Line, following: _Line, fd: int) -> bool:
        """Whether the entry behind a line that is none says that it found the line so."""
        fields = chain.parse_object(following.text) or {}
        details = fields.get("details")
        if fields.get("action") != "audit.torn" or not isinstance(details, dict):
            return False
        stop = following.offset - 1
        return (
            details.get("offset") == line.offset
            and details.get("bytes") == stop - line.offset
            and details.get("sha256") == digest_of(fd, line.offset, stop)
        )

    def _note(self, line: _Line) -> None:
        """Look at an authentic entry about a tape, or by the log itself; who holds the key may have made it anyhow."""
        fields = chain.parse_object(line.text) or {}
        action, time, details = fields.get("action"), fields.get("time"), fields.get("details")
        if not isinstance(details, dict):
            details = {}
        if action in ("tape.seal", "tape.close") and fields.get("result") == "done":
            anchor, path = details.get("anchor"), fields.get("subject")
            if isinstance(anchor, str) and isinstance(path, str) and isinstance(time, str):
                with contextlib.suppress(ValueError):
                    record = TapeRecord(Anchor.parse(anchor), path, time)
                    self.found.tapes[record.anchor.tape_id] = record
        elif action == "audit.head":
            self._problem(
                line.number,
                "head",
                f"the head was {details.get('head')}, as a writer found at {time}: whether "
                "entries before this one were cut cannot be told",
            )
        elif action == "audit.unsynced":
            self._notice(
                line.number,
                "unsynced",
                f"the disk failed: entries up to {details.get('last')} might not have survived a power cut",
            )
        elif action == "audit.lost":
            self._notice(
                line.number,
                "lost",
                f"{details.get('entries')} operations were not recorded: the log could not be written",
            )

    def _check_head(self, raw: bytes) -> None:
        last = self._expected - 1
        self.found.last = last
        head, header = self._head, self._header
        what = ""
        if head is None:
            what = "is missing" if not raw else "is forged, or another log's"
        elif header is not None and head.file < header.file:
            if head[:2] == (header.file - 1, header.sequence) and head.mac == header.previous:
                return  # A writer died between the new file and its head.
            what = "is an old one"
        if head is None or what:
            self._problem(
                0, "head", f"the head {what}: whether the end of the log was cut cannot be told"
            )
            return
        if head.sequence > last:
            what = f"entry {last + 1} is" if head.sequence == last + 1 else ""
            self._problem(
                0,
                "cut",
                f"{what or f'entries {last + 1} to {head.sequence} are'} gone: the log ends before its head",
            )
        elif not self._is_head_met and not self.found.problems:
            self._problem(0, "changed", f"entry {head.sequence} is not the one that the head names")

    def _check_anchors(self) -> None:
        if self._anchors and all(each.sequence < self._first for each in self._anchors):
            self._notice(
                0, "anchor", f"every anchor is of entries before {self._first}, which were not read"
            )
        for anchors in self._wanted.values():
            for anchor in anchors:
                if anchor.log_id.hex() != self.found.log_id:
                    text = f"is of another log, {anchor.log_id.hex()}"
                elif self._header is None or anchor.sequence > self.found.last:
                    text = (
                        f"names entry {anchor.sequence}, and the log ends at {self.found.last}: "
                        "it was cut or put back"
                    )
                elif anchor.sequence < self._first:
                    continue
                else:
                    text = f"names another entry {anchor.sequence}: the log was put back and went on, or was replaced"
                self._problem(0, "anchor", f"the anchor of {anchor.time} {text}")

    def _problem(self, line: int, kind: str, text: str) -> None:
        self.found.problems.append(LogProblem(self._file, line, kind, text))

    def _notice(self, line: int, kind: str, text: str) -> None:
        self.found.notices.append(LogProblem(self._file, line, kind, text))
