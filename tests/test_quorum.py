"""Shamir's shares in the core, Quorum, AnyOf with a minimum, and completing what is pending."""

import itertools
import logging
import os
import shutil
import subprocess
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tapeseal
from support import TESTS, child
from tapeseal import AnyOf, DataKey, LocalKeyring, Quorum, Recipient
from tapeseal._core import SecretBuffer, combine_shares, split_secret
from tapeseal.errors import (
    DamagedError,
    InvalidTag,
    KeyUnavailableError,
    LimitError,
    PassphraseError,
    ServiceUnavailableError,
)
from tapeseal.header import read_file
from tapeseal.keyrings import local
from tapeseal.keyrings.public_key import PublicKeyKeyring, create_key_pair

CONTEXT = {"desk": "eq-us"}
CORE = TESTS.parent / "_core"

# Another implementation: tables of logarithms to the base 3.

EXP = [1]
for _ in range(254):
    double = EXP[-1] << 1 ^ (0x11B if EXP[-1] & 0x80 else 0)
    EXP.append(double ^ EXP[-1])
LOG = {power: exponent for exponent, power in enumerate(EXP)}


def times(a: int, b: int) -> int:
    return EXP[(LOG[a] + LOG[b]) % 255] if a and b else 0


def over(a: int, b: int) -> int:
    return EXP[(LOG[a] - LOG[b]) % 255] if a else 0


def value_at(coefficients: Sequence[int], x: int) -> int:
    """Return what a polynomial, its constant first, is at x."""
    powers = itertools.accumulate(itertools.repeat(x, len(coefficients) - 1), times, initial=1)
    total = 0
    for coefficient, power in zip(coefficients, powers, strict=True):
        total ^= times(coefficient, power)
    return total


def interpolate(points: dict[int, int], x: int) -> int:
    """Return what the polynomial of least degree through points is at x."""
    total = 0
    for here, value in points.items():
        for other in points:
            if other != here:
                value = times(value, over(x ^ other, here ^ other))
        total ^= value
    return total


def secret(data: bytes) -> SecretBuffer:
    return SecretBuffer.take(bytearray(data))


def revealed(buffer: SecretBuffer) -> bytes:
    with buffer:
        return bytes(memoryview(buffer))


def combined(shares: dict[int, bytes]) -> bytes:
    return revealed(combine_shares([secret(each) for each in shares.values()], bytes(shares)))


def parts(data: bytes, threshold: int, indices: Sequence[int]) -> dict[int, bytes]:
    shares = split_secret(secret(data), threshold, bytes(indices))
    return dict(zip(indices, map(revealed, shares), strict=True))


# The arithmetic


def test_all_products() -> None:
    """Each byte times each weight is what the tables say; at 0 the share at a weighs b / (a + b)."""
    every = bytes(range(256))
    weights = {}
    for b in range(1, 256):
        for a in range(1, 256):
            if a != b:
                weights.setdefault(over(b, a ^ b), (a, b))
    assert weights.keys() == set(range(2, 256))
    for weight, (a, b) in weights.items():
        product = bytes(times(each, weight) for each in every)
        assert product == combined({a: every, b: bytes(256)}), weight
    assert every == combined({77: every})


def test_known_polynomials() -> None:
    """A line and a parabola that were worked out by hand give their constants."""
    # 0x53 + 0xCA x at 1, 2 and 3: 0xCA * 2 = 0x8F.
    line = {1: b"\x99", 2: b"\xdc", 3: b"\x16"}
    for pair in itertools.combinations(line, 2):
        assert combined({index: line[index] for index in pair}) == b"\x53"
    # 0x42 + 0x01 x + 0x80 x^2 at 1, 2 and 4: 0x80 * 4 = 0x36, 0x80 * 16 = 0xD8.
    assert combined({1: b"\xc3", 2: b"\x76", 4: b"\x9e"}) == b"\x42"


@given(data=st.data())
def test_combining_is_interpolation(data: st.DataObject) -> None:
    """Any shares at any points give what the other implementation gives."""
    size = data.draw(st.integers(1, 40))
    indices = data.draw(st.lists(st.integers(1, 255), min_size=1, max_size=12, unique=True))
    shares = {index: data.draw(st.binary(min_size=size, max_size=size)) for index in indices}
    expected = [
        interpolate({index: share[i] for index, share in shares.items()}, 0) for i in range(size)
    ]
    assert bytes(expected) == combined(shares)


@pytest.mark.parametrize(
    ("threshold", "count"), [(1, 1), (1, 3), (2, 2), (2, 3), (3, 5), (4, 7), (7, 7)]
)
def test_every_subset(threshold: int, count: int) -> None:
    """Any shares as many as the threshold, or more, give the secret; any fewer give something else."""
    data = os.urandom(32)
    indices = [1, 255, 2, 128, 77, 3, 254][:count]
    shares = parts(data, threshold, indices)
    for size in range(1, count + 1):
        for subset in itertools.combinations(indices, size):
            got = combined({index: shares[index] for index in subset})
            assert (got == data) == (size >= threshold), subset


def test_shares_are_of_one_polynomial() -> None:
    """The shares lie on polynomials of the right degree whose other coefficients are random bytes."""
    data = os.urandom(20000)
    shares = parts(data, 3, range(1, 7))
    first, second = set(), set()
    for i in range(len(data)):
        points = {index: shares[index][i] for index in (1, 2, 3)}
        assert interpolate(points, 0) == data[i]
        if i < 500:
            assert [interpolate(points, x) for x in (4, 5, 6)] == [shares[x][i] for x in (4, 5, 6)]
        # f(x) = c + b x + a x^2, so that (f(1) - c) + (f(2) - c) / 2 = 3 a, and a + b = f(1) - c.
        a = over(points[1] ^ data[i] ^ over(points[2] ^ data[i], 2), 3)
        second.add(a)
        first.add(points[1] ^ data[i] ^ a)
    # The chance that one of 256 values is missing among as many as 20000 is below 10^-30.
    assert first == second == set(range(256))


def test_coefficients_are_new() -> None:
    """Two splits of one secret have nothing in common."""
    data = os.urandom(32)
    first, second = parts(data, 2, [1, 2]), parts(data, 2, [1, 2])
    assert first.keys() == second.keys()
    assert not set(first.values()) & set(second.values())
    assert combined({1: first[1], 2: second[2]}) != data


def test_all_255() -> None:
    """There are as many shares as there are points."""
    data = os.urandom(32)
    shares = parts(data, 255, range(1, 256))
    assert combined(shares) == data
    del shares[255]
    assert combined(shares) != data


@pytest.mark.parametrize(
    ("threshold", "indices"),
    [(0, [1]), (-1, [1]), (2, [1]), (3, [1, 2]), (1, []), (1, [0]), (2, [1, 2, 1])],
)
def test_refuses_other_splits(threshold: int, indices: list[int]) -> None:
    """More shares than there are, none, the point of the secret itself and a point twice are refused."""
    with pytest.raises(ValueError, match=r"not possible|different numbers from 1 to 255"):
        split_secret(secret(bytes(32)), threshold, bytes(indices))


def test_refuses_other_shares() -> None:
    """Shares of other numbers or sizes, and closed ones, are refused."""
    one, other = secret(bytes(32)), secret(bytes(32))
    for shares, indices in (([], b""), ([one], b"\0"), ([one, other], b"\1\1")):
        with pytest.raises(ValueError, match="different numbers"):
            combine_shares(shares, indices)
    with pytest.raises(ValueError, match="2 shares and 1 indices"):
        combine_shares([one, other], b"\1")
    with pytest.raises(ValueError, match="different sizes"):
        combine_shares([one, secret(bytes(31))], b"\1\2")
    other.close()
    with pytest.raises(ValueError, match="closed"):
        combine_shares([one, other], b"\1\2")
    with pytest.raises(ValueError, match="closed"):
        split_secret(other, 1, b"\1")


def test_a_fork_gets_no_share() -> None:
    """Neither splitting nor combining works in a fork on its parent's secrets."""
    script = """
        import os, warnings
        from tapeseal._core import SecretBuffer, combine_shares, split_secret
        from tapeseal.errors import ForkError
        warnings.simplefilter("ignore")
        one = SecretBuffer.random(32)
        if child := os.fork():
            print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
            raise SystemExit
        refused = 0
        for call in (lambda: split_secret(one, 1, b"a"), lambda: combine_shares([one], b"a")):
            try:
                call()
            except ForkError:
                refused += 1
        os._exit(refused)
    """
    assert child(script).stdout == "2\n"


def test_constant_time(tmp_path: Path) -> None:
    """No branch and no index depends on a secret, a coefficient or a share: valgrind would say so."""
    if not CORE.exists() or not shutil.which("valgrind") or not shutil.which("gcc"):
        pytest.skip("the source of the core, gcc and valgrind are needed")
    sources = [str(TESTS / "native" / "shares_driver.c"), str(CORE / "shares.c")]
    codes = []
    for name, extra in (("driver", []), ("leak", ["-DLEAK"])):
        program = str(tmp_path / name)
        compile = ["gcc", "-O2", "-g", "-Wall", "-Wextra", "-Wconversion", "-Werror", f"-I{CORE}"]
        subprocess.run([*compile, *extra, "-o", program, *sources], check=True)
        valgrind = ["valgrind", "--quiet", "--error-exitcode=9", "--leak-check=full", program]
        codes.append(subprocess.run(valgrind, capture_output=True).returncode)
    assert codes[0] == 0
    assert codes[1] != 0  # It finds what is there to be found.


# Moving what another library hands back


def test_bytes_are_moved() -> None:
    """The secret has the bytes; that the object is wiped a search of all memory shows, see test_public_key.py."""
    holder = [os.urandom(48)]
    expected = bytes(bytearray(holder[0]))
    moved = SecretBuffer.take_bytes(holder.pop())
    assert expected == revealed(moved)


def test_bytes_of_others_are_left_alone() -> None:
    """What somebody else holds, constants and the single bytes that Python keeps are refused, unchanged."""
    mine = os.urandom(32)
    before = bytes(bytearray(mine))
    for shared in (mine, b"constant", b"", b"a"):
        with pytest.raises(ValueError, match="somebody else's"):
            SecretBuffer.take_bytes(shared)
    assert mine == before


# Quorum


def secret_of(key: DataKey) -> bytes:
    with key.secret as secret:
        return bytes(memoryview(secret))


def opens(keyring: tapeseal.Keyring, recipients: Sequence[Recipient], expected: bytes) -> bool:
    with keyring.unwrap(recipients, CONTEXT) as key:
        return secret_of(key) == expected


@pytest.fixture
def rings(tmp_path: Path) -> list[LocalKeyring]:
    """Four keyrings over key files of their own, named a to d."""
    made = []
    for name in "abcd":
        local.create_key_file(tmp_path / name)
        made.append(LocalKeyring(tmp_path / name))
    return made


@pytest.fixture
def away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], LocalKeyring]:
    """Make a keyring that cannot wrap, its passphrase being wrong, or with `right` the one that can."""
    monkeypatch.setattr(local, "LOG2_N", 10)  # So that it takes no time.

    def make(name: str, passphrase: bytes = b"wrong") -> LocalKeyring:
        path = tmp_path / f"away-{name}"
        if not path.exists():
            local.create_key_file(path, b"right")
        return LocalKeyring(path, passphrase)

    return make


@pytest.mark.parametrize("threshold", [2, 3, 4])
def test_any_keyrings_as_many_as_the_threshold(rings: list[LocalKeyring], threshold: int) -> None:
    """As many keyrings open it, given as AnyOf or as Quorum, in any order; fewer do not."""
    data_key, recipients = Quorum(threshold, rings).generate(CONTEXT)
    assert [(0, threshold, index) for index in (1, 2, 3, 4)] == [each.share for each in recipients]
    expected = secret_of(data_key)
    for size in range(1, 5):
        for some in itertools.permutations(rings, size):
            if size >= threshold:
                assert opens(AnyOf(some), recipients, expected)
                assert opens(Quorum(2, some), recipients, expected)
            else:
                with pytest.raises(KeyUnavailableError, match=f"any {threshold} shares of group 0"):
                    AnyOf(some).unwrap(recipients, CONTEXT)
    for ring in rings:
        with pytest.raises(KeyUnavailableError, match=r"\(a share\)"):
            ring.unwrap(recipients, CONTEXT)


def test_no_keyring_gets_the_key(rings: list[LocalKeyring]) -> None:
    """What each keyring has is a share and not the key, new for every key."""
    data_key, recipients = Quorum(2, rings).generate(CONTEXT)
    again = Quorum(2, rings).wrap(data_key, CONTEXT)
    seen = {secret_of(data_key)}
    for each, ring in zip([*recipients, *again], [*rings, *rings], strict=True):
        seen.add(secret_of(ring.unwrap([each._replace(share=None)], CONTEXT)))
    assert len(seen) == 9


def test_a_quorum_holds_several_keys_to_a_share(rings: list[LocalKeyring]) -> None:
    """Keyrings of one share are as good as each other, and make no two shares."""
    data_key, recipients = Quorum(2, [AnyOf(rings[:2]), *rings[2:]]).generate(CONTEXT)
    assert [1, 1, 2, 3] == [each.share[2] for each in recipients]
    a, b, c, d = rings
    for pair in ([a, c], [b, c], [d, b], [c, d]):
        assert opens(AnyOf(pair), recipients, secret_of(data_key))
    with pytest.raises(KeyUnavailableError, match=r"any 2 shares of group 0.* 1 could be had"):
        AnyOf([a, b]).unwrap(recipients, CONTEXT)


def test_mixtures(rings: list[LocalKeyring]) -> None:
    """Groups and plain recipients stand beside each other; each group counts for itself."""
    a, b, c, d = rings
    mixed = AnyOf([Quorum(2, [a, b]), d, AnyOf([Quorum(2, [b, c]), Quorum(3, [a, b, c])])])
    data_key, recipients = mixed.generate(CONTEXT)
    groups = [each.share and each.share[0] for each in recipients]
    assert [0, 0, None, 1, 1, 2, 2, 2] == groups
    expected = secret_of(data_key)
    for enough in ([d], [a, b], [b, c], [c, b, a], [d, a]):
        assert opens(AnyOf(enough), recipients, expected)
    assert opens(mixed, recipients, expected)
    with pytest.raises(KeyUnavailableError, match=r"group 0 .*group 1 .*group 2"):
        AnyOf([a, c]).unwrap(recipients, CONTEXT)
    assert [each[:2] for each in recipients] == [each[:2] for each in mixed.pending()]
    assert groups == [each.share and each.share[0] for each in mixed.pending()]


def test_keyrings_of_a_quorum_open_together_with_others(rings: list[LocalKeyring]) -> None:
    """A share of a nested quorum's keyring counts with one of a keyring beside it."""
    a, b, c, d = rings
    data_key, recipients = Quorum(2, [a, d]).generate(CONTEXT)
    assert opens(AnyOf([Quorum(2, [a, b]), Quorum(2, [c, d])]), recipients, secret_of(data_key))


def test_a_changed_share_is_passed_over(rings: list[LocalKeyring]) -> None:
    """A share that does not open costs nothing while others are enough, and is reported when they are not."""
    data_key, recipients = Quorum(2, rings[:3]).generate(CONTEXT)
    recipients[0] = recipients[0]._replace(wrapped=recipients[1].wrapped)
    assert opens(AnyOf(rings), recipients, secret_of(data_key))
    with pytest.raises(InvalidTag):
        AnyOf(rings[:2]).unwrap(recipients, CONTEXT)
    with pytest.raises(InvalidTag):
        AnyOf(rings[:3]).unwrap(recipients, {})


def write(path: Path, keyring: tapeseal.Keyring) -> bytes:
    """Write a sealed tape and return its body."""
    records = np.arange(1000, dtype="<u8")
    with tapeseal.open(path, "w", keyring=keyring, dtype="<u8", encryption_context=CONTEXT) as tape:
        tape.append(records)
    return body_of(path)


def body_of(path: Path) -> bytes:
    with path.open("rb") as file:
        return path.read_bytes()[read_file(file.fileno()).body :]


def read(path: Path, keyring: tapeseal.Keyring) -> int:
    with tapeseal.open(path, keyring=keyring) as tape:
        return int(tape[:].sum())


TOTAL = 999 * 1000 // 2


class Sharing:
    """A keyring that writes what a test says down for its recipients: a header's MAC is right for it."""

    def __init__(self, keyring: tapeseal.Keyring, change: Callable[..., list[Recipient]]) -> None:
        self.keyring = keyring
        self.change = change

    def generate(self, encryption_context):
        data_key, recipients = self.keyring.generate(encryption_context)
        return data_key, self.change(recipients)


def test_a_wrong_share_is_tampering(tmp_path: Path, rings: list[LocalKeyring]) -> None:
    """The first shares that open count: a forged one among them is found by the MAC, behind them unseen."""
    forged = DataKey.generate()

    def forge(recipients: list[Recipient]) -> list[Recipient]:
        wrong = rings[1].wrap(forged, CONTEXT)[0]
        return [recipients[0], wrong._replace(share=recipients[1].share), recipients[2]]

    write(tmp_path / "t", Sharing(Quorum(2, rings[:3]), forge))
    for some in (rings[:2], rings[:3], rings[1:3]):
        with pytest.raises(DamagedError, match="MAC is wrong"):
            read(tmp_path / "t", AnyOf(some))
    assert read(tmp_path / "t", AnyOf([rings[0], rings[2]])) == TOTAL


@pytest.mark.parametrize(
    "share",
    [(0, 1, 1), (0, 2, 9), (7, 2, 2), None],
    ids=["threshold", "index", "group", "taken for the key"],
)
def test_changed_shares_are_tampering(
    tmp_path: Path, rings: list[LocalKeyring], share: tuple[int, int, int] | None
) -> None:
    """A share under another number or threshold, or as the key itself, does not open the tape."""

    def change(recipients: list[Recipient]) -> list[Recipient]:
        if share is not None and share[1] == 1:
            return [each._replace(share=(0, 1, each.share[2])) for each in recipients]
        return [recipients[0], recipients[1]._replace(share=share)]

    write(tmp_path / "t", Sharing(Quorum(2, rings[:2]), change))
    with pytest.raises((DamagedError, KeyUnavailableError)):
        read(tmp_path / "t", AnyOf(rings))


def test_a_tape_of_a_quorum(tmp_path: Path, rings: list[LocalKeyring]) -> None:
    """A tape opens, goes on, and is rewrapped with any two of three, and with no single one."""
    a, b, c, d = rings
    path = tmp_path / "t"
    body = write(path, Quorum(2, [a, b, c]))
    for pair in itertools.combinations([a, b, c], 2):
        assert read(path, AnyOf(pair)) == TOTAL
    for single in (a, b, c, AnyOf([a]), AnyOf([b, d])):
        with pytest.raises(KeyUnavailableError):
            read(path, single)
    assert tapeseal.verify(path, keyring=AnyOf([c, a])).ok
    tapeseal.rewrap(path, keyring=AnyOf([a, c]), to=AnyOf([Quorum(2, [a, b]), d]))
    assert body == body_of(path)
    assert read(path, d) == read(path, AnyOf([a, b])) == TOTAL
    with pytest.raises(KeyUnavailableError):
        read(path, AnyOf([a, c]))


def test_blobs_and_rows_of_a_quorum(rings: list[LocalKeyring]) -> None:
    """A blob and rows under a quorum open with as many keyrings."""
    quorum = Quorum(2, rings[:3])
    assert (
        tapeseal.decrypt(tapeseal.encrypt(b"x", keyring=quorum), keyring=AnyOf(rings[1:])) == b"x"
    )
    records = np.arange(10, dtype="<u8")
    rows = tapeseal.RowEncryptor(quorum, dtype="<u8")
    sealed = rows.encrypt(records)
    opened = tapeseal.RowDecryptor(rows.header, keyring=AnyOf(rings[:2])).decrypt(sealed)
    assert opened.tobytes() == records.tobytes()


@pytest.mark.parametrize("threshold", [-1, 0, 1, 5])
def test_refuses_other_thresholds(rings: list[LocalKeyring], threshold: int) -> None:
    """One of several is AnyOf, and more than there are is nothing."""
    with pytest.raises(ValueError, match=f"a quorum of {threshold} of 4"):
        Quorum(threshold, rings)


def test_refuses_a_quorum_of_quorums(rings: list[LocalKeyring]) -> None:
    """A share cannot be shared again, whatever is between."""
    inner = Quorum(2, rings)
    for nested in ([inner, rings[0]], [rings[0], AnyOf([rings[1], AnyOf([inner])])]):
        with pytest.raises(ValueError, match="holds no other"):
            Quorum(2, nested)


def test_refuses_two_shares_for_one_key(tmp_path: Path, rings: list[LocalKeyring]) -> None:
    """One key that held two shares would open a quorum of two alone."""
    same = LocalKeyring(tmp_path / "a")
    for each in ([rings[0], same], [rings[1], rings[0], AnyOf([rings[2], same])]):
        for call in (lambda q: q.generate(CONTEXT), lambda q: q.pending()):
            with pytest.raises(ValueError, match=f"local:{same.key_ids[0]} would hold two shares"):
                call(Quorum(2, each))


def test_too_many_shares_for_a_header(tmp_path: Path, rings: list[LocalKeyring]) -> None:
    """What a header cannot hold is refused, and no file is left."""
    names = [tmp_path / f"k{number}" for number in range(65)]
    for name in names:
        local.create_key_file(name)
    with pytest.raises((ValueError, LimitError), match="1 to 64"):
        write(tmp_path / "t", Quorum(2, [LocalKeyring(name) for name in names]))
    assert not (tmp_path / "t").exists()


def closed_secrets(monkeypatch: pytest.MonkeyPatch) -> list[DataKey]:
    """Note every DataKey that is made from now on."""
    made: list[DataKey] = []
    init = DataKey.__init__

    def note(self: DataKey, secret: SecretBuffer) -> None:
        init(self, secret)
        made.append(self)

    monkeypatch.setattr(DataKey, "__init__", note)
    return made


def test_shares_are_wiped(
    rings: list[LocalKeyring],
    away: Callable[..., LocalKeyring],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever happens, no share outlives its use, and no key that nobody gets."""
    made = closed_secrets(monkeypatch)
    data_key, recipients = Quorum(2, rings).generate(CONTEXT)
    assert [False, True, True, True, True] == [key.secret.closed for key in made]
    opened = AnyOf(rings).unwrap(recipients, CONTEXT)
    assert [True, True, False] == [key.secret.closed for key in made[5:]]
    with pytest.raises(KeyUnavailableError):
        AnyOf(rings[:1]).unwrap(recipients, CONTEXT)
    with pytest.raises(PassphraseError):
        Quorum(2, [*rings, away("e")]).generate(CONTEXT)
    assert {True} == {key.secret.closed for key in made[8:]}
    assert len(made) == 8 + 1 + 6
    opened.close()
    data_key.close()


def test_no_error_shows_a_share(rings: list[LocalKeyring]) -> None:
    """No error's text, nor a variable of ours in its traceback, holds a share or a key."""
    data_key, recipients = Quorum(3, rings).generate(CONTEXT)
    secrets = [repr(secret_of(data_key))[2:-1]]
    for each, ring in zip(recipients, rings, strict=True):
        secrets.append(repr(secret_of(ring.unwrap([each._replace(share=None)], CONTEXT)))[2:-1])
    with pytest.raises(KeyUnavailableError) as caught:
        AnyOf(rings[:2]).unwrap(recipients, CONTEXT)
    shown = "".join(
        traceback.TracebackException.from_exception(caught.value, capture_locals=True).format()
    )
    assert "group 0" in shown
    assert not [each for each in secrets if each in shown]
    assert f"Quorum(3, {rings!r})" == repr(Quorum(3, rings))


# AnyOf with a minimum, and completing


def test_pending_names_what_wrap_gives(rings: list[LocalKeyring]) -> None:
    """Each keyring names its recipients as it wraps for them, and wraps nothing."""
    data_key = DataKey.generate()
    for ring in (rings[0], AnyOf(rings), Quorum(2, rings), AnyOf([Quorum(2, rings[1:]), rings[0]])):
        named = ring.pending()
        assert [None] * len(named) == [each.wrapped for each in named]
        wrapped = ring.wrap(data_key, CONTEXT)
        assert [each._replace(wrapped=None) for each in wrapped] == named


@pytest.mark.parametrize("position", [0, 1, 2])
def test_a_keyring_that_is_away_is_pending(
    rings: list[LocalKeyring],
    away: Callable[..., LocalKeyring],
    caplog: pytest.LogCaptureFixture,
    position: int,
) -> None:
    """Also where it is the first: the next one generates. The log says which, and why."""
    keyrings = rings[:2]
    keyrings.insert(position, away("e"))
    with caplog.at_level(logging.WARNING):
        data_key, recipients = AnyOf(keyrings, minimum=2).generate(CONTEXT)
    assert [each.key_ids[0] for each in keyrings] == [each.key for each in recipients]
    assert [position] == [i for i, each in enumerate(recipients) if each.wrapped is None]
    for ring in rings[:2]:
        assert opens(ring, recipients, secret_of(data_key))
    (record,) = caplog.records
    key_id = keyrings[position].key_ids[0]
    assert record.getMessage().startswith(f"pending: local:{key_id} (pending), since: the passphr")


def test_fewer_than_the_minimum(
    rings: list[LocalKeyring],
    away: Callable[..., LocalKeyring],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Too few wraps are none, what was generated is wiped, and the error says why of each."""
    made = closed_secrets(monkeypatch)
    with pytest.raises(PassphraseError, match=r"^too few of the keyrings wrap: .*away-e.*away-f"):
        AnyOf([away("e"), rings[0], away("f")], minimum=2).generate(CONTEXT)
    assert [True, True] == [key.secret.closed for key in made]  # The first could not wrap its own.
    with pytest.raises(PassphraseError, match=r"^the passphrase does not open .*away-e"):
        AnyOf([rings[0], away("e")]).generate(CONTEXT)
    data_key = DataKey.generate()
    with pytest.raises(PassphraseError):
        AnyOf([rings[0], away("e")]).wrap(data_key, CONTEXT)
    assert not data_key.secret.closed
    assert len(AnyOf([rings[0], away("e")], minimum=1).wrap(data_key, CONTEXT)) == 2


@pytest.mark.parametrize("minimum", [-1, 0, 3])
def test_refuses_other_minimums(rings: list[LocalKeyring], minimum: int) -> None:
    """The minimum is one and more of the keyrings."""
    with pytest.raises(ValueError, match="minimum is 1 to 2"):
        AnyOf(rings[:2], minimum)
    assert f"AnyOf({rings[:2]!r}, minimum=1)" == repr(AnyOf(rings[:2], 1))


def recipients_of(path: Path) -> list[Recipient]:
    return tapeseal.inspect(path).recipients


@pytest.mark.parametrize("copy", [False, True])
def test_completing(
    tmp_path: Path, rings: list[LocalKeyring], away: Callable[..., LocalKeyring], copy: bool
) -> None:
    """The pending recipient is wrapped for, the others and the body stay as they are byte for byte."""
    path = tmp_path / "t"
    body = write(path, AnyOf([away("e"), *rings[:2]], minimum=2))
    before = recipients_of(path)
    back = away("e", b"right")
    with pytest.raises(KeyUnavailableError, match=r"local:.* \(pending\)"):
        read(path, back)
    keyring = AnyOf([rings[1], back])
    assert tapeseal.rewrap(path, keyring=keyring, complete=True, copy=copy) == 2
    after = recipients_of(path)
    assert before[1:] == after[1:]
    assert before[0] == after[0]._replace(wrapped=None)
    assert (len(body), TOTAL) == (len(body_of(path)), read(path, back))
    assert tapeseal.verify(path, keyring=back).ok
    if not copy:
        assert body == body_of(path)
    # Nothing is left to do, and nothing is done.
    content = path.read_bytes()
    assert tapeseal.rewrap(path, keyring=keyring, complete=True, copy=copy) == 2
    assert content == path.read_bytes()


def test_completing_in_part(
    tmp_path: Path, rings: list[LocalKeyring], away: Callable[..., LocalKeyring]
) -> None:
    """Those whose keyring was not given stay pending; where no one's was, it is an error."""
    path = tmp_path / "t"
    write(path, AnyOf([away("e"), away("f"), rings[0]], minimum=1))
    content = path.read_bytes()
    with pytest.raises(KeyUnavailableError, match=r"no keyring .*local:.* \(pending\), local:"):
        tapeseal.rewrap(path, keyring=AnyOf(rings), complete=True)
    with pytest.raises(PassphraseError):
        tapeseal.rewrap(path, keyring=AnyOf([rings[0], away("e")]), complete=True)
    with pytest.raises(KeyUnavailableError):  # Nobody of these opens.
        tapeseal.rewrap(path, keyring=away("e", b"right"), complete=True)
    assert content == path.read_bytes()
    for number, name in ((1, "f"), (0, "e")):
        back = away(name, b"right")
        tapeseal.rewrap(path, keyring=AnyOf([rings[0], back]), complete=True)
        pending = [each.wrapped is None for each in recipients_of(path)]
        assert [number == 1, False, False] == pending
        assert read(path, back) == TOTAL


def test_completing_a_quorum(
    tmp_path: Path, rings: list[LocalKeyring], away: Callable[..., LocalKeyring]
) -> None:
    """A quorum of which one was away is pending as a whole, and made when all its keyrings are given."""
    path = tmp_path / "t"
    a, b, c, d = rings
    body = write(path, AnyOf([Quorum(2, [c, d]), Quorum(2, [a, away("e"), b]), c], minimum=2))
    before = recipients_of(path)
    assert [0, 0, 1, 1, 1] == [each.share[0] for each in before if each.share]
    assert [False, False, True, True, True, False] == [each.wrapped is None for each in before]
    back = away("e", b"right")
    with pytest.raises(KeyUnavailableError, match="no keyring that was given"):
        tapeseal.rewrap(path, keyring=AnyOf([c, a, back]), complete=True)
    tapeseal.rewrap(path, keyring=AnyOf([c, a, b, back]), complete=True)
    after = recipients_of(path)
    assert [each._replace(wrapped=None) for each in before] == [
        each._replace(wrapped=None) for each in after
    ]
    assert before[:2] + before[5:] == after[:2] + after[5:]
    assert body == body_of(path)
    for pair in itertools.combinations([a, b, back], 2):
        assert read(path, AnyOf(pair)) == TOTAL
    for few in ([a], [back], [a, d]):
        with pytest.raises(KeyUnavailableError):
            read(path, AnyOf(few))


class Unnamed:
    """A keyring whose service alone knows its recipient's name; what it had to wrap is noted."""

    def __init__(self, keyring: LocalKeyring) -> None:
        self.keyring = keyring
        self.wrapped: list[bytes] = []

    def pending(self) -> list[Recipient]:
        raise KeyUnavailableError("not known yet")

    def wrap(self, data_key: DataKey, context: dict[str, str]) -> list[Recipient]:
        self.wrapped.append(secret_of(data_key))
        return self.keyring.wrap(data_key, context)

    def unwrap(self, recipients: Sequence[Recipient], context: dict[str, str]) -> DataKey:
        return self.keyring.unwrap(recipients, context)


def test_completing_gives_a_share_and_no_more(
    tmp_path: Path, rings: list[LocalKeyring], away: Callable[..., LocalKeyring]
) -> None:
    """A keyring that is asked for its name first gets neither the data key nor another share to wrap."""
    path = tmp_path / "t"
    a, _, c, _ = rings
    write(path, AnyOf([Quorum(2, [a, away("e")]), c], minimum=1))
    unnamed, back = Unnamed(a), away("e", b"right")
    tapeseal.rewrap(path, keyring=AnyOf([c, unnamed, back]), complete=True)
    recipients = recipients_of(path)
    with c.unwrap(recipients, CONTEXT) as data_key:
        secrets = {secret_of(data_key)}
    mine, other = (each._replace(share=None) for each in recipients[:2])
    with a.unwrap([mine], CONTEXT) as share:
        assert unnamed.wrapped[1:] == [secret_of(share)]
    with back.unwrap([other], CONTEXT) as share:
        secrets.add(secret_of(share))
    assert not secrets & set(unnamed.wrapped)
    assert read(path, AnyOf([a, back])) == TOTAL


def test_completing_a_share(
    tmp_path: Path, rings: list[LocalKeyring], away: Callable[..., LocalKeyring]
) -> None:
    """Where one of two keys of a share was away, all shares of the group are made anew."""
    path = tmp_path / "t"
    a, b, *_ = rings
    write(path, Quorum(2, [AnyOf([a, away("e")], minimum=1), b]))
    assert [False, True, False] == [each.wrapped is None for each in recipients_of(path)]
    assert read(path, AnyOf([a, b])) == TOTAL
    back = away("e", b"right")
    tapeseal.rewrap(path, keyring=AnyOf([a, b, back]), complete=True)
    for pair in ([a, b], [back, b]):
        assert read(path, AnyOf(pair)) == TOTAL
    with pytest.raises(KeyUnavailableError):
        read(path, AnyOf([a, back]))


def test_a_rewrap_has_one_aim(tmp_path: Path, rings: list[LocalKeyring]) -> None:
    """It replaces or completes the recipients; neither and both are refused."""
    write(tmp_path / "t", rings[0])
    for aim in ({}, {"to": rings[0], "complete": True}):
        with pytest.raises(ValueError, match="either `to` or complete=True"):
            tapeseal.rewrap(tmp_path / "t", keyring=rings[0], **aim)


def test_each_recipient_alone(tmp_path: Path, rings: list[LocalKeyring]) -> None:
    """A tape for a key file and an escrow opens with each; the escrow's public half opens nothing."""
    create_key_pair(tmp_path / "escrow")
    public, private = (PublicKeyKeyring(tmp_path / name) for name in ("escrow.pub", "escrow"))
    path = tmp_path / "t"
    write(path, AnyOf([public, rings[0], Quorum(2, [public, rings[1]])]))
    for keyring in (rings[0], private, AnyOf([public, rings[0]])):
        assert read(path, keyring) == TOTAL
    with pytest.raises(KeyUnavailableError, match="only encrypts"):
        read(path, AnyOf([public, rings[1]]))
    tapeseal.rewrap(path, keyring=rings[0], to=Quorum(2, [public, rings[1]]), copy=True)
    with pytest.raises(KeyUnavailableError):
        read(path, private)
    assert read(path, AnyOf([rings[1], private])) == TOTAL


def test_threads_share_a_quorum(rings: list[LocalKeyring]) -> None:
    """Several threads generate and open at once."""
    from concurrent.futures import ThreadPoolExecutor

    quorum = Quorum(2, rings)

    def one(_: int) -> bool:
        data_key, recipients = quorum.generate(CONTEXT)
        with data_key:
            return opens(quorum, recipients, secret_of(data_key))

    with ThreadPoolExecutor(4) as pool:
        assert [True] * 40 == list(pool.map(one, range(40)))


# With the services


@pytest.mark.server
def test_services_one_is_enough(tmp_path: Path, services: dict[str, tapeseal.Keyring]) -> None:
    """A tape for KMS, Vault and an escrow opens with each alone, whichever generated the key."""
    for first in services:
        keyrings = sorted(services.items(), key=lambda item: item[0] != first)
        write(tmp_path / first, AnyOf([keyring for _, keyring in keyrings]))
        for keyring in services.values():
            assert read(tmp_path / first, keyring) == TOTAL


@pytest.mark.server
def test_services_two_are_needed(tmp_path: Path, services: dict[str, tapeseal.Keyring]) -> None:
    """A tape for any two of KMS, Vault and an escrow opens with any two and with no single one."""
    path = tmp_path / "t"
    write(path, Quorum(2, list(services.values())))
    for pair in itertools.combinations(services.values(), 2):
        assert read(path, AnyOf(pair)) == TOTAL
    for keyring in services.values():
        for single in (keyring, AnyOf([keyring])):
            with pytest.raises(KeyUnavailableError):
                read(path, single)


@pytest.mark.server
def test_a_service_that_is_away(
    tmp_path: Path, services: dict[str, tapeseal.Keyring], kms: Any
) -> None:
    """KMS is the first and away: the next one generates, KMS is pending by its ARN, and completed by its alias."""
    from servers.kms import REGION
    from tapeseal.keyrings.aws_kms import AwsKmsKeyring

    (arn,) = services["kms"].keys
    alias = f"alias/quorum-{os.urandom(4).hex()}"
    kms.admin.create_alias(AliasName=alias, TargetKeyId=arn)
    down = {"region": REGION, "endpoint_url": "http://127.0.0.1:1", "max_attempts": 1}
    path = tmp_path / "t"
    vault, escrow = services["vault"], services["escrow"]
    with pytest.raises(KeyUnavailableError, match=f"only KMS knows the ARN of {alias}"):
        AnyOf([AwsKmsKeyring(alias, **down), vault], minimum=1).generate(CONTEXT)
    away = AwsKmsKeyring(arn, **down)
    with pytest.raises(ServiceUnavailableError):
        AnyOf([away, vault]).generate(CONTEXT)
    body = write(path, AnyOf([away, vault, escrow], minimum=2))
    assert [True, False, False] == [each.wrapped is None for each in recipients_of(path)]
    with pytest.raises(ServiceUnavailableError):
        tapeseal.rewrap(path, keyring=AnyOf([away, escrow]), complete=True)
    back = AwsKmsKeyring(alias, region=REGION, endpoint_url=kms.address, read_timeout=30)
    assert tapeseal.rewrap(path, keyring=AnyOf([back, escrow]), complete=True) == 2
    assert body == body_of(path)
    assert [arn, vault.key, escrow.key_id] == [each.key for each in recipients_of(path)]
    for keyring in (services["kms"], vault, escrow):
        assert read(path, keyring) == TOTAL


@pytest.mark.server
def test_a_quorum_opens_while_one_is_away(
    tmp_path: Path, services: dict[str, tapeseal.Keyring]
) -> None:
    """KMS away costs nothing while two others are there, and is what the error says when they are not."""
    from servers.kms import REGION
    from tapeseal.keyrings.aws_kms import AwsKmsKeyring

    path = tmp_path / "t"
    write(path, Quorum(2, list(services.values())))
    (arn,) = services["kms"].keys
    away = AwsKmsKeyring(arn, region=REGION, endpoint_url="http://127.0.0.1:1", max_attempts=1)
    assert read(path, AnyOf([away, services["vault"], services["escrow"]])) == TOTAL
    with pytest.raises(ServiceUnavailableError, match=r"127\.0\.0\.1:1.*any 2 shares of group 0"):
        read(path, AnyOf([services["vault"], away]))
