"""Finds the secret of a JSON answer without making a Python object of it, and blanks it."""

import base64
import json
import re
from typing import Any, Final, NamedTuple

PLACEHOLDER: Final = b"tapeseal placeholder of a secret"
PLACEHOLDER_TEXT: Final = base64.b64encode(PLACEHOLDER).decode("ascii")

# A quote outside a string starts one, so that strings, and names among them, are found from left to
# right whatever stands between; that the whole is JSON is checked once the secret is out.
_STRING = re.compile(rb'[^"]*+("(?:[^"\\]|\\.)*+")[ \t\r\n]*+(:)?', re.DOTALL)
_VALUE = re.compile(rb'[ \t\r\n]*+(?:"((?:[^"\\]|\\.)*+)"|null)', re.DOTALL)
_ESCAPE = re.compile(rb'\\(?:["\\/bfnrt]|u[0-9A-Fa-f]{4})')
_BASE64_RUN = re.compile(rb"[A-Za-z0-9+/]{40,}+={0,2}")


class Field(NamedTuple):
    """A secret string: its name, and where its characters stand."""

    name: str
    start: int
    stop: int


def redact(view: memoryview, start: int, stop: int) -> tuple[bytes, Field | None]:
    """Return a JSON object's text with a placeholder for the secret in it, and that secret.

    The secret is the one member, of the object or of the object in its member "data", whose name
    ends in "plaintext". Escapes in it are resolved in place.

    Args:
        view: writable, holds the text from start to stop.

    Raises:
        ValueError: the text is no JSON object, repeats a member, or has such a member elsewhere,
            several of them, or one that is neither a string nor null.
    """
    fields = _secrets(view, start, stop)
    text = _blanked(view, start, stop, [(span, PLACEHOLDER_TEXT) for _, *span in fields])
    document = _parse(text)
    if not fields:
        return text, None
    field = fields[0]
    parents = [each for each in (document, document.get("data")) if isinstance(each, dict)]
    if len(fields) > 1 or all(parent.get(field.name) != PLACEHOLDER_TEXT for parent in parents):
        raise ValueError("it has more than one secret, or one where none belongs")
    return text, _unescape(view, field)


def redact_error(view: memoryview, start: int, stop: int, *, echo: bool = False) -> bytes:
    """Return an error's JSON text with a placeholder for each secret in it, wherever it stands.

    Args:
        view: holds the text from start to stop.
        echo: the request held a secret too, and each long run of base64 is blanked as well.

    Raises:
        ValueError: the text is no JSON object, or a secret is neither a string nor null.
    """
    spans = [(span, PLACEHOLDER_TEXT) for _, *span in _secrets(view, start, stop)]
    if echo:
        ends = [start, *(end for span, _ in spans for end in span), stop]
        for between in zip(ends[::2], ends[1::2], strict=True):
            spans += [(list(run.span()), "...") for run in _BASE64_RUN.finditer(view, *between)]
        spans.sort()
    text = _blanked(view, start, stop, spans)
    _parse(text)
    return text


def _secrets(view: memoryview, start: int, stop: int) -> list[Field]:
    fields = []
    while string := _STRING.match(view, start, stop):
        start = string.end()
        if string.end(2) < 0:
            continue
        name = _json(bytes(view[slice(*string.span(1))]))
        if name.casefold().endswith("plaintext"):
            value = _VALUE.match(view, start, stop)
            if value is None:
                raise ValueError("its secret is no string")
            start = value.end()
            if value.end(1) >= 0:
                fields.append(Field(name, *value.span(1)))
    return fields


def _blanked(view: memoryview, start: int, stop: int, spans: list[tuple[list[int], str]]) -> bytes:
    pieces = []
    for (first, last), instead in spans:
        pieces += [bytes(view[start:first]), instead.encode()]
        start = last
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
        # One character of the secret alone, which Python keeps anyway; beyond ASCII is no base64.
        character = ord(_json(b'"%b"' % bytes(view[escape.start() : at])))
        view[stop + plain] = min(character, 255)
        stop += plain + 1
    plain = field.stop - at
    view[stop : stop + plain] = view[at : field.stop]
    return Field(field.name, field.start, stop + plain)
