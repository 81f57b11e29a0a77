"""The short reader that was written from docs/format.md alone, against the test vectors.

It has few of the rules for the header's two texts: of the vectors that break one of these (json-*, content-*, dtype-*,
recipients-*) it refuses most because nothing stands behind their header. format_reader.py has all the rules, and
test_format.py compares where it finds the damage.
"""

import ast
import hashlib
import json
import zlib
from pathlib import Path

import pytest

from page_reader import Refused, read

HERE = Path(__file__).parent
VECTORS = sorted(path.name for path in (HERE / "vectors").iterdir())
OPENING = ("sealed", "open", "torn")


def load(name):
    head, data = (HERE / "vectors" / name).read_bytes().split(b"\n\n", 1)
    stated = dict(line.split(": ", 1) for line in head.decode().split("\n"))
    return stated, zlib.decompress(data) if stated.get("compressed") == "zlib" else data


def read_vector(stated, data):
    keys = {stated["key-id"]: bytes.fromhex(stated["wrapping-key"])}
    return read(data, keys, json.loads(stated.get("expect-context", "{}")))


@pytest.mark.parametrize("name", VECTORS)
def test_outcome_of_a_vector(name):
    """A vector gives the state and the plaintext it states, or is refused."""
    stated, data = load(name)
    if stated["expect"] in OPENING:
        state, plaintext = read_vector(stated, data)
        digest = hashlib.sha256(plaintext).hexdigest()
        assert (stated["expect"], stated["plaintext"]) == (state, digest)
    else:
        with pytest.raises(Refused):
            read_vector(stated, data)


def test_reader_is_short_and_stands_alone():
    """The reader has about 150 lines and imports nothing of the package."""
    text = (HERE / "page_reader.py").read_text()
    assert len(text.splitlines()) <= 165
    nodes = list(ast.walk(ast.parse(text)))
    modules = {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    modules |= {a.name for node in nodes if isinstance(node, ast.Import) for a in node.names}
    assert "tapeseal" not in {(module or "tapeseal").split(".")[0] for module in modules}
