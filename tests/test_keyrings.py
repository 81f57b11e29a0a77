"""Key files, LocalKeyring, AnyOf and keyring(): what they open, what they refuse, what they keep."""

import base64
import copy
import hashlib
import os
import pickle
import re
import select
import stat
import subprocess
import sys
import textwrap
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import tapeseal.datakey
from support import leaks
from tapeseal._core import SecretBuffer
from tapeseal.datakey import DataKey
from tapeseal.errors import (
    InvalidTag,
    KeyUnavailableError,
    LimitError,
    PassphraseError,
    TapesealError,
)
from tapeseal.keyrings import keyring
from tapeseal.keyrings.any_of import AnyOf
from tapeseal.keyrings.local import (
    MAX_FILE_SIZE,
    MAX_KEYS,
    MAX_LINES,
    LocalKeyring,
    add_key,
    create_key_file,
)
from tapeseal.keyrings.passphrase import (
    passphrase_from_env,
    passphrase_from_fd,
    passphrase_from_file,
)
from tapeseal.layout import Recipient

PACKAGE = Path(tapeseal.datakey.__file__).parent
PROJECT = Path(__file__).parent.parent

CONTEXT = {"desk": "eq-us"}
PASSPHRASE = b"correct horse battery staple"
KEY_1 = bytes(range(32))
KEY_2 = hashlib.sha256(b"second key of the example").digest()
DATA_KEY = bytes(range(32, 64))
CREATED = "2026-11-23T14:30:00Z"

# Frozen: made once with the functions below, on `cryptography` alone, with nonces and salts of
# repeated bytes.
ID_1, ID_2 = "f89f38e546796a2f", "d1f727527f750ec0"
PLAIN_FILE = f"""\
tapeseal-keys v1
key {ID_1} created=2026-11-23T14:30:00Z secret={KEY_1.hex()}
key {ID_2} created=2026-12-01T09:00:00Z secret={KEY_2.hex()}
"""
SEALED_FILE = f"""\
tapeseal-keys v1
key {ID_1} created=2026-11-23T14:30:00Z scrypt=17:8:1:{"a0" * 16} sealed={"00" * 12}\
97ae5ca1436e59a5ce272c238d02918b98e7d76c362bfa8cb7fe9a46d33aa94f793c24f48207ddf8b86aa996f09e58d1
key {ID_2} created=2026-12-01T09:00:00Z scrypt=17:8:1:{"a1" * 16} sealed={"01" * 12}\
f6cbea7416509f8a3882a3ba3b088e37a00d8acd2cbd3a023556ce0fe0f542fa71e79774baead038bee9ea6ee698b2d9
"""
WRAPPED = "DAwMDAwMDAwMDAwM1JI52no8TEjr3hpg+q+qEZ6WsdyUUDcOC9Y6OT/6ANDnU2U8WN0oMSB6T4yIhKzs"


# Another implementation of docs/key-file.md


def key_id(key):
    return HKDFExpand(hashes.SHA512(), 8, b"tapeseal/v1 key id\0").derive(key).hex()


def scrypt(passphrase, salt, log2_n, r, p):
    return AESGCM(Scrypt(salt=salt, length=32, n=2**log2_n, r=r, p=p).derive(passphrase))


def key_line(key, passphrase=None, *, created=CREATED, parameters=(10, 1, 1), salt=None):
    """Return the line of a key, under a passphrase as cheaply as the layout allows."""
    start = f"key {key_id(key)} created={created} "
    if passphrase is None:
        return f"{start}secret={key.hex()}\n"
    salt = salt or os.urandom(16)
    start += "scrypt={}:{}:{}:{} sealed=".format(*parameters, salt.hex())
    nonce = os.urandom(12)
    bound = b"tapeseal-keys v1\n" + start.encode()
    sealed = scrypt(passphrase, salt, *parameters).encrypt(nonce, key, bound)
    return f"{start}{(nonce + sealed).hex()}\n"


def read_keys(text, passphrase=None):
    """Return {id: key} of a key file in its order."""
    first, *lines = text.splitlines()
    assert first == "tapeseal-keys v1"
    keys = {}
    for line in lines:
        if line and not line.startswith("#"):
            _, name, _, *rest = line.split(" ")
            if passphrase is None:
                keys[name] = bytes.fromhex(rest[0].removeprefix("secret="))
                continue
            *parameters, salt = rest[0].removeprefix("scrypt=").split(":")
            sealed = bytes.fromhex(rest[1].removeprefix("sealed="))
            cipher = scrypt(passphrase, bytes.fromhex(salt), *map(int, parameters))
            bound = f"{first}\n{line[: line.index('sealed=') + 7]}".encode()
            keys[name] = cipher.decrypt(sealed[:12], sealed[12:], bound)
    return keys


def binding(context):
    pairs = sorted((key.encode(), value.encode()) for key, value in context.items())
    parts = (len(part).to_bytes(4, "little") + part for pair in pairs for part in pair)
    return b"tapeseal/v1 wrap\0" + b"".join(parts)


def wrap(key, data_key=DATA_KEY, context=CONTEXT):
    nonce = os.urandom(12)
    sealed = nonce + AESGCM(key).encrypt(nonce, data_key, binding(context))
    return Recipient("local", key_id(key), base64.b64encode(sealed).decode())


def key_file(path, *lines, mode=0o600):
    path.write_text("tapeseal-keys v1\n" + "".join(lines))
    path.chmod(mode)
    return path


def secret_of(data_key):
    with data_key.secret as secret:
        return bytes(secret)


def opens(ring, recipients, data_key=DATA_KEY):
    return secret_of(ring.unwrap(recipients, CONTEXT)) == data_key


def run(script, *arguments, **options):
    """Run a Python program with this tapeseal and a session, hence no terminal, of its own."""
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(PACKAGE.parent)},
        **{"stdin": subprocess.DEVNULL, **options},
    )


@pytest.fixture
def plain(tmp_path):
    """A key file of two keys."""
    return key_file(tmp_path / "plain.key", key_line(KEY_1), key_line(KEY_2))


@pytest.fixture
def sealed(tmp_path):
    """A key file of two keys under PASSPHRASE."""
    lines = [key_line(key, PASSPHRASE) for key in (KEY_1, KEY_2)]
    return key_file(tmp_path / "sealed.key", *lines)


# The layout


@pytest.mark.parametrize(("text", "passphrase"), [(PLAIN_FILE, None), (SEALED_FILE, PASSPHRASE)])
def test_frozen_files_open(tmp_path, text, passphrase):
    """The frozen key files open the frozen wrapped key."""
    path = tmp_path / "frozen.key"
    path.write_text(text)
    path.chmod(0o600)
    ring = LocalKeyring(path, passphrase)
    assert ring.key_ids == (ID_1, ID_2)
    assert opens(ring, [Recipient("local", ID_1, WRAPPED)])
    assert opens(ring, [wrap(KEY_2)])


@pytest.mark.parametrize(("text", "passphrase"), [(PLAIN_FILE, None), (SEALED_FILE, PASSPHRASE)])
def test_frozen_files_are_what_another_implementation_reads(text, passphrase):
    """The frozen files hold what the layout says, by `cryptography` alone."""
    assert read_keys(text, passphrase) == {ID_1: KEY_1, ID_2: KEY_2}
    assert [key_id(KEY_1), key_id(KEY_2)] == [ID_1, ID_2]
    sealed = base64.b64decode(WRAPPED)
    assert AESGCM(KEY_1).decrypt(sealed[:12], sealed[12:], binding(CONTEXT)) == DATA_KEY


def test_the_page_states_the_frozen_files():
    """The documentation's example is the one that is tested here."""
    page = PROJECT / "docs" / "key-file.md"
    if not page.exists():
        pytest.skip("the documentation is not beside these tests")
    text = page.read_text()
    for stated in (PLAIN_FILE, SEALED_FILE, WRAPPED, PASSPHRASE.decode(), KEY_2.hex()):
        assert stated in text


@pytest.mark.parametrize("passphrase", [None, PASSPHRASE])
def test_another_implementation_reads_what_keygen_writes(tmp_path, passphrase):
    """A new key file, and a key wrapped with it, open by `cryptography` alone."""
    path = tmp_path / "new.key"
    name = create_key_file(path, passphrase)
    keys = read_keys(path.read_text(), passphrase)
    assert [name] == list(keys)
    assert name == key_id(keys[name])
    data_key, [recipient] = LocalKeyring(path, passphrase).generate(CONTEXT)
    assert ("local", name, None, None) == (recipient[:2] + recipient[3:])
    sealed = base64.b64decode(recipient.wrapped, validate=True)
    cipher = AESGCM(keys[name])
    assert secret_of(data_key) == cipher.decrypt(sealed[:12], sealed[12:], binding(CONTEXT))


@pytest.mark.parametrize("parameters", [(15, 1, 1), (10, 3, 5), (12, 2, 1)])
def test_a_file_chooses_how_its_passphrase_is_stretched(tmp_path, parameters):
    """N, r and p are those of the line."""
    path = key_file(tmp_path / "k", key_line(KEY_1, PASSPHRASE, parameters=parameters))
    assert opens(LocalKeyring(path, PASSPHRASE), [wrap(KEY_1)])


def test_comments_and_blank_lines_are_ignored(tmp_path):
    """Lines that are empty or start with # may stand anywhere after the first."""
    path = key_file(
        tmp_path / "k", "\n# é \0\n", key_line(KEY_1), "#key\n\n", key_line(KEY_2), "\n"
    )
    assert LocalKeyring(path).key_ids == (ID_1, ID_2)


def test_the_last_key_wraps(plain):
    """Every key of a file opens, and the last one wraps."""
    ring = LocalKeyring(plain)
    assert ring.generate(CONTEXT)[1][0].key == ID_2
    assert opens(ring, [wrap(KEY_1)])
    assert opens(ring, [wrap(KEY_2)])


def line_with(**changes):
    """Return a sealed line with some of its members replaced."""
    line = key_line(KEY_1, PASSPHRASE)
    for name, value in changes.items():
        line = re.sub(rf"{name}=[^ \n]*", f"{name}={value}", line)
    return line


SALT = "a0" * 16
PLAIN_LINE = key_line(KEY_1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "0 bytes"),
        ("tapeseal-keys v1\n", "holds no key"),
        ("tapeseal-keys v1\n# key\n", "holds no key"),
        ("tapeseal-keys v1", "line 1: the file ends in the middle"),
        ("tapeseal-keys v2\n" + PLAIN_LINE, "line 1: a key file starts with 'tapeseal-keys v1'"),
        ("tapeseal-keys v1\r\n" + PLAIN_LINE, "line 1"),
        ("\ufefftapeseal-keys v1\n" + PLAIN_LINE, "line 1"),
        ("\n" * MAX_LINES, "line 1"),
        (f"tapeseal-keys v1\n{PLAIN_LINE}" + "\n" * (MAX_LINES - 1), "4096 lines"),
        ("tapeseal-keys v1\n" + "#" * MAX_FILE_SIZE, "1048576 are allowed"),
        ("tapeseal-keys v1\n" + PLAIN_LINE[:-1], "line 2: the file ends in the middle"),
        ("tapeseal-keys v1\n" + PLAIN_LINE[:-2] + "\n", "line 2"),
        ("tapeseal-keys v1\n\n" + PLAIN_LINE + PLAIN_LINE, f"line 4: the key {ID_1} is there"),
        ("tapeseal-keys v1\n " + PLAIN_LINE, "line 2"),
        ("tapeseal-keys v1\n" + PLAIN_LINE.replace("\n", " \n"), "line 2"),
        ("tapeseal-keys v1\n" + PLAIN_LINE.replace("\n", "\r\n"), "line 2"),
        ("tapeseal-keys v1\n" + PLAIN_LINE.replace("\n", " note=1\n"), "line 2"),
        ("tapeseal-keys v1\n" + PLAIN_LINE.replace(" created", "  created"), "line 2"),
        ("tapeseal-keys v1\n" + PLAIN_LINE.replace(ID_1, ID_1.upper()), "line 2"),
        ("tapeseal-keys v1\n" + PLAIN_LINE.replace(ID_1, ID_2), f"is not that of the key {ID_2}"),
        ("tapeseal-keys v1\n" + PLAIN_LINE.replace("11-23", "02-30"), "no such time"),
        ("tapeseal-keys v1\n" + PLAIN_LINE.replace("1f\n", "1g\n"), "line 2: the secret is not"),
        ("tapeseal-keys v1\n" + PLAIN_LINE.replace("1f\n", "1e\n"), "line 2: the secret is not"),
        ("tapeseal-keys v1\n" + PLAIN_LINE.replace("1f\n", "\u00e9\n"), "line 2: the secret is"),
        ("tapeseal-keys v1\n" + PLAIN_LINE + key_line(KEY_2, PASSPHRASE), "line 3: either all"),
        ("tapeseal-keys v1\n" + key_line(KEY_2, PASSPHRASE) + PLAIN_LINE, "line 3: either all"),
        ("tapeseal-keys v1\n" + line_with(scrypt=f"9:8:1:{SALT}"), "line 2: its scrypt"),
        ("tapeseal-keys v1\n" + line_with(scrypt=f"21:2:1:{SALT}"), "line 2: its scrypt"),
        ("tapeseal-keys v1\n" + line_with(scrypt=f"16:1:1:{SALT}"), "line 2: its scrypt"),
        ("tapeseal-keys v1\n" + line_with(scrypt=f"10:33:1:{SALT}"), "line 2: its scrypt"),
        ("tapeseal-keys v1\n" + line_with(scrypt=f"10:1:17:{SALT}"), "line 2: its scrypt"),
        ("tapeseal-keys v1\n" + line_with(scrypt=f"20:9:1:{SALT}"), "line 2: its scrypt"),
        ("tapeseal-keys v1\n" + line_with(scrypt=f"19:32:1:{SALT}"), "line 2: its scrypt"),
        (
            "tapeseal-keys v1\n" + line_with(scrypt=f"{'9' * 5000}:1:1:{SALT}"),
            "line 2: it is not a key",
        ),
        ("tapeseal-keys v1\n" + line_with(scrypt=f"010:1:1:{SALT}"), "line 2: it is not a key"),
        ("tapeseal-keys v1\n" + line_with(scrypt=f"10:0:1:{SALT}"), "line 2: it is not a key"),
        ("tapeseal-keys v1\n" + line_with(scrypt=f"10:1:01:{SALT}"), "line 2: it is not a key"),
        ("tapeseal-keys v1\n" + line_with(scrypt=f"10:1:-1:{SALT}"), "line 2: it is not a key"),
        ("tapeseal-keys v1\n" + line_with(scrypt=f"10:1:{SALT}"), "line 2: it is not a key"),
        ("tapeseal-keys v1\n" + line_with(scrypt=f"10:1:1:{SALT[2:]}"), "line 2: it is not a key"),
        (
            "tapeseal-keys v1\n" + line_with(scrypt=f"10:1:1:{SALT.upper()}"),
            "line 2: it is not a key",
        ),
        ("tapeseal-keys v1\n" + line_with(sealed="00" * 59), "line 2"),
        ("tapeseal-keys v1\n" + line_with(sealed="00" * 61), "line 2"),
    ],
)
def test_refuses_what_is_no_key_file(tmp_path, text, message):
    """Whatever the layout does not allow is refused, with the line that holds it."""
    path = tmp_path / "k"
    path.write_text(text, newline="")
    path.chmod(0o600)
    with pytest.raises(KeyUnavailableError, match=re.escape(message)):
        LocalKeyring(path)


@pytest.mark.parametrize("parameters", ["20:8:16", "18:32:1", "10:1:1", "15:1:1", "16:2:1"])
def test_the_most_that_a_file_may_demand(tmp_path, parameters):
    """A gibibyte, 2**20 and the other limits themselves are allowed, and demanded at first use."""
    path = key_file(tmp_path / "k", line_with(scrypt=f"{parameters}:{SALT}"))
    assert LocalKeyring(path).key_ids == (ID_1,)


def test_as_many_keys_as_are_allowed(tmp_path):
    """A file of 1024 keys is read, but takes no further one, and one of 1025 is refused."""
    lines = [key_line(number.to_bytes(32)) for number in range(MAX_KEYS + 1)]
    path = key_file(tmp_path / "k", *lines[:-1])
    assert len(LocalKeyring(path).key_ids) == MAX_KEYS
    before = path.read_bytes()
    with pytest.raises(LimitError, match="1024 keys"):
        add_key(path)
    assert before == path.read_bytes()
    with pytest.raises(KeyUnavailableError, match="line 1026: 1024 keys"):
        LocalKeyring(key_file(path, *lines))


@pytest.mark.parametrize("filler", ["\n" * (MAX_LINES - 2), f"#{'-' * (MAX_FILE_SIZE - 200)}\n"])
def test_a_file_that_would_grow_too_long_takes_no_key(tmp_path, filler):
    """add_key() never writes a file that could not be read again."""
    path = key_file(tmp_path / "k", PLAIN_LINE, filler)
    with pytest.raises(LimitError, match="too long"):
        add_key(path)
    assert LocalKeyring(path).key_ids == (ID_1,)


def swapped_members(name):
    """Return two sealed lines that have exchanged one member."""
    lines = [
        key_line(KEY_1, PASSPHRASE),
        key_line(KEY_2, PASSPHRASE, created="2026-12-01T09:00:00Z"),
    ]
    found = [re.search(rf"{name}[ =]([^ \n]*)", line) for line in lines]
    for at in (0, 1):
        start, stop = found[at].span(1)
        lines[at] = lines[at][:start] + found[1 - at][1] + lines[at][stop:]
    return lines


@pytest.mark.parametrize("name", ["key", "created", "scrypt", "sealed"])
def test_a_sealed_line_is_bound_together(tmp_path, name):
    """No member of a key under a passphrase can be exchanged with that of another."""
    ring = LocalKeyring(key_file(tmp_path / "k", *swapped_members(name)), PASSPHRASE)
    for recipient in (wrap(KEY_1), wrap(KEY_2)):
        with pytest.raises(PassphraseError, match=r"does not open the key .* or line [23]"):
            ring.unwrap([recipient], CONTEXT)


def test_a_sealed_key_must_be_that_of_its_id(tmp_path):
    """A sealed line that was made, with the passphrase, for the id of another key is refused."""
    start = f"key {ID_2} created={CREATED} scrypt=10:1:1:{SALT} sealed="
    cipher = scrypt(PASSPHRASE, bytes.fromhex(SALT), 10, 1, 1)
    line = cipher.encrypt(bytes(12), KEY_1, b"tapeseal-keys v1\n" + start.encode())
    path = key_file(tmp_path / "k", f"{start}{(bytes(12) + line).hex()}\n")
    with pytest.raises(PassphraseError, match="or line 2 was changed"):
        LocalKeyring(path, PASSPHRASE).generate(CONTEXT)


EDITS = st.lists(
    st.tuples(
        st.sampled_from(["replace", "insert", "delete", "copy", "cut"]),
        st.integers(0, 1 << 16),
        st.integers(0, 1 << 16),
        st.one_of(
            st.binary(min_size=1, max_size=3),
            st.sampled_from([b"\n", b"#", b" ", b"key ", b"0", b"A", b"f", b":", b"\r\n"]),
        ),
    ),
    min_size=1,
    max_size=3,
)


def edit(text, edits):
    for kind, at, length, piece in edits:
        at %= len(text) + 1
        end = min(at + length % 80, len(text))
        if kind == "replace":
            text = text[:at] + piece + text[at + len(piece) :]
        elif kind == "insert":
            text = text[:at] + piece + text[at:]
        elif kind == "delete":
            text = text[:at] + text[end:]
        elif kind == "copy":
            text = text[:at] + text[at:end] + text[at:]
        else:
            text = text[:at]
    return text


@pytest.mark.parametrize("passphrase", [None, PASSPHRASE])
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(edits=EDITS)
def test_an_edited_file_never_yields_another_key(tmp_path, passphrase, edits):
    """After any edits a file is refused, or the keys that it yields are unchanged.

    A key under a passphrase is looked at when it is used: until then a changed name of it stands in `key_ids`.
    """
    lines = "".join(key_line(key, passphrase, salt=bytes(16)) for key in (KEY_1, KEY_2))
    text = edit(b"tapeseal-keys v1\n# two keys\n" + lines.encode(), edits)
    # More is allowed, and takes its time.
    assume(not re.search(rb"scrypt=(1[2-9]|2)|scrypt=\d+:(\d\d|\d:\d\d)", text))
    path = tmp_path / "k"
    path.write_bytes(text)
    path.chmod(0o600)
    keys = {ID_1: KEY_1, ID_2: KEY_2}
    try:
        ring = LocalKeyring(path, passphrase)
        for name in ring.key_ids:
            if name in keys:
                assert opens(ring, [wrap(keys[name])])
            else:
                assert passphrase is not None
                with pytest.raises(PassphraseError, match="was changed"):
                    ring.unwrap([wrap(KEY_1)._replace(key=name)], CONTEXT)
        assert opens(ring, ring.wrap(DataKey(SecretBuffer.take(bytearray(DATA_KEY))), CONTEXT))
    except KeyUnavailableError:
        pass


# Who may read the file


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o700])
def test_opens_a_file_of_its_owner_alone(plain, mode):
    """Only the bits of group and others matter."""
    plain.chmod(mode)
    assert LocalKeyring(plain).key_ids[-1] == ID_2


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o610, 0o601, 0o644, 0o666])
def test_refuses_a_file_that_others_have_access_to(plain, mode):
    """One bit for group or others is enough, and the error says what to type."""
    plain.chmod(mode)
    with pytest.raises(KeyUnavailableError, match=f"mode {mode:04o}.*run: chmod 600 {plain}$"):
        LocalKeyring(plain)


def test_the_command_to_type_is_quoted(plain):
    """A path that a shell would take apart is quoted."""
    path = plain.rename(plain.with_name("a key"))
    path.chmod(0o644)
    with pytest.raises(KeyUnavailableError, match=f"chmod 600 '{path}'$"):
        LocalKeyring(path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
@pytest.mark.parametrize("name", ["key", "passphrase"])
def test_refuses_a_file_of_another_user(tmp_path, plain, name):
    """Whoever owns the file could change it."""
    os.chown(plain, 12345, -1)
    read = LocalKeyring if name == "key" else passphrase_from_file
    with pytest.raises(KeyUnavailableError, match=r"another user .uid 12345.*chown 0 "):
        read(str(plain))


def test_follows_symlinks(plain, tmp_path):
    """What a symlink leads to counts, as Kubernetes mounts a secret behind two of them."""
    (tmp_path / "..data").symlink_to(tmp_path)
    (tmp_path / "link").symlink_to(Path("..data") / plain.name)
    assert LocalKeyring(tmp_path / "link").key_ids[-1] == ID_2
    plain.chmod(0o644)
    with pytest.raises(KeyUnavailableError, match="mode 0644"):
        LocalKeyring(tmp_path / "link")


def test_a_missing_file_says_how_to_make_one(tmp_path):
    """The error names the command."""
    path = tmp_path / "no.key"
    with pytest.raises(KeyUnavailableError, match=f"make one with: tapeseal keygen {path}$"):
        LocalKeyring(path)
    with pytest.raises(KeyUnavailableError, match="tapeseal keygen"):
        add_key(path)


@pytest.mark.parametrize("kind", ["directory", "pipe", "device", "loop", "below a file"])
def test_refuses_what_is_no_file(tmp_path, plain, kind):
    """Anything but a regular file is refused, without waiting for a pipe's other end."""
    path = tmp_path / "k"
    if kind == "directory":
        path.mkdir(0o700)
    elif kind == "pipe":
        os.mkfifo(path, 0o600)
    elif kind == "device":
        path = Path("/dev/null")
    elif kind == "loop":
        path.symlink_to(path)
    else:
        path = plain / "k"
    with pytest.raises(KeyUnavailableError, match=r"no regular file|could not be opened"):
        LocalKeyring(path)


# keygen


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o777])
def test_a_new_file_is_its_owners_alone(tmp_path, umask):
    """Created and replaced files have mode 0600 whatever the umask, and nothing stays beside."""
    path = tmp_path / "k"
    old = os.umask(umask)
    try:
        create_key_file(path)
        modes = [stat.S_IMODE(path.stat().st_mode)]
        add_key(path)
        modes.append(stat.S_IMODE(path.stat().st_mode))
    finally:
        os.umask(old)
    assert modes == [0o600, 0o600]
    assert os.listdir(tmp_path) == ["k"]


def test_every_new_key_is_another(tmp_path):
    """No two keys are alike."""
    names = [create_key_file(tmp_path / str(number)) for number in range(20)]
    assert len(set(names)) == 20


@pytest.mark.parametrize("kind", ["file", "empty file", "directory", "symlink to nothing"])
def test_keygen_overwrites_nothing(tmp_path, kind):
    """What stands at the path stays as it is, and the passphrase is not asked for."""
    path = tmp_path / "k"
    if kind == "directory":
        path.mkdir()
    elif kind == "symlink to nothing":
        path.symlink_to(tmp_path / "elsewhere")
    else:
        path.write_text("mine" if kind == "file" else "")
    with pytest.raises(FileExistsError, match=str(path)):
        create_key_file(path, lambda: pytest.fail("asked"))
    assert os.listdir(tmp_path) == ["k"]
    if kind == "file":
        assert path.read_text() == "mine"


def test_of_many_creators_one_wins(tmp_path):
    """When several create one file at once, one does and the others are told."""
    path = tmp_path / "k"
    barrier = threading.Barrier(8)

    def create(_):
        barrier.wait()
        try:
            return create_key_file(path)
        except FileExistsError:
            return None

    with ThreadPoolExecutor(8) as threads:
        names = [name for name in threads.map(create, range(8)) if name]
    assert LocalKeyring(path).key_ids == tuple(names)
    assert os.listdir(tmp_path) == ["k"]


def test_keygen_in_no_directory(tmp_path):
    """An operating system's error passes through."""
    with pytest.raises(FileNotFoundError):
        create_key_file(tmp_path / "no" / "k")


FULL_DISK = """
    import os, resource, signal, sys
    from tapeseal.keyrings.local import add_key, create_key_file
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    for size in sys.argv[3:]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(size), -1))
        try:
            {"add": add_key, "create": create_key_file}[sys.argv[1]](sys.argv[2])
        except OSError as error:
            print(type(error).__name__, os.listdir(os.path.dirname(sys.argv[2])))
"""


def test_a_disk_that_is_full_leaves_no_new_file(tmp_path):
    """A file that could not be written to its end is removed."""
    done = run(FULL_DISK, "create", tmp_path / "k", 0, 30, 130)
    assert (done.stdout, done.stderr) == ("OSError []\n" * 3, "")


def test_a_disk_that_is_full_leaves_the_old_file(plain):
    """A key that could not be added changes nothing."""
    before = plain.read_bytes()
    done = run(FULL_DISK, "add", plain, 0, 30, 300)
    assert (done.stdout, done.stderr) == (f"OSError ['{plain.name}']\n" * 3, "")
    assert before == plain.read_bytes()


def test_add_key_makes_the_new_key_current(plain):
    """What the old keys wrapped still opens; comments stay; a keyring from before goes on."""
    with plain.open("a") as file:
        file.write("# mine\n")
    before, old = plain.read_text(), LocalKeyring(plain)
    name = add_key(plain)
    ring = LocalKeyring(plain)
    assert (ID_1, ID_2, name) == ring.key_ids
    assert opens(ring, [wrap(KEY_1)])
    assert plain.read_text().startswith(before)
    assert name == ring.generate(CONTEXT)[1][0].key
    assert old.generate(CONTEXT)[1][0].key == ID_2


def test_add_key_under_a_passphrase(sealed):
    """The new key is under the passphrase of the others, with the parameters that OWASP names."""
    name = add_key(sealed, PASSPHRASE)
    ring = LocalKeyring(sealed, PASSPHRASE)
    assert (ID_1, ID_2, name) == ring.key_ids
    assert opens(ring, [wrap(KEY_1)])
    assert name == ring.generate(CONTEXT)[1][0].key
    assert re.search(" scrypt=17:8:1:[0-9a-f]{32} ", sealed.read_text().splitlines()[-1])


def test_add_key_needs_the_right_passphrase(sealed):
    """A key is never added under another passphrase than the current key's."""
    before = sealed.read_bytes()
    with pytest.raises(PassphraseError, match=f"does not open the key {ID_2}"):
        add_key(sealed, b"wrong")
    assert before == sealed.read_bytes()


def test_a_passphrase_for_a_file_without_is_refused(plain):
    """A file under no passphrase may stand where one under a passphrase was expected."""
    for function in (LocalKeyring, add_key):
        with pytest.raises(PassphraseError, match="is under none"):
            function(plain, PASSPHRASE)


def test_add_key_replaces_what_a_symlink_leads_to(plain, tmp_path):
    """The symlink stays a symlink."""
    link = tmp_path / "link"
    link.symlink_to(plain.name)
    name = add_key(link)
    assert link.is_symlink()
    assert name == LocalKeyring(plain).key_ids[-1]


def test_add_key_refuses_a_readable_file(plain):
    """A key that was exposed is not carried on in silence."""
    plain.chmod(0o644)
    with pytest.raises(KeyUnavailableError, match="chmod"):
        add_key(plain)


ADD = """
    import sys
    from tapeseal.keyrings.local import add_key
    sys.stdin.read()
    for _ in range(int(sys.argv[2])):
        print(add_key(sys.argv[1]), flush=True)
"""


def test_keys_that_are_added_at_once_are_all_there(tmp_path):
    """Neither processes nor threads that add keys to one file lose any."""
    path = tmp_path / "k"
    names = [create_key_file(path)]
    adding = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(ADD), str(path), "20"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(PACKAGE.parent)},
        )
        for _ in range(2)
    ]
    for process in adding:
        process.stdin.close()
        process.stdin = None
    with ThreadPoolExecutor(2) as threads:
        names += threads.map(lambda _: add_key(path), range(20))
    for process in adding:
        names += process.communicate(timeout=60)[0].split()
    assert len(names) == 61
    assert sorted(names) == sorted(LocalKeyring(path).key_ids)
    assert os.listdir(tmp_path) == ["k"]


KILL = """
    import os, random, signal, sys, time
    from pathlib import Path
    from tapeseal.keyrings.local import LocalKeyring, add_key, create_key_file

    rounds, directory, seed = int(sys.argv[1]), Path(sys.argv[2]), random.Random(int(sys.argv[3]))
    added = 0
    for number in range(rounds):
        path = directory / str(number)
        names = [create_key_file(path)]
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            while True:
                os.write(writing, add_key(path).encode())
        os.close(writing)
        time.sleep(seed.uniform(0, 0.02))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        told = os.read(reading, 1 << 16).decode()
        os.close(reading)
        names += (told[at : at + 16] for at in range(0, len(told), 16))
        had = LocalKeyring(path).key_ids
        # The key after the last that was told may be there, or not.
        assert list(had[: len(names)]) == names and len(had) <= len(names) + 1, (names, had)
        names.append(add_key(path))
        assert LocalKeyring(path).key_ids[-1] == names[-1]
        added += len(names)
    print(rounds if added > 2 * rounds else "no key was ever added", len(os.listdir(directory)))
"""


@pytest.mark.parametrize("rounds", [25, pytest.param(500, marks=pytest.mark.slow)])
def test_killed_at_any_instant(tmp_path, rounds):
    """However add_key() is killed, the file is whole, and the next call leaves nothing beside it."""
    done = run(KILL, rounds, tmp_path, 7)
    assert (f"{rounds} {rounds}\n", "") == (done.stdout, done.stderr)


# Passphrases


@pytest.mark.parametrize(
    "passphrase",
    [
        PASSPHRASE,
        bytearray(PASSPHRASE),
        lambda: PASSPHRASE,
        lambda: SecretBuffer.take(bytearray(PASSPHRASE)),
    ],
    ids=["bytes", "bytearray", "function", "function of a secret"],
)
def test_a_passphrase_opens(sealed, passphrase):
    """Bytes and a function that returns them open both keys, more than once."""
    ring = LocalKeyring(sealed, passphrase)
    for key in (KEY_1, KEY_2, KEY_1):
        assert opens(ring, [wrap(key)])


def test_a_passphrase_is_asked_for_once_and_when_needed(sealed):
    """The function is called at the first use of a key, not before and not again."""
    calls = []
    ring = LocalKeyring(sealed, lambda: calls.append(1) or PASSPHRASE)
    assert calls == []
    with pytest.raises(KeyUnavailableError, match="no recipient"):
        ring.unwrap([wrap(bytes(32))], CONTEXT)
    assert calls == []
    ring.generate(CONTEXT)
    ring.unwrap([wrap(KEY_1)], CONTEXT)
    assert calls == [1]


def test_a_wrong_answer_is_not_kept(sealed):
    """After a wrong passphrase the function is asked again."""
    answers = [b"wrong", PASSPHRASE]
    ring = LocalKeyring(sealed, lambda: answers.pop(0))
    with pytest.raises(PassphraseError, match=f"does not open the key {ID_2}"):
        ring.generate(CONTEXT)
    assert opens(ring, ring.wrap(DataKey(SecretBuffer.take(bytearray(DATA_KEY))), CONTEXT))


def test_a_function_is_not_asked_for_a_file_without(plain):
    """A file that needs no passphrase asks for none."""
    ring = LocalKeyring(plain, lambda: pytest.fail("asked"))
    assert opens(ring, [wrap(KEY_1)])


@pytest.mark.parametrize(
    ("passphrase", "error"),
    [
        (b"", PassphraseError),
        (bytes(4097), PassphraseError),
        ("text", TypeError),
        (5, TypeError),
        (lambda: "text", TypeError),
        (lambda: b"", PassphraseError),
        (b"wrong", PassphraseError),
        (PASSPHRASE + b"\n", PassphraseError),
    ],
)
def test_refuses_other_passphrases(sealed, passphrase, error):
    """A passphrase is 1 to 4096 bytes, and the right ones."""
    with pytest.raises(error, match="passphrase"):
        LocalKeyring(sealed, passphrase).generate(CONTEXT)


def test_the_longest_passphrase(tmp_path):
    """4096 bytes of any value are a passphrase, from every source but the environment."""
    longest = bytes(range(256)) * 16
    path = key_file(tmp_path / "k", key_line(KEY_1, longest))
    source = tmp_path / "p"
    source.write_bytes(longest + b"\n")
    source.chmod(0o600)
    assert opens(LocalKeyring(path, longest), [wrap(KEY_1)])
    assert opens(LocalKeyring(path, passphrase_from_file(str(source))), [wrap(KEY_1)])


@pytest.mark.parametrize("end", [b"", b"\n"])
def test_passphrase_from_a_file(sealed, tmp_path, end):
    """A passphrase file may end with a newline; its path may be percent-encoded."""
    source = tmp_path / "a%b&c+d"
    source.write_bytes(PASSPHRASE + end)
    source.chmod(0o600)
    ring = keyring(f"local:{sealed}?passphrase_file={tmp_path}/a%25b%26c+d")
    assert opens(ring, [wrap(KEY_1)])


def test_passphrase_from_a_named_pipe(sealed, tmp_path):
    """A named pipe is waited for, as a shell's <(command) needs it."""
    os.mkfifo(tmp_path / "p", 0o600)
    with ThreadPoolExecutor(1) as threads:
        writing = threads.submit((tmp_path / "p").write_bytes, PASSPHRASE + b"\n")
        ring = keyring(f"local:{sealed}?passphrase_file={tmp_path}/p")
        writing.result()
    assert opens(ring, [wrap(KEY_1)])


def test_passphrase_from_a_descriptor(sealed):
    """A passphrase is read from a pipe to its end, however it comes, and the pipe stays open."""
    reading, writing = os.pipe()
    try:
        with ThreadPoolExecutor(1) as threads:
            made = threads.submit(keyring, f"local:{sealed}?passphrase_fd={reading}")
            for piece in (PASSPHRASE[:5], PASSPHRASE[5:], b"\n"):
                os.write(writing, piece)
            os.close(writing)
            ring = made.result()
        os.fstat(reading)
    finally:
        os.close(reading)
    assert opens(ring, [wrap(KEY_1)])


def test_passphrase_from_the_environment(sealed, monkeypatch):
    """A variable is taken as it is, when the URI names it."""
    monkeypatch.setenv("TAPE_PASSPHRASE", PASSPHRASE.decode())
    assert opens(keyring(f"local:{sealed}?passphrase_env=TAPE_PASSPHRASE"), [wrap(KEY_1)])


@pytest.mark.parametrize("content", [b"", b"\n", bytes(4097), bytes(4097) + b"\n", bytes(9000)])
def test_refuses_an_empty_or_endless_passphrase(tmp_path, content):
    """A source must hold 1 to 4096 bytes."""
    source = tmp_path / "p"
    source.write_bytes(content)
    source.chmod(0o600)
    with pytest.raises(PassphraseError, match="1 to 4096 bytes"):
        passphrase_from_file(str(source))


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644])
def test_refuses_a_passphrase_file_that_others_have_access_to(tmp_path, mode):
    """A passphrase file is kept as closely as a key file."""
    source = tmp_path / "p"
    source.write_bytes(PASSPHRASE)
    source.chmod(mode)
    with pytest.raises(KeyUnavailableError, match=f"passphrase file .*chmod 600 {source}$"):
        passphrase_from_file(str(source))


def test_refuses_sources_that_are_not_there(tmp_path):
    """A missing file, descriptor or variable is named."""
    with pytest.raises(KeyUnavailableError, match=r"no passphrase file .*/p; is the path right"):
        passphrase_from_file(str(tmp_path / "p"))
    with pytest.raises(KeyUnavailableError, match=r"passphrase file .* is no regular file or pipe"):
        passphrase_from_file(str(tmp_path))
    with pytest.raises(PassphraseError, match="descriptor 987654: Bad file descriptor"):
        passphrase_from_fd(987654)
    with pytest.raises(PassphraseError, match="variable NO_SUCH_PASSPHRASE"):
        passphrase_from_env("NO_SUCH_PASSPHRASE")


def test_a_passphrase_without_a_terminal(sealed):
    """Where nobody can be asked, the error says how to give the passphrase."""
    script = """
        import sys
        from tapeseal.keyrings import keyring
        try:
            keyring("local:" + sys.argv[1]).generate({})
        except Exception as error:
            print(type(error).__name__, error)
    """
    done = run(script, sealed)
    assert done.stderr == ""
    assert re.match("PassphraseError .*no terminal.*passphrase_file=PATH", done.stdout)


def at_a_terminal(script, path, *answers):
    """Run a program at a terminal, give the answers when it prompts, and return its output."""
    master, slave = os.openpty()
    opening = "import os, sys\nos.close(os.open(os.ttyname(0), os.O_RDWR))\n"
    process = subprocess.Popen(
        [sys.executable, "-c", opening + textwrap.dedent(script), str(path)],
        stdin=slave,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(PACKAGE.parent)},
    )
    os.close(slave)
    screen = b""
    try:
        for answer in answers:
            shown = b""
            while not shown.endswith(b": "):
                assert select.select([master], [], [], 30)[0], screen + shown
                shown += os.read(master, 1024)
            screen += shown
            os.write(master, answer + b"\n")
        output, errors = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
        os.close(master)
    assert errors == ""
    assert all(answer not in screen for answer in answers if answer)
    return output.strip(), screen.decode()


def test_a_passphrase_from_the_terminal(sealed):
    """The terminal is asked, unseen, naming the file."""
    script = """
        from tapeseal.keyrings import keyring
        print(keyring("local:" + sys.argv[1]).generate({})[1][0].key)
    """
    output, screen = at_a_terminal(script, sealed, PASSPHRASE)
    assert output == ID_2
    assert f"Passphrase of {sealed}: " in screen


@pytest.mark.parametrize(
    ("answers", "outcome"),
    [
        ((b"s\xc3\xa9same", b"s\xc3\xa9same"), "73c3a973616d65"),
        ((b"sesame", b"seesaw"), "the two passphrases are not the same"),
        ((b"",), "a passphrase has 1 to 4096 bytes of text"),
        ((b"\xff\xfe",), "a passphrase has 1 to 4096 bytes of text"),
    ],
)
def test_a_passphrase_is_confirmed(tmp_path, answers, outcome):
    """Two equal answers are a passphrase; no error holds what was typed."""
    script = """
        from tapeseal.keyrings.passphrase import passphrase_from_terminal
        from tapeseal.errors import PassphraseError
        try:
            with passphrase_from_terminal("New passphrase: ", confirm=True) as secret:
                print(bytes(secret).hex())
        except PassphraseError as error:
            assert error.__context__ is None
            print(error)
    """
    assert outcome == at_a_terminal(script, "", *answers)[0]


# Wrapping and unwrapping


@pytest.mark.parametrize(
    "context", [{}, {"desk": "eq-us"}, {"desk": "é", "a": ""}, {"b": "1", "a": "2"}]
)
def test_wrap_and_unwrap(plain, context):
    """What a keyring wrapped it unwraps, under the same pairs in any order."""
    ring = LocalKeyring(plain)
    data_key, recipients = ring.generate(context)
    again = ring.wrap(data_key, context)
    assert recipients != again
    for wrapped in (recipients, again):
        unwrapped = ring.unwrap(wrapped, dict(reversed(context.items())))
        assert secret_of(data_key) == secret_of(unwrapped)


@pytest.mark.parametrize(
    "context", [{}, {"desk": "eq-eu"}, {"desk": "eq-us", "a": ""}, {"deske": "q-us"}]
)
def test_a_wrapped_key_is_bound_to_its_context(plain, context):
    """Under other pairs a wrapped key does not open."""
    ring = LocalKeyring(plain)
    with pytest.raises(InvalidTag):
        ring.unwrap(ring.generate(CONTEXT)[1], context)


GOOD = wrap(KEY_1)
FOREIGN = wrap(bytes(32))
RAW = base64.b64decode(GOOD.wrapped)


def changed(**members):
    return GOOD._replace(**members)


def encoded(raw):
    return changed(wrapped=base64.b64encode(raw).decode())


CHANGED = {
    "one bit": encoded(RAW[:-1] + bytes([RAW[-1] ^ 1])),
    "another of our keys": changed(key=ID_2),
    "cut": encoded(RAW[:-1]),
    "longer": encoded(RAW + b"\0"),
    "empty": changed(wrapped=""),
    "a tag alone": encoded(RAW[:28]),
    "32 bytes more": wrap(KEY_1, DATA_KEY * 2),
    "31 bytes": wrap(KEY_1, DATA_KEY[:31]),
    "a newline": changed(wrapped=GOOD.wrapped + "\n"),
    "a space": changed(wrapped=" " + GOOD.wrapped),
    "padding": changed(wrapped=GOOD.wrapped + "===="),
    "other alphabet": changed(wrapped="-_" + GOOD.wrapped[2:]),
    "not ASCII": changed(wrapped="é" + GOOD.wrapped[1:]),
}


@pytest.mark.parametrize("recipient", CHANGED.values(), ids=CHANGED)
def test_a_changed_recipient_does_not_open(plain, recipient):
    """A recipient that names our key and holds anything else than was wrapped is InvalidTag."""
    with pytest.raises(InvalidTag):
        LocalKeyring(plain).unwrap([recipient], CONTEXT)


@pytest.mark.parametrize(
    "recipients",
    [
        [FOREIGN, GOOD],
        [CHANGED["one bit"], GOOD],
        [changed(provider="aws-kms"), GOOD],
        [changed(wrapped=None), GOOD],
        [changed(share=(0, 2, 1)), GOOD],
        [GOOD, CHANGED["one bit"]],
    ],
)
def test_the_first_recipient_that_opens(plain, recipients):
    """Recipients that do not open are passed over for one that does."""
    assert opens(LocalKeyring(plain), recipients)


@pytest.mark.parametrize(
    "recipient",
    [
        FOREIGN,
        changed(provider="public-key"),
        changed(provider="Local"),
        changed(wrapped=None),
        changed(share=(0, 2, 1)),
        changed(key=ID_1.upper()),
        changed(key=""),
    ],
)
def test_no_recipient_is_ours(plain, recipient):
    """Without a wrapping of the key by one of ours, the error names both sides' keys."""
    with pytest.raises(KeyUnavailableError, match=f"{plain} has {ID_1}, {ID_2}") as caught:
        LocalKeyring(plain).unwrap([recipient], CONTEXT)
    assert f"{recipient.provider}:{recipient.key}" in str(caught.value)
    assert not isinstance(caught.value, PassphraseError)


def test_few_of_many_names_are_told(tmp_path):
    """An error names four recipients and four keys at most, and says how many more there are."""
    path = key_file(tmp_path / "k", *(key_line(bytes([number] * 32)) for number in range(6)))
    ring = LocalKeyring(path)
    recipients = [changed(key=f"other {number}") for number in range(7)]
    with pytest.raises(KeyUnavailableError) as caught:
        ring.unwrap(recipients, CONTEXT)
    assert str(caught.value) == (
        "no recipient is one of ours: the recipients are local:other 0, local:other 1, "
        f"local:other 2, local:other 3 and 3 more; the key file {path} has "
        f"{', '.join(ring.key_ids[:4])} and 2 more"
    )


def test_a_key_that_does_not_open_does_not_hide_another(sealed):
    """A damaged line of a key file leaves the keys of the other lines usable."""
    lines = sealed.read_text().splitlines(keepends=True)
    key_file(sealed, lines[1].replace(CREATED, "2020-01-01T00:00:00Z"), lines[2])
    ring = LocalKeyring(sealed, PASSPHRASE)
    assert opens(ring, [wrap(KEY_1), wrap(KEY_2)])
    with pytest.raises(PassphraseError, match="or line 2 was changed"):
        ring.unwrap([wrap(KEY_1), FOREIGN], CONTEXT)


def test_a_failed_wrap_leaves_no_data_key(sealed, monkeypatch):
    """When wrapping fails the generated data key is wiped."""
    made = []
    generate = DataKey.generate
    monkeypatch.setattr(DataKey, "generate", lambda: made.append(generate()) or made[0])
    with pytest.raises(PassphraseError):
        LocalKeyring(sealed, b"wrong").generate(CONTEXT)
    assert [key.secret.closed for key in made] == [True]


def test_threads_share_a_keyring(sealed):
    """Eight threads that meet keys still unopened get what one gets, and ask once."""
    calls = []
    ring = LocalKeyring(sealed, lambda: calls.append(1) or PASSPHRASE)
    recipients = [wrap(key) for key in (KEY_1, KEY_2)] * 100
    with ThreadPoolExecutor(8) as threads:
        opened = list(threads.map(lambda recipient: opens(ring, [recipient]), recipients))
    assert opened == [True] * 200
    assert calls == [1]


FORK = """
    import os, sys, threading
    from tapeseal.errors import ForkError
    from tapeseal.keyrings.local import LocalKeyring

    def slow():
        asked.set()
        go.wait()
        return b"correct horse battery staple"

    asked, go = threading.Event(), threading.Event()
    ring = LocalKeyring(sys.argv[1], slow if sys.argv[2] == "sealed" else None)
    thread = threading.Thread(target=ring.generate, args=({},))
    thread.start()
    # Forks while the other thread holds the keyring's lock.
    if sys.argv[2] == "sealed":
        asked.wait()
    else:
        thread.join()
    child = os.fork()
    if child == 0:
        try:
            ring.generate({})
        except ForkError as error:
            print(error, flush=True)
            LocalKeyring(sys.argv[1], lambda: b"correct horse battery staple").generate({})
            os._exit(0)
        os._exit(1)
    code = os.waitpid(child, 0)[1]
    go.set()
    thread.join()
    ring.generate({})
    sys.exit(code)
"""


@pytest.mark.parametrize("name", ["plain", "sealed"])
def test_a_fork_gets_an_error(plain, sealed, name):
    """A child is told to make its own keyring, and can; the parent's goes on."""
    done = run(FORK, {"plain": plain, "sealed": sealed}[name], name)
    assert (done.returncode, re.sub(r"(?m)^.*DeprecationWarning.*\n.*\n", "", done.stderr)) == (
        0,
        "",
    )
    assert done.stdout == "this keyring belongs to the process that made it; make one in the fork\n"


# Several keyrings


@pytest.fixture
def rings(tmp_path):
    """Three keyrings over key files of their own."""
    names = ["a", "b", "c"]
    for name in names:
        create_key_file(tmp_path / name)
    return [LocalKeyring(tmp_path / name) for name in names]


def test_each_of_any_of_opens(rings):
    """What all wrapped opens with each alone, with any of them and with all."""
    data_key, recipients = AnyOf(rings).generate(CONTEXT)
    assert [ring.key_ids[-1] for ring in rings] == [recipient.key for recipient in recipients]
    for ring in (*rings, AnyOf(rings), AnyOf(rings[::-1]), AnyOf(rings[1:2])):
        assert opens(ring, recipients, secret_of(data_key))


def test_any_of_wraps_for_all(rings):
    """An existing data key is wrapped by every keyring."""
    data_key = DataKey.generate()
    recipients = AnyOf(rings).wrap(data_key, CONTEXT)
    assert len(recipients) == 3
    assert all(opens(ring, recipients, secret_of(data_key)) for ring in rings)


def test_any_of_opens_what_one_wrapped(rings):
    """One recipient is enough."""
    data_key, recipients = rings[2].generate(CONTEXT)
    assert opens(AnyOf(rings), recipients, secret_of(data_key))


def test_any_of_passes_over_a_keyring_that_fails(rings, sealed):
    """Neither a changed recipient nor a wrong passphrase keeps the next keyring from opening."""
    data_key, recipients = AnyOf(rings).generate(CONTEXT)
    recipients[0] = recipients[0]._replace(wrapped=recipients[1].wrapped)
    both = AnyOf([LocalKeyring(sealed, b"wrong"), *rings])
    assert opens(both, [wrap(KEY_1), *recipients], secret_of(data_key))


def test_none_of_any_of_opens(rings, sealed):
    """A changed recipient outweighs a missing key; a passphrase is told from a missing key."""
    wrong = LocalKeyring(sealed, b"wrong")
    _, recipients = rings[0].generate(CONTEXT)
    with pytest.raises(InvalidTag):
        AnyOf([*rings, wrong]).unwrap([recipients[0], wrap(KEY_1)], {})
    with pytest.raises(KeyUnavailableError, match=r"none of the keyrings.*/b has .*/c has") as one:
        AnyOf(rings[1:]).unwrap(recipients, CONTEXT)
    assert not isinstance(one.value, PassphraseError)
    with pytest.raises(PassphraseError, match=r"none of the keyrings.*/b has .*does not open"):
        AnyOf([rings[1], wrong]).unwrap([wrap(KEY_1)], CONTEXT)
    with pytest.raises(KeyUnavailableError, match=r"^no recipient is one of ours"):
        AnyOf(rings[1:2]).unwrap(recipients, CONTEXT)


def test_any_of_needs_all_to_wrap(rings, sealed, monkeypatch):
    """When one cannot wrap, nothing is generated, and the data key is wiped."""
    made = []
    generate = DataKey.generate
    monkeypatch.setattr(DataKey, "generate", lambda: made.append(generate()) or made[0])
    with pytest.raises(PassphraseError):
        AnyOf([*rings, LocalKeyring(sealed, b"wrong")]).generate(CONTEXT)
    assert [key.secret.closed for key in made] == [True]


def test_any_of_none():
    """There is no keyring over none."""
    with pytest.raises(ValueError, match="needs a keyring"):
        AnyOf([])


# keyring()


def test_keyring_of_a_path(plain, tmp_path, monkeypatch):
    """A path may be relative, and percent-encoded where it must be."""
    monkeypatch.chdir(tmp_path)
    assert opens(keyring("local:plain.key"), [wrap(KEY_1)])
    plain.rename("a?b%c:d e+é")
    assert opens(keyring("local:a%3Fb%25c:d e+é"), [wrap(KEY_1)])
    assert isinstance(keyring(f"local:{tmp_path}/a%3fb%25c%3Ad%20e%2B%C3%A9"), LocalKeyring)


def test_keyring_of_a_list(plain, tmp_path):
    """A list is AnyOf, a list of one is that one."""
    create_key_file(tmp_path / "other")
    both = keyring([f"local:{tmp_path}/other", f"local:{plain}"])
    assert isinstance(both, AnyOf)
    assert opens(both, [wrap(KEY_1)])
    assert both.generate(CONTEXT)[1][1].key == ID_2
    assert isinstance(keyring([f"local:{plain}"]), LocalKeyring)


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("", "starts with one of: local:"),
        ("archive.key", "local:PATH is that of a key file"),
        ("/etc/archive.key", "local:PATH is that of a key file"),
        (":archive.key", "starts with one of"),
        ("Local:archive.key", "starts with one of"),
        ("no/provider:at all", "starts with one of"),
        ("gcp-kms:alias/x?region=eu", "no gcp-kms: keyrings in this version, only: local:"),
        ("local:", "needs the path"),
        ("local:?passphrase_fd=0", "needs the path"),
        ("local:x?passphrase=SECRET", "no parameter 'passphrase', only passphrase_file"),
        ("local:x?SECRET", "NAME=VALUE"),
        ("local:x?passphrase_fd=1&passphrase_fd=1", "each name once"),
        ("local:x?passphrase_fd=1&", "NAME=VALUE"),
        ("local:x?passphrase_fd=1&passphrase_env=X", "only one of passphrase_file"),
        ("local:x?passphrase_fd=SECRET", "not the number"),
        ("local:x?passphrase_fd=-1", "not the number"),
        ("local:x?passphrase_fd=", "not the number"),
        ("local:x%", "percent sign"),
        ("local:x%4", "percent sign"),
        ("local:x?passphrase_file=100%", "percent sign"),
    ],
)
def test_refuses_other_uris(uri, message):
    """A URI that names no keyring is refused, without repeating what may be a secret in it."""
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        keyring(uri)
    assert "SECRET" not in str(caught.value)


def test_refuses_no_uris():
    """An empty list is no keyring."""
    with pytest.raises(ValueError, match="needs a keyring"):
        keyring([])


def test_what_a_passphrase_needs_is_imported_for_a_passphrase(plain):
    """A key file under none opens without `cryptography`, and no other provider's needs load."""
    script = """
        import sys
        from tapeseal.keyrings import keyring
        keyring("local:" + sys.argv[1]).generate({})
        print(sorted({"cryptography", "boto3", "hvac"} & sys.modules.keys()))
    """
    assert run(script, plain).stdout == "[]\n"


# What must not get out


CANARY = hashlib.sha256(b"canary").digest()
CANARY_PASSPHRASE = b"the canary sings at noon"


def canary_errors(tmp_path):
    """Make every kind of error with a key, or a passphrase, that is to be found in none."""
    line, under = key_line(CANARY), key_line(CANARY, CANARY_PASSPHRASE)
    for bad in (
        line[:-1],
        line[:-3] + "\n",
        line[:-2] + "x\n",
        line.replace(key_id(CANARY), ID_1),
        line + line,
        line + under,
        line.replace("secret=", "secret= "),
        line.replace("\n", "00\n"),
        line.replace("secret=", "sealed="),
        line.replace("-11-23", "-11-31"),
        "key\n" + line,
        line + "key\n",
    ):
        yield lambda bad=bad: LocalKeyring(key_file(tmp_path / "k", bad))
    yield lambda: LocalKeyring(key_file(tmp_path / "k", line, mode=0o644))
    yield lambda: LocalKeyring(key_file(tmp_path / "k", line)).unwrap([wrap(KEY_1)], {})
    yield lambda: LocalKeyring(key_file(tmp_path / "k", line)).unwrap([wrap(CANARY)], {})
    yield lambda: LocalKeyring(key_file(tmp_path / "k", line), CANARY_PASSPHRASE)
    yield lambda: LocalKeyring(key_file(tmp_path / "k", line), CANARY_PASSPHRASE.decode())
    yield lambda: add_key(key_file(tmp_path / "k", line), CANARY_PASSPHRASE)
    yield lambda: LocalKeyring(tmp_path / "none", CANARY_PASSPHRASE)
    yield lambda: LocalKeyring(tmp_path / "none", bytearray(CANARY_PASSPHRASE))
    yield lambda: LocalKeyring(key_file(tmp_path / "k", under), CANARY_PASSPHRASE * 200)
    yield lambda: create_key_file(tmp_path / "k", CANARY_PASSPHRASE)
    yield lambda: create_key_file(tmp_path / "no" / "k", CANARY_PASSPHRASE)

    changed = under.replace(CREATED, "2020-01-01T00:00:00Z")

    def wrong(passphrase):
        return LocalKeyring(key_file(tmp_path / "k", changed), passphrase).generate({})

    yield lambda: wrong(CANARY_PASSPHRASE)
    yield lambda: wrong(lambda: CANARY_PASSPHRASE)
    yield lambda: wrong(SecretBuffer.take(bytearray(CANARY_PASSPHRASE)))
    yield lambda: wrong(lambda: CANARY_PASSPHRASE * 200)
    yield lambda: add_key(key_file(tmp_path / "k", changed), CANARY_PASSPHRASE)
    source = tmp_path / "p"
    source.write_bytes(CANARY_PASSPHRASE * 200)
    source.chmod(0o600)
    yield lambda: passphrase_from_file(str(source))


def test_no_error_shows_a_secret(tmp_path):
    """No error, nor its causes, nor our variables in its traceback, holds a key or a passphrase."""
    hexadecimal = CANARY.hex()
    secrets = [hexadecimal[:16], hexadecimal[-16:-4], repr(CANARY)[2:-1], "canary sings"]
    errors = []
    for make in canary_errors(tmp_path):
        with pytest.raises((TapesealError, ValueError, TypeError, OSError)) as caught:
            make()
        errors.append(caught.value)
    assert [set()] * len(errors) == [leaks(error, secrets) for error in errors]


def test_the_leak_check_finds_leaks(tmp_path):
    """The check of the test above sees what an error of ours holds."""
    with pytest.raises(KeyUnavailableError) as caught:
        LocalKeyring(tmp_path / "canary sings")
    assert {"canary sings"} == leaks(caught.value, ["canary sings", "other"])


def test_a_keyring_is_not_copied(plain, rings):
    """Pickles and copies are refused, and the repr shows the path and the public id alone."""
    ring = LocalKeyring(plain)
    for take in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="neither pickled nor copied"):
            take(ring)
    with pytest.raises(TypeError, match="neither pickled nor copied"):
        pickle.dumps(AnyOf(rings))
    assert f"<LocalKeyring {plain}>" == repr(ring)
    assert f"AnyOf([{ring!r}])" == repr(AnyOf([ring]))


HOLD = """
    import gc, sys
    from functools import partial
    from tapeseal.keyrings.local import LocalKeyring, add_key
    from tapeseal.keyrings.passphrase import passphrase_from_file
    from tapeseal.layout import Recipient

    def stop(say):
        gc.collect()
        print(say, flush=True)
        sys.stdin.readline()

    path, source, *recipient = sys.argv[1:]
    ask = partial(passphrase_from_file, source)
    ring = LocalKeyring(path, ask)
    ring.unwrap([Recipient("local", *recipient)], {"desk": "eq-us"})
    ring.generate({})
    stop("open")
    del ring
    add_key(path, ask)
    stop("closed")
    shown = open(source, "rb").read()
    stop("shown")
"""


def holds(pid, secrets):
    """Return which secrets stand in a process's memory."""
    found = set()
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", 0) as memory:
        for line in maps:
            start, stop = (int(end, 16) for end in line.split()[0].split("-"))
            if line.split()[1][0] != "r" or "[v" in line:
                continue
            memory.seek(start)
            try:
                content = memory.read(stop - start)
            except OSError:
                continue
            found |= {name for name, secret in secrets.items() if secret in content}
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="looks at a process through /proc")
@pytest.mark.skipif(
    "TAPESEAL_SANITIZE" in os.environ, reason="the sanitizer keeps freed memory, and maps terabytes"
)
@pytest.mark.parametrize(
    "name", ["sealed", *(pytest.param(name, marks=pytest.mark.slow) for name in ("plain", "long"))]
)
def test_no_secret_stays_in_memory(tmp_path, name):
    """Of an open keyring only the ciphers' own keys stand in memory, of a dropped one nothing.

    Of a passphrase nothing is left once the keys are open, after a new key was put under it neither.
    """
    # Not the frozen ones, whose sequences stand in some table of any process.
    key, other, data_key = (os.urandom(32) for _ in range(3))
    passphrase = os.urandom(16).hex().encode() * (4 if name == "long" else 1)
    under = None if name == "plain" else passphrase
    path = key_file(tmp_path / "k", key_line(key, under), key_line(other, under))
    source = tmp_path / "p"
    source.write_bytes(passphrase + b"\n")
    source.chmod(0o600)
    recipient = wrap(key, data_key)
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(HOLD), path, source, *recipient[1:3]],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(PACKAGE.parent)},
    )
    secrets = {
        "key": key,
        "digits of the key": key.hex().encode(),
        "other key": other,
        "digits of the other key": other.hex().encode(),
        "data key": data_key,
        "passphrase": passphrase[:32],
    }
    with process:
        assert process.stdout.readline() == b"open\n"
        try:
            held = holds(process.pid, secrets)
        except PermissionError:
            process.kill()
            pytest.skip("the memory of another process may not be read here")
        found = [held]
        for stage in (b"closed\n", b"shown\n"):
            process.stdin.write(b"\n")
            process.stdin.flush()
            assert process.stdout.readline() == stage
            found.append(holds(process.pid, secrets))
        process.stdin.close()
        process.stdin = None
    # The last shows that a passphrase would have been found.
    assert [{"key", "other key"}, set(), {"passphrase"}] == found
    assert process.returncode == 0
