"""Commands of a plan: they get credentials and give them as JSON over pipes, never in arguments or the environment.

A command is started without a shell. Its standard input is a JSON object, the parts of the credential by their names,
or empty; its exit code says how it ended: 0 it did what it is for, 75 (EX_TEMPFAIL) it may do so later, any other that
it cannot. A JSON object of a credential that it prints is taken apart in key memory.
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from tapeseal._core import SecretBuffer, copy_into
from tapeseal.errors import CommandError, RotationError, ServiceUnavailableError
from tapeseal.rotation.redaction import without
from tapeseal.secret import Secret

TRY_LATER: Final = 75
_MOST_OUTPUT: Final = 1 << 18
_MOST_ERRORS: Final = 1 << 16

_STRING = rb'"((?:[^"\\\x00-\x1f]|\\["\\/bfnrt]|\\u[0-9A-Fa-f]{4})*+)"'
_MEMBER = re.compile(rb"[ \t\r\n]*+" + _STRING + rb"[ \t\r\n]*+:[ \t\r\n]*+" + _STRING)
_SEPARATOR = re.compile(rb"[ \t\r\n]*+([,}])")
_START, _END = re.compile(rb"[ \t\r\n]*+\{"), re.compile(rb"[ \t\r\n]*+")
_ESCAPE = re.compile(rb'\\(?:["\\/bfnrt]|(?:u[0-9A-Fa-f]{4})+?(?:\\u[dD][c-fC-F][0-9A-Fa-f]{2})?)')


_kept: set[int] = set()


@contextlib.contextmanager
def keep_open(fd: int) -> Iterator[None]:
    """Have the commands that are started in the body keep a descriptor open until they end."""
    _kept.add(fd)
    try:
        yield
    finally:
        _kept.discard(fd)


def run_command(
    command: Sequence[str],
    *,
    credential: Mapping[str, Secret] | None = None,
    part: str | None = None,
    variables: Mapping[str, str] | None = None,
    seconds: float,
) -> SecretBuffer | None:
    """Run a command to its end and return what it printed; None where that is nothing.

    Args:
        command: the program and its arguments.
        credential: for its standard input.
        part: the one part of it to give, as it is; None: all of it as JSON.
        variables: for its environment, beside those of this process; nothing secret.
        seconds: how long it may take; then it and all it has started are killed.

    Raises:
        ServiceUnavailableError: it ended with code 75, or not in time.
        CommandError: it ended with another code than 0.
        RotationError: it was not found, or printed too much; the last line of its standard error is in the text, where
            it shows nothing of the credential.
    """
    name = os.path.basename(command[0])
    text = _input(credential, part) if credential else None
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            env={**os.environ, **(variables or {})},
            start_new_session=True,
            pass_fds=tuple(_kept),
        )
    except OSError as error:
        raise RotationError(f"{name} cannot be run: {error.strerror}") from None
    errors: list[bytes] = []
    expired = threading.Event()
    timer = threading.Timer(seconds, _expire, (process, expired))
    helpers = [
        threading.Thread(target=_feed, args=(process.stdin, text)),
        threading.Thread(target=_drain, args=(process.stderr, errors)),
    ]
    printed = SecretBuffer(_MOST_OUTPUT, writable=True)
    with contextlib.closing(printed), process:
        try:
            for each in (timer, *helpers):
                each.start()
            length = _read(process.stdout, printed)
            if length is None:
                _kill(process)
            for each in helpers:
                each.join()
            # Last of all: until then its number, and that of its group, is nobody else's.
            code = process.wait()
        finally:
            timer.cancel()
            _kill(process)
            if text is not None:
                text.close()
        said = without(_last_line(errors), credential)
        errors.clear()  # Frames of a traceback show it.
        if expired.is_set():
            raise ServiceUnavailableError(f"{name} did not end within {seconds:.0f} seconds")
        if length is None:
            raise RotationError(f"{name} printed more than {_MOST_OUTPUT} bytes")
        if code:
            ended = f"was ended by signal {-code}" if code < 0 else f"ended with code {code}"
            problem = f"{name} {ended}{': ' if said else ''}{said}"
            if code == TRY_LATER:
                raise ServiceUnavailableError(problem)
            raise CommandError(problem, code, said)
        if not length:
            return None
        with printed, memoryview(printed) as view:
            return SecretBuffer.take(view[:length])


def _input(credential: Mapping[str, Secret], part: str | None) -> SecretBuffer:
    if part is None:
        return json_of(credential)
    if part not in credential:
        raise RotationError(no_part(part, credential))
    secret = credential[part].buffer
    copy = SecretBuffer(len(secret), writable=True)
    with copy, secret:
        copy_into(copy, 0, secret)
    return copy


def no_part(part: str, credential: Mapping[str, Secret]) -> str:
    """Say that a credential lacks a part."""
    return f"the credential has no part {part!r}, only: {', '.join(sorted(credential))}"


def _read(stream: Any, into: SecretBuffer) -> int | None:
    """Fill key memory from a pipe and return how many bytes came; None where they were too many."""
    have = 0
    with into, memoryview(into) as view:
        while have < len(view):
            count = stream.readinto(view[have:])
            if not count:
                return have
            have += count
    return None


def _feed(stream: Any, text: SecretBuffer | None) -> None:
    # A command need not read it.
    with contextlib.suppress(BrokenPipeError), stream:
        if text is not None:
            with text, memoryview(text) as view:
                done = 0
                while done < len(view):
                    done += stream.write(view[done:])


def _drain(stream: Any, into: list[bytes]) -> None:
    size = 0
    while piece := stream.read(4096):
        size += len(piece)
        into.append(piece)
        while size > _MOST_ERRORS:
            size -= len(into.pop(0))


def _last_line(pieces: list[bytes]) -> str:
    lines = b"".join(pieces).decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else ""


def _expire(process: "subprocess.Popen[bytes]", expired: threading.Event) -> None:
    expired.set()
    _kill(process)


def _kill(process: "subprocess.Popen[bytes]") -> None:
    """End the command and its children, which may hold our pipes, unless it is over."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)


def json_of(credential: Mapping[str, Secret]) -> SecretBuffer:
    """Return the JSON object of a credential, in key memory."""
    size = 2 + sum(
        2 + len(json.dumps(name)) + 2 + 6 * len(each.buffer) for name, each in credential.items()
    )
    whole = SecretBuffer(size, writable=True)
    with contextlib.closing(whole), whole, memoryview(whole) as view:
        at = 0

        def add(data: bytes) -> None:
            nonlocal at
            view[at : at + len(data)] = data
            at += len(data)

        for number, (name, secret) in enumerate(credential.items()):
            add(b"%b%b:" % (b"," if number else b"{", json.dumps(name).encode()))
            add(b'"')
            with secret.buffer, memoryview(secret.buffer) as value:
                for byte in value:
                    if byte in b'"\\' or byte < 0x20:
                        add(b"\\u%04x" % byte)
                    else:
                        view[at] = byte
                        at += 1
            add(b'"')
        add(b"}")
        return SecretBuffer.take(view[:at])


def credential_of(text: SecretBuffer) -> dict[str, Secret]:
    """Take a credential out of its JSON object, whose values are texts that are not empty.

    Raises:
        ValueError: it is no such object.
    """
    found: dict[str, Secret] = {}
    try:
        with text, memoryview(text) as view:
            for name, start, stop in _members(view):
                if name in found:
                    raise ValueError(f"the member {name!r} is there twice")
                found[name] = unescaped(view[start:stop], name)
    except BaseException:
        for secret in found.values():
            secret.close()
        raise
    return found


def _members(view: memoryview) -> Iterator[tuple[str, int, int]]:
    problem = "it is not a JSON object whose members are all texts"
    start = _START.match(view)
    if start is None:
        raise ValueError(problem)
    at = start.end()
    while True:
        member = _MEMBER.match(view, at)
        if member is None:
            raise ValueError(problem)
        name, value, at = member.span(1), member.span(2), member.end()
        # The repr of a match, which a traceback may show, has the beginning of its text.
        member = None
        yield json.loads(bytes(view[name[0] - 1 : name[1] + 1])), *value
        separator = _SEPARATOR.match(view, at)
        if separator is None:
            raise ValueError(problem)
        at = separator.end()
        if bytes(view[at - 1 : at]) == b"}":
            break
    rest = _END.match(view, at)
    if rest is None or rest.end() != len(view):
        raise ValueError(problem)


def unescaped(view: memoryview, name: str) -> Secret:
    """Return what the inside of a JSON string stands for.

    Raises:
        ValueError: it is empty, or no text in Unicode; `name` is the member's.
    """
    if not len(view):
        raise ValueError(f"the member {name!r} is empty")
    plain = bytearray(len(view))  # An escape is never shorter than what it stands for.
    have = at = 0

    def add(piece: bytes | memoryview) -> None:
        nonlocal have
        plain[have : have + len(piece)] = piece
        have += len(piece)

    try:
        for escape in _ESCAPE.finditer(view):
            add(view[at : escape.start()])
            # A character of the secret alone, which Python keeps anyway.
            add(json.loads(b'"%b"' % escape[0]).encode())
            at = escape.end()
        add(view[at:])
        with memoryview(plain) as whole:
            return Secret.take(whole[:have])
    except UnicodeEncodeError:
        escape = None  # See _members(). And raised from here, the next one would have this as its context.
    finally:
        plain[:] = bytes(len(plain))
    raise ValueError(f"the member {name!r} is no text in Unicode")
