"""Where key bytes stand in the memory of a process that uses them, and that none are left afterwards."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tapeseal import _core
from tapeseal.keyrings.local import create_key_file

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/mem"),
    pytest.mark.skipif(
        not _core.KEY_SCHEDULES_PROTECTED,
        reason="the system's libcrypto, or a sanitizer, has its own memory",
    ),
]

# Keys are looked for by their complement, so that the program that looks holds no copy of them.
SCANNER = """
import os, re, sys

def complement(secret):
    with secret, memoryview(secret) as view:
        return bytes(byte ^ 255 for byte in view)

def regions():
    region = None
    for line in open("/proc/self/smaps"):
        found = re.match(r"([0-9a-f]+)-([0-9a-f]+) (\\S+) \\S+ \\S+ \\S+ *(.*)", line)
        if found:
            region = int(found[1], 16), int(found[2], 16), found[3], found[4]
        elif line.startswith("VmFlags:"):
            yield *region, line.split()[1:]

def find(complements):
    hits = []
    mapped = list(regions())
    with open("/proc/self/mem", "rb", buffering=0) as memory:
        for start, stop, access, name, flags in mapped:
            if "r" not in access or name in ("[vvar]", "[vsyscall]", "[vvar_vclock]"):
                continue
            memory.seek(start)
            try:
                content = bytearray(memory.read(stop - start))
            except OSError:
                continue
            content = content.translate(bytes(byte ^ 255 for byte in range(256)))
            for key, text in complements.items():
                at = content.find(text)
                while at >= 0:
                    hits.append((key, name, "dd" in flags and "lo" in flags))
                    at = content.find(text, at + 1)
    return hits
"""

PROGRAM = """
import numpy as np
import tapeseal
from tapeseal import _core, header

keyring = tapeseal.keyring("local:" + sys.argv[1])
tape = tapeseal.open(sys.argv[2], "x", keyring=keyring, dtype="<u8")
data_key = tape._body.data_key
keys = {"data key": complement(data_key.secret)}
derive = data_key.segment_key
expand = data_key._expand

def spy(label, rest, size):
    derived = expand(label, rest, size)
    keys[label] = complement(derived)[:32]
    return derived

data_key._expand = spy
tape.append(np.arange(100_000, dtype="<u8"))
tape.flush()
in_use = find(keys)
assert {"data key", "segment"} <= {key for key, _, _ in in_use}, in_use
assert all(protected for _, _, protected in in_use), in_use
tape.close()
with tapeseal.open(sys.argv[2], keyring=keyring) as reader:
    reader[:]
assert find(keys) == [], find(keys)
print(sorted(keys))
"""


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "archive.key"
    create_key_file(path)
    return path


def test_keys_stand_in_locked_undumped_pages_alone_and_are_gone_afterwards(
    key_file: Path, tmp_path: Path
) -> None:
    """Data key, segment key and key schedule: nothing in heap, stack or libraries, and nothing after close()."""
    done = subprocess.run(
        [sys.executable, "-c", SCANNER + PROGRAM, key_file, tmp_path / "a.tape"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "['data key', 'segment']\n"
