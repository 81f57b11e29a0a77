"""Finds the secrets of a JSON text without making a Python object of one, and blanks them; writes them into one."""

import base64
import contextlib
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

from tapeseal import _core
from tapeseal._core import SecretBuffer

PLACEHOLDER: Final = b"tapeseal placeholder of a secret"
PLACEHOLDER_TEXT: Final = base64.b64encode(PLACEHOLDER).decode("ascii")

Place = tuple[str | int, ...]
"""Where a value stands in a document: names of members and numbers of elements, from the outside in."""

Pattern = tuple[str, ...]
"""Places that are alike: "*" stands for any one member or element."""

_MAX_DEPTH: Final = 64

# A string, a bracket or mark, or what else there is up to the next of those. That the whole is JSON is checked once the
# secrets are out.
_TOKEN = re.compile(
    rb'[ \t\r\n]*+(?:("(?:[^"\\]|\\.)*+")|([{}\[\],:])|([^ \t\r\n{}\[\],:"]++))', re.DOTALL
)
_ESCAPE = re.compile(rb'\\(?:["\\/bfnrt]|u[0-9A-Fa-f]{4}(?:\\u[dD][c-fC-F][0-9A-Fa-f]{2})?)')
_CHARACTERS = re.compile(rb'(?:[^"\\\x00-\x1f]++|\\(?:["\\/bfnrt]|u[0-9A-Fa-f]{4}))*+')
_LITERAL = re.compile(rb"true|false|null|-?(?:0|[1-9][0-9]*+)(?:\.[0-9]++)?(?:[eE][+-]?[0-9]++)?")
_BASE64_RUN = re.compile(rb"[A-Za-z0-9+/]{40,}+={0,2}")
_NULL = re.compile(rb"null")
_ESCAPED = re.compile(rb'["\\\x00-\x1f]')
# Also what TOML or YAML takes for no character of a string, or for a line break: DEL, the rest of the controls, U+2028,
# U+2029, U+FFFE and U+FFFF.
_OF_ANY = re.compile(rb'["\\\x00-\x1f\x7f]|\xc2[\x80-\x9f]|\xe2\x80[\xa8\xa9]|\xef\xbf[\xbe\xbf]')
_OF_HTML = re.compile(rb"[<>&]")
_SHORT: Final = {
    ord(c): b"\\" + e for c, e in zip('"\\\n\r\t', (b'"', b"\\", b"n", b"r", b"t"), strict=True)
}
_UTF_8 = re.compile(
    rb"(?:[\x00-\x7f]++|[\xc2-\xdf][\x80-\xbf]|\xe0[\xa0-\xbf][\x80-\xbf]|[\xe1-\xec\xee\xef][\x80-\xbf]{2}"
    rb"|\xed[\x80-\x9f][\x80-\xbf]|\xf0[\x90-\xbf][\x80-\xbf]{2}|[\xf1-\xf3][\x80-\xbf]{3}"
    rb"|\xf4[\x80-\x8f][\x80-\xbf]{2})*+"
)
_OPENS, _CLOSES = b"{[", b"}]"
_PAIRS: Final = {ord("}"): ord("{"), ord("]"): ord("[")}


class Field(NamedTuple):
    """A secret value: where it stands in the document, and where its characters stand in the text."""

    place: Place
    start: int
    stop: int
    is_string: bool
    """The characters are those between the quotes of a string; otherwise those of any other value."""


def redact(
    view: memoryview, start: int, stop: int, patterns: Sequence[Pattern] | None = None
) -> tuple[bytes, list[Field]]:
    """Return a JSON object's text with a placeholder for each secret in it, and those secrets.

    Escapes in secret strings are resolved in place, to UTF-8; another value is kept as it is written. null and the
    empty string are left where they are. A member whose name ends in "plaintext" is a secret wherever it stands.

    Args:
        view: writable, holds the text from start to stop.
        patterns: where secrets stand; None: the one member, of the object or of the object in its member "data", whose
            name ends in "plaintext".

    Raises:
        ValueError: the text is no JSON object, repeats a member, nests too deep, has a lone surrogate in a secret, or a
            member whose name ends in "plaintext" where none belongs, or that is no string.
    """
    fields = list(_fields(view, start, stop, patterns))
    for each in fields:
        _check(view, each)
    spans = [(_whole(each), f'"{PLACEHOLDER_TEXT}"') for each in fields]
    text = _blanked(view, start, stop, spans)
    _parse(text)
    if patterns is None and (
        len(fields) > 1 or any(each.place[:-1] not in ((), ("data",)) for each in fields)
    ):
        raise ValueError("it has more than one secret, or one where none belongs")
    return text, [_unescape(view, each) if each.is_string else each for each in fields]


def redact_error(
    view: memoryview,
    start: int,
    stop: int,
    *,
    patterns: Sequence[Pattern] | None = None,
    sent: Sequence[SecretBuffer] = (),
) -> bytes:
    """Return an error's JSON text with a placeholder for each secret in it, wherever it stands.

    Args:
        view: holds the text from start to stop.
        patterns: where an answer has secrets.
        sent: the secrets that the request held, as they stood in it: what repeats one of them is blanked, and each
            long run of base64 as well.

    Raises:
        ValueError: the text is no JSON object, or a secret is neither a string nor null.
    """
    fields = _fields(view, start, stop, patterns)
    spans = [(_whole(each), f'"{PLACEHOLDER_TEXT}"') for each in fields]
    if sent:
        ends = [start, *(end for span, _ in spans for end in span), stop]
        for between in zip(ends[::2], ends[1::2], strict=True):
            spans += [(run.span(), "...") for run in _BASE64_RUN.finditer(view, *between)]
    for secret in sent:
        spans += [(span, "...") for span in _copies(view, start, stop, secret)]
        # Servers in Go write it so that it could stand in a web page.
        with contextlib.closing(_escaped(secret, _OF_HTML)) as spelled:
            spans += [(span, "...") for span in _copies(view, start, stop, spelled)]
    text = _blanked(view, start, stop, sorted(spans))
    _parse(text)
    return text


def in_string(secret: SecretBuffer, *, of_any: bool = False) -> SecretBuffer:
    """Return a text in UTF-8 as it stands between the quotes of a JSON string.

    Args:
        secret: the text.
        of_any: it is to stand between the double quotes of TOML and YAML as well.

    Raises:
        ValueError: it is no UTF-8.
    """
    with secret, memoryview(secret) as view:
        if not _UTF_8.fullmatch(view):
            raise ValueError("a secret that is sent is text in UTF-8, and this one is none")
    return _escaped(secret, _OF_ANY if of_any else _ESCAPED)


def _escaped(secret: SecretBuffer, marks: re.Pattern[bytes]) -> SecretBuffer:
    """Return a copy with some characters as JSON's escapes; \\" \\\\ \\n \\r and \\t are short, as most write them."""
    with secret, memoryview(secret) as view:
        places = [found.span() for found in marks.finditer(view)]
        escapes = [
            _SHORT.get(view[start]) or f"\\u{ord(str(view[start:stop], 'utf-8')):04x}".encode()
            for start, stop in places
        ]
        size = len(view) + sum(map(len, escapes)) - sum(stop - start for start, stop in places)
        written = SecretBuffer(size, writable=True)
        with written, memoryview(written) as target:
            done = at = 0
            for (start, stop), escape in zip(places, escapes, strict=True):
                done += _core.copy_into(target, done, view[at:start])
                done += _core.copy_into(target, done, escape)
                at = stop
            _core.copy_into(target, done, view[at:])
    return written


def _fields(
    view: memoryview, start: int, stop: int, patterns: Sequence[Pattern] | None
) -> Iterator[Field]:
    """Find the secrets of a text from left to right; what is no JSON may hide some, and does not parse later."""
    place: list[str | int | None] = []  # None: the name of a member follows.
    containers = bytearray()
    while token := _TOKEN.match(view, start, stop):
        start = token.end()
        mark = view[token.start(2)] if token.end(2) >= 0 else 0
        if mark in (*_CLOSES, ord(","), ord(":")):
            if mark == ord(","):
                if place:
                    last = place[-1]
                    place[-1] = last + 1 if isinstance(last, int) else None
            elif mark in _PAIRS:
                if not containers or containers.pop() != _PAIRS[mark]:
                    raise ValueError("it is no JSON")
                place.pop()
            continue
        if place and place[-1] is None:
            if token.end(1) < 0:
                raise ValueError("it is no JSON")
            place[-1] = _json(bytes(view[slice(*token.span(1))]))
            continue
        here = tuple(each for each in place if each is not None)
        if _is_plaintext(here) or _is_at(here, patterns):
            if mark:
                if not _is_at(here, patterns):
                    raise ValueError("its secret is no string")
                first = token.start(2)
                start = _end(view, first, stop)
                yield Field(here, first, start, False)
            elif token.end(1) >= 0:
                if token.end(1) - token.start(1) > 2:
                    yield Field(here, token.start(1) + 1, token.end(1) - 1, True)
            elif not _NULL.fullmatch(view, *token.span(3)):
                if not _is_at(here, patterns):
                    raise ValueError("its secret is no string")
                yield Field(here, *token.span(3), False)
        elif mark:
            if len(containers) == _MAX_DEPTH:
                raise ValueError("it nests too deep")
            containers.append(mark)
            place.append(None if mark == ord("{") else 0)


def _is_plaintext(place: Place) -> bool:
    return bool(place) and isinstance(place[-1], str) and place[-1].casefold().endswith("plaintext")


def _is_at(place: Place, patterns: Sequence[Pattern] | None) -> bool:
    return any(
        len(place) == len(pattern)
        and all(name in ("*", each) for name, each in zip(pattern, place, strict=True))
        for pattern in patterns or ()
    )


def _end(view: memoryview, start: int, stop: int) -> int:
    """Return where the object or array that starts somewhere ends."""
    containers = bytearray()
    while token := _TOKEN.match(view, start, stop):
        start = token.end()
        if token.end(2) >= 0:
            mark = view[token.start(2)]
            if mark in _OPENS:
                containers.append(mark)
            elif mark in _CLOSES and containers.pop() != _PAIRS[mark]:
                break
            if not containers:
                return start
    raise ValueError("it is no JSON")


def _whole(field: Field) -> tuple[int, int]:
    """Return where a value stands with its quotes."""
    return field.start - field.is_string, field.stop + field.is_string


def _check(view: memoryview, field: Field) -> None:
    """Raise ValueError where a secret value is no JSON; objects are made of its brackets and marks alone."""
    shape = bytearray()
    start, stop = _whole(field)
    while token := _TOKEN.match(view, start, stop):
        start = token.end()
        string = token.start(1) + 1, token.end(1) - 1
        if token.end(2) >= 0:
            shape += view[slice(*token.span(2))]
        elif token.end(1) < 0:
            shape += b"0" if _LITERAL.fullmatch(view, *token.span(3)) else b"?"
        elif _CHARACTERS.fullmatch(view, *string) and _UTF_8.fullmatch(view, *string):
            shape += b'""'
        else:
            shape += b"?"
    try:
        json.loads(shape)
    except (ValueError, RecursionError):
        pass
    else:
        return
    raise ValueError("it is no JSON")


def _copies(
    view: memoryview, start: int, stop: int, secret: SecretBuffer
) -> Iterator[tuple[int, int]]:
    """Find where a text repeats a secret."""
    with secret, memoryview(secret) as wanted:
        size = len(wanted)
        while start + size <= stop:
            if view[start] == wanted[0] and view[start : start + size] == wanted:
                yield start, start + size
                start += size
            else:
                start += 1


def _blanked(
    view: memoryview, start: int, stop: int, spans: Sequence[tuple[tuple[int, int], str]]
) -> bytes:
    pieces = []
    for (first, last), instead in spans:
        if first >= start:
            pieces += [bytes(view[start:first]), instead.encode()]
        start = max(start, last)
    return b"".join([*pieces, bytes(view[start:stop])])


def _parse(text: bytes) -> dict[str, Any]:
    document = _json(text)
    if not isinstance(document, dict):
        raise ValueError("it is no JSON object")
    return document


def _json(text: bytes) -> Any:
    try:
        return json.loads(text.decode(), object_pairs_hook=_members)
    except (ValueError, RecursionError):  # whose exceptions hold the text
        pass
    raise ValueError("it is no JSON")


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        raise ValueError("a member is repeated")
    return members


def _unescape(view: memoryview, field: Field) -> Field:
    at = stop = field.start
    for escape in _ESCAPE.finditer(view, field.start, field.stop):
        plain = escape.start() - at
        view[stop : stop + plain] = view[at : escape.start()]
        at = escape.end()
        stop += plain
        # One character of the secret alone.
        try:
            character = _json(b'"%b"' % bytes(view[escape.start() : at])).encode()
        except UnicodeEncodeError:
            character = None
        if character is None:
            raise ValueError("a secret in it is no text in Unicode")
        view[stop : stop + len(character)] = character
        stop += len(character)
    plain = field.stop - at
    view[stop : stop + plain] = view[at : field.stop]
    return field._replace(stop=stop + plain)
