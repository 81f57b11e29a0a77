"""The two texts of a header, for the reader that was written from docs/format.md alone: sections 2, 3.2 and 3.3."""

import json
import re
import struct
from typing import Any


class Stop(Exception):
    """Reading ends here."""

    def __init__(self, offset: int | None, outcome: str = "damaged") -> None:
        super().__init__(outcome)
        self.offset, self.outcome = offset, outcome


def need(condition: Any, offset: int | None, outcome: str = "damaged") -> None:
    if not condition:
        raise Stop(offset, outcome)


def parse_json(text: bytes, at: int) -> Any:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        need(len(dict(pairs)) == len(pairs), at)
        return dict(pairs)

    def check(value: Any, depth: int) -> None:
        if isinstance(value, str):
            value.encode()
        elif isinstance(value, list | dict):
            need(depth <= 8, at)
            for part in [*value, *(value.values() if isinstance(value, dict) else [])]:
                check(part, depth + 1)

    need(sum(map(text.count, (b",", b"[", b"{"))) <= 8192, at)
    whole = {"parse_float": lambda _: need(False, at), "parse_constant": lambda _: need(False, at)}
    try:
        value = json.loads(text.decode(), object_pairs_hook=unique, **whole)
        check(value, 1)
    except (ValueError, RecursionError):
        raise Stop(at) from None
    return value


def number(value: Any, low: int, high: int) -> bool:
    return type(value) is int and low <= value <= high


PLAIN = re.compile(
    r"\|b1|\|[iu]1|[<>]([iu][248]|f[248]|c8|c16)|\|[SV][1-9][0-9]{0,6}|[<>]U[1-9][0-9]{0,6}"
    r"|[<>][mM]8(\[([1-9][0-9]{0,8})?(Y|M|W|D|h|m|s|ms|us|ns|ps|fs|as)\])?"
)


def type_size(kind: Any, at: int, fields: list[Any]) -> int:
    """The size of a type; its fields are added to the list."""
    if isinstance(kind, str):
        need(PLAIN.fullmatch(kind), at)
        size = int(kind.partition("[")[0][2:]) * (4 if kind[1] == "U" else 1)
    else:
        need(isinstance(kind, list), at)
        size, names = 0, []
        for field in kind:
            fields.append(field)
            need(isinstance(field, list) and 2 <= len(field) <= 3, at)
            name, inner, shape = [*field, [1]][:3]
            need(isinstance(name, str) and isinstance(shape, list) and 1 <= len(shape) <= 32, at)
            need(all(number(extent, 1, 1 << 20) for extent in shape), at)
            padding = isinstance(inner, str) and inner[:2] == "|V" and len(field) == 2
            need(name or padding, at)
            names += [name] if name else []
            part = type_size(inner, at, fields)
            for extent in shape:
                part *= extent
            size += part
        need(names and len(set(names)) == len(names) and len(fields) <= 1024, at)
    need(size <= 1 << 20, at)
    return size


def encode(context: dict[str, str]) -> bytes:
    pairs = sorted((name.encode(), value.encode()) for name, value in context.items())
    return b"".join(struct.pack("<I", len(part)) + part for pair in pairs for part in pair)


CREATED = r"[0-9]{4}-[01][0-9]-[0-3][0-9]T[0-2][0-9]:[0-5][0-9]:[0-6][0-9]Z"
MEMBERS = "created kind dtype frame_size index_by codec encryption_context"


def parse_content(text: bytes, at: int) -> tuple[str, int, int, int, dict[str, str]]:
    """Kind, frame_size, item size, size of the field of index_by, encryption context."""
    value = parse_json(text, at)
    need(isinstance(value, dict) and value.keys() == set(MEMBERS.split()), at)
    created, kind, dtype, size, index_by, codec, context = (value[m] for m in MEMBERS.split())
    need(isinstance(created, str) and re.fullmatch(CREATED, created) and codec is None, at)
    need(kind in ("records", "bytes", "rows") and kind != ("bytes" if dtype else "records"), at)
    item_size, bound_size = 1 if dtype is None else type_size(dtype, at, []), 0
    need(number(size, max(4096, item_size), 1 << 26), at)
    if index_by is not None:
        need(isinstance(index_by, str) and index_by and isinstance(dtype, list), at)
        found = next((field[1:] for field in dtype if field[0] == index_by), [None])
        need(kind == "records" and len(found) == 1 and isinstance(found[0], str), at)
        need(found[0][1] in "iufmM", at)
        bound_size = type_size(found[0], at, [])
    need(isinstance(context, dict) and len(context) <= 64, at)
    for name, text_value in context.items():
        need(isinstance(text_value, str) and not name.startswith("tapeseal:"), at)
    need(len(encode(context)) <= 8192, at)
    return kind, size, item_size, bound_size, context


def parse_recipients(text: bytes, at: int) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = parse_json(text, at)
    need(isinstance(entries, list) and 1 <= len(entries) <= 64, at)
    thresholds: dict[int, int] = {}
    for entry in entries:
        need(isinstance(entry, dict), at)
        vault = {"binding"} if entry.get("provider") == "vault-transit" else set()
        needed = (
            {"provider", "key", "pending"}
            if "pending" in entry
            else {"provider", "key", "wrapped"} | vault
        )
        need(needed <= entry.keys() <= needed | vault | {"share"}, at)
        need(all(isinstance(entry[name], str) for name in needed - {"pending"}), at)
        need(
            entry.get("pending", True) is True and len(entry.get("wrapped", "").encode()) <= 8192,
            at,
        )
        need(entry.get("binding", "context") in ("context", "associated_data"), at)
        share = entry.get("share", {"group": len(entries), "threshold": 1, "index": 1})
        need(isinstance(share, dict) and share.keys() == {"group", "threshold", "index"}, at)
        need(all(number(share[name], name != "group", 255) for name in ("threshold", "index")), at)
        need(number(share["group"], 0, 2**32 - 1), at)
        if "share" in entry:
            need(
                thresholds.setdefault(share["group"], share["threshold"]) == share["threshold"], at
            )
    return entries
