"""What can be said of a tape: inspect() without a key, verify() with one."""

import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tapeseal import audit, blob, files, header, layout
from tapeseal.body import Anchor, Body, frame_bounds, in_parallel
from tapeseal.datakey import DataKey, Keyring
from tapeseal.errors import DamagedError
from tapeseal.files import StrPath
from tapeseal.header import Header, Problem
from tapeseal.layout import FRAME_OVERHEAD, SEGMENT_HEADER_SIZE, Recipient, Run
from tapeseal.tape import default_threads, open_file


@dataclass(frozen=True)
class Inspection:
    """What a file says of itself without any key. None of it is authenticated: verify() does that."""

    profile: str
    """"file" for a tape, "blob" for a message."""
    tape_id: bytes
    created: str
    kind: str
    dtype: np.dtype[Any] | None
    frame_size: int
    index_by: str | None
    encryption_context: dict[str, str]
    recipients: list[Recipient]
    generation: int
    """1 at creation, and 1 more with each rewrap."""
    copies_intact: int
    """How many of the header copies are readable: of a tape 2, of a blob 1."""
    size: int
    """Bytes of the file."""
    sealed: bool
    """Whether it ends with a trailer."""
    segments: int
    frames: int
    items: int
    """Records, or bytes where the kind is bytes."""
    torn_bytes: int
    """Bytes at the end that are in no whole block."""


@dataclass(frozen=True)
class Verification:
    """What verify() found."""

    state: str
    """"sealed", "open", "torn", or "damaged"."""
    problems: list[Problem]
    """Everything that is wrong, in the order of the file."""
    segments: int
    frames: int
    items: int
    """Records, or bytes where the kind is bytes, that are authentic or, where damaged, were found."""
    torn_bytes: int
    anchor: Anchor | None
    """How far the tape has come; None where it is damaged."""

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong. An open or torn tape is not wrong, but may have been cut at a frame's end."""
        return not self.problems


def inspect(path: StrPath) -> Inspection:
    """Say what a tape or blob says of itself; no key is needed, and nothing is authenticated.

    Raises:
        NotATapeError: the file carries no header.
        DamagedError: the header is damaged.
    """
    fd = open_file(os.fspath(path), os.O_RDONLY)
    try:
        found = header.read_file(fd)
        size = os.fstat(fd).st_size
        copies = found.copy.copies
        content = found.content
        trailer = files.pread_exact(fd, layout.TRAILER_SIZE, size - layout.TRAILER_SIZE)
        sealed = copies == layout.FILE_COPIES and layout.parse_trailer(trailer) is not None
        segments, frames, items, end = count_blocks(fd, found, size)
        return Inspection(
            profile="blob" if copies == layout.BLOB_COPIES else "file",
            tape_id=found.tape_id,
            created=content.created,
            kind=content.kind,
            dtype=content.dtype,
            frame_size=content.frame_size,
            index_by=content.index_by,
            encryption_context=content.encryption_context,
            recipients=found.recipients,
            generation=found.copy.generation,
            copies_intact=copies - len(found.problems),
            size=size,
            sealed=sealed,
            segments=segments,
            frames=frames,
            items=items,
            torn_bytes=0 if sealed else size - end,
        )
    finally:
        os.close(fd)


def count_blocks(fd: int, found: Header, size: int) -> tuple[int, int, int, int]:
    """Count data segments, their frames and items by the block headers, up to what is no whole data block."""
    segments = frames = items = 0
    at = found.body
    window, window_at = b"", at
    while True:
        if at + layout.FRAME_HEADER_SIZE > window_at + len(window):
            window, window_at = files.pread_exact(fd, 4096, at), at
        if len(window) < layout.FRAME_HEADER_SIZE:
            break
        type, count, _, sealed_size, _ = layout.parse_frame(window, at - window_at)
        if type == layout.DATA_SEGMENT:
            block = SEGMENT_HEADER_SIZE
        elif type in (layout.FRAME, layout.FINAL_FRAME) and segments:
            block = FRAME_OVERHEAD + sealed_size
        else:
            break
        if at + block > size:
            break
        at += block
        if type == layout.DATA_SEGMENT:
            segments += 1
        else:
            frames += 1
            items += count
    return segments, frames, items, at


def verify(
    path: StrPath,
    *,
    keyring: Keyring,
    anchor: Anchor | None = None,
    expect: Mapping[str, str] | None = None,
    progress: Callable[[int, int | None], None] | None = None,
    threads: int | None = None,
) -> Verification:
    """Authenticate all of a tape or blob, and go on past damage to list everything that is wrong.

    Args:
        path: the file.
        keyring: unwraps its data key.
        anchor: of this tape at an earlier time; a tape that lost something since then has a problem.
        expect: pairs that the encryption context must have.
        progress: called with the bytes opened so far and in all.
        threads: as tapeseal.open() takes it.

    Raises:
        NotATapeError: the file carries no header.
        ContextMismatchError: a pair of `expect` is missing.
        KeyUnavailableError: the keyring has no key for it.
    """
    threads = default_threads() if threads is None else max(1, threads)
    fd = open_file(os.fspath(path), os.O_RDONLY)
    try:
        with audit.operation("tape.verify", os.path.abspath(path)) as entry:
            try:
                found = header.read_file(fd)
                data_key = header.unlock(found, keyring, expect)
            except DamagedError as error:
                entry.result = "damaged"
                problem = Problem(error.offset, error.problem)
                return Verification("damaged", [problem], 0, 0, 0, 0, None)
            entry.details["tape_id"] = found.tape_id.hex()
            with data_key:
                if found.copy.copies == layout.BLOB_COPIES:
                    verification = _verify_blob(fd, found, data_key, anchor)
                else:
                    verification = _verify_tape(fd, found, data_key, anchor, progress, threads)
            if not verification.ok:
                entry.result = "damaged"
            return verification
    finally:
        os.close(fd)


def _verify_blob(fd: int, found: Header, data_key: DataKey, anchor: Anchor | None) -> Verification:
    size = os.fstat(fd).st_size
    with memoryview(files.pread_exact(fd, size, 0)) as view:
        try:
            items = len(blob.open_body(view, found, data_key))
        except DamagedError as error:
            return Verification("damaged", [Problem(error.offset, error.problem)], 0, 0, 0, 0, None)
    segments, frames, _, _ = count_blocks(fd, found, size)
    problems = []
    if anchor is not None:
        problems.append(
            Problem(found.body, "the anchor does not hold: this is a blob, and it is of a tape")
        )
    return Verification("sealed", problems, segments, frames, items, 0, None)


def _verify_tape(
    fd: int,
    found: Header,
    data_key: DataKey,
    anchor: Anchor | None,
    progress: Callable[[int, int | None], None] | None,
    threads: int,
) -> Verification:
    header_problems = list(found.problems)
    if found.other is not None:
        try:
            header.check_mac(data_key, found.other, found.copy.copy_size)
        except DamagedError as error:
            header_problems.append(
                Problem(error.offset, f"the second header copy: {error.problem}")
            )

    problems: list[Problem] = []
    body = Body(fd, found, data_key)
    start = body.mark()
    size = os.fstat(fd).st_size
    try:
        body.load(authenticate=False)
    except DamagedError as error:
        problems.append(Problem(error.offset, error.problem))
        body.reset(start)
        try:
            body.walk(size, authenticate=False)
        except DamagedError as second:
            if second.offset != problems[0].offset:
                problems.append(
                    Problem(second.offset, f"{second.problem}; what follows was not checked")
                )
    problems += _check_frames(body, progress, threads)
    if problems:
        state = "damaged"
    else:
        state = "sealed" if body.sealed else "torn" if body.torn_bytes else "open"
        if anchor is not None:
            problems += _check_anchor(body, anchor)
    everything = sorted(set(header_problems + problems))
    reached = None if state == "damaged" else body.anchor
    return Verification(
        state, everything, len(body.segments), body.frames, body.items, body.torn_bytes, reached
    )


def _check_frames(
    body: Body, progress: Callable[[int, int | None], None] | None, threads: int
) -> list[Problem]:
    """Open every frame, and compare the index with what is found; return what is wrong."""
    problems: list[Problem] = []
    unreadable = set()
    for number in range(len(body.segments)):
        try:
            body.segment_key(number)
        except DamagedError as error:
            problems.append(Problem(error.offset, error.problem))
            unreadable.add(number)
    first_frames = {}
    frames = 0
    for run in body.runs:
        first_frames[run.offset] = frames
        frames += run.frames
    content = body.header.content
    stored: np.ndarray[Any, np.dtype[Any]] | None = None
    if body.bounds and content.index_by is not None and content.dtype is not None:
        stored = np.frombuffer(body.bounds, content.dtype[content.index_by]).reshape(-1, 2)
    guard = threading.Lock()
    done = 0

    def portion(run: Run, first: int, last: int) -> None:
        nonlocal done
        if run.segment in unreadable:
            return
        size = (last - first) * run.items * body.item_size
        plain = memoryview(np.empty(size, np.uint8))
        try:
            body.open_frames(run, first, last, plain)
        except DamagedError as error:
            if last - first > 1:
                for place in range(first, last):
                    portion(run, place, place + 1)
            else:
                problems.append(Problem(error.offset, error.problem))
            return
        if stored is not None:
            assert content.index_by is not None
            records = np.frombuffer(plain, content.dtype)
            found = np.frombuffer(
                frame_bounds(records, content.index_by, run.items), stored.dtype
            ).reshape(-1, 2)
            number = first_frames[run.offset] + first
            claimed = stored[number : number + last - first]
            # NaN and NaT are no equals of themselves.
            same = (found == claimed) | ((found != found) & (claimed != claimed))
            for wrong in np.flatnonzero(~same.all(axis=1)):
                offset = run.offset + (first + int(wrong)) * run.step
                problems.append(Problem(offset, "the index holds other bounds for this frame"))
        with guard:
            done += size
            if progress is not None:
                progress(done, body.items * body.item_size)

    in_parallel(portion, body.portions_of(body.runs), threads)
    return problems


def _check_anchor(body: Body, anchor: Anchor) -> list[Problem]:
    """Say whether the tape goes on from the anchor."""

    def refuse(text: str) -> list[Problem]:
        return [Problem(body.end, f"the anchor does not hold: {text}")]

    if anchor.tape_id != body.header.tape_id:
        return refuse("it is of another tape")
    if len(body.segments) < anchor.segments or body.items < anchor.items:
        return refuse(f"it had {anchor.items} items, and {body.items} are left")
    if anchor.segments and body.segments[anchor.segments - 1].commitment != anchor.commitment:
        return refuse("the tape's history is another one since then")
    through = sum(segment.frames for segment in body.segments[: anchor.segments])
    if through < anchor.frames:
        return refuse(f"it had {anchor.frames} frames, and {through} are left of them")
    before = frames = 0
    for run in body.runs:
        taken = min(run.frames, anchor.frames - frames)
        before += taken * run.items
        frames += taken
    if before != anchor.items:
        return refuse("the frames it counted hold other numbers of items")
    if anchor.index is not None and not body.sealed and body.frames == anchor.frames:
        return refuse("the tape was sealed then and is not now")
    return []
