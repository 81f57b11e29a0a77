"""Break-glass: m of n custodians open a package together, for one request; nobody else, nothing else, no longer."""

import base64
import itertools
import json
import logging
import os
import re
import zlib
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from support import leaks
from tapeseal import AnyOf, Quorum, audit, blob, break_glass
from tapeseal.break_glass import Package, Request, approve, open_package, request, seal
from tapeseal.errors import (
    AccessDeniedError,
    AuditError,
    DamagedError,
    KeyUnavailableError,
    NotATapeError,
)
from tapeseal.keyrings.public_key import PublicKeyKeyring, create_key_pair
from tapeseal.secret import Secret

NAMES = ("alice", "bob", "carol")
CANARY = "canary-of-the-package-7d1f"


@pytest.fixture(scope="session")
def halves(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the keys of three custodians and of a stranger: NAME and NAME.pub."""
    directory = tmp_path_factory.mktemp("custodians")
    for name in (*NAMES, "mallory"):
        create_key_pair(directory / name)
    return directory


@pytest.fixture(scope="session")
def rsa_halves(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same of RSA, as of a smart card or an HSM."""
    directory = tmp_path_factory.mktemp("custodians-rsa")
    for name in NAMES:
        key = rsa.generate_private_key(65537, 3072)
        private = directory / name
        private.touch(0o600)
        private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        (directory / f"{name}.pub").write_bytes(public)
    return directory


class Ceremony:
    """A package for three custodians, two of whom open it, and what is done with it."""

    def __init__(self, directory: Path, halves: Path) -> None:
        self.directory = directory
        self.halves = halves
        self.package = directory / "vault.glass"
        self.request = directory / "vault.request"
        self.fingerprint = ""
        self.seal()

    def seal(self) -> None:
        """Seal the package."""
        keyrings = {name: PublicKeyKeyring(self.halves / f"{name}.pub") for name in NAMES}
        with secret(CANARY) as token, secret("7") as pin:
            contents = {"token": token, "pin": pin}
            seal(self.package, contents, keyrings, 2, opens=["binance", "db-admin"], seconds=600)

    def ask(self, reason: str = "KMS outage", package: Path | None = None) -> None:
        """Make the request."""
        self.fingerprint = request(
            package or self.package, self.request, reason=reason, seconds=60, requester="dave@ops"
        )

    def approve(self, name: str, package: Path | None = None) -> Path:
        """Have a custodian approve the request."""
        path = self.directory / f"{name}.approval"
        keyring = PublicKeyKeyring(self.halves / name)
        found = approve(
            package or self.package, self.request, keyring, path, fingerprint=self.fingerprint
        )
        assert found == name
        return path


def secret(text: str) -> Secret:
    """Return a secret of a text."""
    return Secret.take(bytearray(text.encode()))


@pytest.fixture
def ceremony(tmp_path: Path, halves: Path) -> Ceremony:
    """A sealed package, and a request for it."""
    made = Ceremony(tmp_path, halves)
    made.ask()
    return made


@pytest.mark.parametrize("names", [*itertools.combinations(NAMES, 2), NAMES])
def test_any_two_of_three_open(ceremony: Ceremony, names: tuple[str, ...]) -> None:
    """Any two custodians, and all three, open the package."""
    check_opening(ceremony, names)


def test_custodians_with_rsa_keys(tmp_path: Path, rsa_halves: Path) -> None:
    """Custodians may have RSA keys."""
    made = Ceremony(tmp_path, rsa_halves)
    made.ask()
    check_opening(made, ("alice", "carol"))


def check_opening(ceremony: Ceremony, names: tuple[str, ...]) -> None:
    """Have custodians approve and open the package."""
    approvals = [ceremony.approve(name) for name in names]
    with open_package(ceremony.package, ceremony.request, approvals) as opened:
        assert {"token": CANARY, "pin": "7"} == {n: each.expose() for n, each in opened.items()}
        assert names[:2] == opened.approved_by
        assert 0 < opened.seconds_left <= 60


@pytest.mark.parametrize("names", [(), ("alice",), ("bob", "bob")])
def test_fewer_do_not(ceremony: Ceremony, names: tuple[str, ...]) -> None:
    """One custodian, however often, opens nothing."""
    approvals = [ceremony.approve(name) for name in sorted(set(names))] * 2
    with pytest.raises(AccessDeniedError, match="2 custodians have to approve") as caught:
        open_package(ceremony.package, ceremony.request, approvals)
    assert set() == leaks(caught.value, [CANARY])


def test_package_says_what_it_is(ceremony: Ceremony) -> None:
    """Without a key the package says who opens it, what it opens and for how long."""
    found = Package.read(ceremony.package)
    assert ("vault.glass", False, 600, NAMES, 2) == (
        found.name,
        found.drill,
        found.seconds,
        found.custodians,
        found.threshold,
    )
    assert ("binance", "db-admin") == found.opens


def test_secrets_end_with_the_time(ceremony: Ceremony, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the time granted is over, the secrets are wiped at the next use."""
    approvals = [ceremony.approve(name) for name in NAMES[:2]]
    opened = open_package(ceremony.package, ceremony.request, approvals)
    token = opened["token"]
    opened.until -= 61
    with pytest.raises(AccessDeniedError, match="over"):
        opened["token"]
    assert token.closed
    assert 0 == opened.seconds_left


def test_drill_opens_nothing(ceremony: Ceremony) -> None:
    """A drill goes through every step, under the same keys, and yields no secret."""
    ceremony.request.unlink()
    Path(f"{ceremony.request}.key").unlink()
    drill = Path(f"{ceremony.package}.drill")
    ceremony.ask(package=drill)
    approvals = [ceremony.approve(name, drill) for name in NAMES[:2]]
    with open_package(drill, ceremony.request, approvals) as opened:
        assert ({}, NAMES[:2]) == (dict(opened), opened.approved_by)
    with pytest.raises(AccessDeniedError, match=r"another package than .*, a drill, or it was"):
        open_package(ceremony.package, ceremony.request, approvals)


def test_approvals_of_a_drill_open_no_package(ceremony: Ceremony) -> None:
    """Who calls his request for the package one of the drill, or the drill's approvals those of it, gains nothing."""
    drill = Path(f"{ceremony.package}.drill")
    fields = json.loads(ceremony.request.read_text())
    fields |= {"package": Package.read(drill).id, "drill": True}
    ceremony.request.write_text(json.dumps(fields))
    ceremony.fingerprint = Request.read(ceremony.request).fingerprint
    approvals = [ceremony.approve(name, drill) for name in NAMES[:2]]
    drill.write_bytes(ceremony.package.read_bytes())
    with pytest.raises(AccessDeniedError, match="another package"):
        open_package(drill, ceremony.request, approvals)
    fields |= {"package": Package.read(ceremony.package).id, "drill": False}
    ceremony.request.write_text(json.dumps(fields))
    with pytest.raises(AccessDeniedError, match="approves another request"):
        open_package(ceremony.package, ceremony.request, approvals)
    for path in approvals:
        approval = json.loads(path.read_text())
        path.write_text(json.dumps(approval | {"request": Request.read(ceremony.request).digest}))
    with pytest.raises(DamagedError, match="was changed"):
        open_package(ceremony.package, ceremony.request, approvals)


def test_a_swapped_request_has_another_fingerprint(ceremony: Ceremony, tmp_path: Path) -> None:
    """Who puts a key of his own into a request has no approval from whoever compares the fingerprint."""
    other = tmp_path / "mallory.request"
    request(ceremony.package, other, reason="KMS outage", seconds=60, requester="dave@ops")
    ceremony.request.write_bytes(other.read_bytes())
    with pytest.raises(AccessDeniedError, match="another request in its place"):
        ceremony.approve("alice")
    assert not (tmp_path / "alice.approval").exists()


def test_what_is_told_is_the_fingerprint_of_what_was_written(
    ceremony: Ceremony, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who puts another request in the place of a new one does not have its fingerprint told to the custodians."""
    path, link = tmp_path / "new.request", os.link

    def swap(source: object, target: object) -> None:
        link(str(source), str(target))
        if str(target) == str(path):
            path.write_bytes(ceremony.request.read_bytes())

    monkeypatch.setattr(os, "link", swap)
    told = request(ceremony.package, path, reason="KMS outage")
    assert ceremony.fingerprint == Request.read(path).fingerprint != told


def test_the_key_in_a_request_is_the_requesters(
    ceremony: Ceremony, halves: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A public half that somebody swapped before it came into the request is noticed."""
    public, link = tmp_path / "new.request.key.pub", os.link

    def swap(source: object, target: object) -> None:
        link(str(source), str(target))
        if str(target) == str(public):
            public.write_bytes((halves / "mallory.pub").read_bytes())

    monkeypatch.setattr(os, "link", swap)
    with pytest.raises(DamagedError, match="was changed while the request was made"):
        request(ceremony.package, tmp_path / "new.request", reason="KMS outage")
    assert not (tmp_path / "new.request").exists()


def test_what_was_shown_is_what_is_granted(ceremony: Ceremony, tmp_path: Path) -> None:
    """Where the request is swapped while its custodian looks at it, what was looked at is granted, and nothing else."""
    shown = []

    def ask(package: Package, asked: Request) -> str:
        shown.append((package.opens, asked.reason, asked.seconds))
        fields = json.loads(ceremony.request.read_text())
        ceremony.request.write_text(json.dumps(fields | {"reason": "another", "seconds": 600}))
        ceremony.package.write_bytes(b"")
        return ceremony.fingerprint

    before = ceremony.request.read_bytes(), ceremony.package.read_bytes()
    keyring = PublicKeyKeyring(ceremony.halves / "alice")
    path = tmp_path / "alice.approval"
    approve(ceremony.package, ceremony.request, keyring, path, fingerprint=ask)
    assert [(("binance", "db-admin"), "KMS outage", 60)] == shown
    approval = json.loads(path.read_text())
    assert approval["request"] != Request.read(ceremony.request).digest
    ceremony.request.write_bytes(before[0])
    ceremony.package.write_bytes(before[1])
    open_package(
        ceremony.package, ceremony.request, [tmp_path / "alice.approval", ceremony.approve("bob")]
    ).close()


def test_approvals_need_the_requests_key(ceremony: Ceremony) -> None:
    """Whoever finds request and approvals, and not the key file, opens nothing."""
    approvals = [ceremony.approve(name) for name in NAMES[:2]]
    key_file = Path(f"{ceremony.request}.key")
    assert 0o600 == key_file.stat().st_mode & 0o777
    key_file.unlink()
    with pytest.raises(KeyUnavailableError, match="no key file"):
        open_package(ceremony.package, ceremony.request, approvals)


def test_a_request_expires(ceremony: Ceremony) -> None:
    """After an hour a request is neither approved nor opened."""
    approvals = [ceremony.approve(name) for name in NAMES[:2]]
    fields = json.loads(ceremony.request.read_text())
    assert timedelta(hours=1) == datetime.fromisoformat(fields["expires"]) - datetime.fromisoformat(
        fields["made"]
    )
    fields["expires"] = (datetime.now(UTC) - timedelta(seconds=1)).isoformat()
    ceremony.request.write_text(json.dumps(fields))
    with pytest.raises(AccessDeniedError, match="expired at"):
        open_package(ceremony.package, ceremony.request, approvals)
    ceremony.fingerprint = Request.read(ceremony.request).fingerprint
    with pytest.raises(AccessDeniedError, match="expired at"):
        ceremony.approve("carol")


@pytest.mark.parametrize(
    ("made", "expires", "problem"),
    [
        (-10, 3591, "3600 s are possible"),
        (-7200, 60, "3600 s are possible"),
        (0, 365 * 86400, "3600 s are possible"),
        (86400, 86400 + 3600, "set the clock that is wrong"),
    ],
)
def test_a_request_that_gives_itself_more_time(
    ceremony: Ceremony, made: int, expires: int, problem: str
) -> None:
    """Nobody approves a request that was written to be open for longer than an hour, or later than now."""
    now = datetime.now(UTC).replace(microsecond=0)
    fields = json.loads(ceremony.request.read_text())
    fields["made"] = (now + timedelta(seconds=made)).isoformat()
    fields["expires"] = (now + timedelta(seconds=expires)).isoformat()
    ceremony.request.write_text(json.dumps(fields))
    ceremony.fingerprint = Request.read(ceremony.request).fingerprint
    with pytest.raises(AccessDeniedError, match=problem):
        ceremony.approve("alice")


def test_clocks_may_differ_a_little(ceremony: Ceremony) -> None:
    """A custodian whose clock is a minute or two behind approves."""
    made = datetime.now(UTC).replace(microsecond=0) + timedelta(minutes=2)
    fields = json.loads(ceremony.request.read_text())
    fields |= {"made": made.isoformat(), "expires": (made + timedelta(hours=1)).isoformat()}
    ceremony.request.write_text(json.dumps(fields))
    ceremony.fingerprint = Request.read(ceremony.request).fingerprint
    assert ceremony.approve("alice").exists()


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("reason", '""'),
        ("reason", r'"outage\nbreak-glass: carol has approved"'),
        ("reason", r'"outage \u202e7411 tekcit"'),
        ("reason", r'"\ud800"'),
        ("reason", f'"{"x" * 501}"'),
        ("requester", r'"dave\u001b[2J"'),
        ("name", r'"vault\u0000glass"'),
        ("made", '"yesterday"'),
        ("made", '"2026-11-27T10:00:00"'),
        ("seconds", "true"),
        ("seconds", "NaN"),
        ("seconds", "1" + "0" * 5000),
        ("drill", "0"),
        ("public_key", "null"),
        ("more", "1"),
    ],
    ids=lambda text: text[:20],
)
def test_requests_that_nobody_can_read(ceremony: Ceremony, member: str, value: str) -> None:
    """What a custodian is shown, and logs take, is a line of text; what is no request is refused."""
    fields = json.loads(ceremony.request.read_text()) | {member: "here"}
    ceremony.request.write_text(json.dumps(fields).replace('"here"', value))
    with pytest.raises(DamagedError, match="is no break-glass request"):
        Request.read(ceremony.request)


def test_a_member_stands_once(ceremony: Ceremony) -> None:
    """A request that says two things, one of which another program would show, is none."""
    text = ceremony.request.read_text()
    ceremony.request.write_text(text.replace('"reason"', '"reason": "a drill",\n "reason"'))
    with pytest.raises(DamagedError, match="is no break-glass request"):
        Request.read(ceremony.request)


@pytest.mark.parametrize(
    ("member", "value"), [("reason", "another"), ("seconds", 600), ("requester", "mallory@ops")]
)
def test_a_changed_request_loses_its_approvals(
    ceremony: Ceremony, member: str, value: str | int
) -> None:
    """What was approved is this request, to the letter."""
    approvals = [ceremony.approve(name) for name in NAMES[:2]]
    fields = json.loads(ceremony.request.read_text())
    ceremony.request.write_text(json.dumps(fields | {member: value}, indent=1))
    with pytest.raises(AccessDeniedError, match="approves another request"):
        open_package(ceremony.package, ceremony.request, approvals)


def test_more_time_than_the_package_grants_is_refused(ceremony: Ceremony, tmp_path: Path) -> None:
    """Neither a request nor one changed by hand gets more time than was sealed."""
    with pytest.raises(ValueError, match="grants"):
        request(ceremony.package, tmp_path / "long", reason="x", seconds=601)
    fields = json.loads(ceremony.request.read_text())
    ceremony.request.write_text(json.dumps(fields | {"seconds": 601}))
    ceremony.fingerprint = Request.read(ceremony.request).fingerprint
    with pytest.raises(AccessDeniedError, match="600 at most"):
        ceremony.approve("alice")


def test_a_forged_approval_replaces_none(ceremony: Ceremony) -> None:
    """Of two approvals with the number of one custodian, the right one counts, wherever it stands."""
    approvals = [ceremony.approve(name) for name in NAMES[:2]]
    first, second = (json.loads(path.read_text()) for path in approvals)
    forged = ceremony.directory / "forged.approval"
    forged.write_text(json.dumps(first | {"wrapped": second["wrapped"]}))
    for given in ([*approvals, forged], [forged, *approvals]):
        with open_package(ceremony.package, ceremony.request, given) as opened:
            assert opened.approved_by == NAMES[:2]
    with pytest.raises(AccessDeniedError, match="so far alice did"):
        open_package(ceremony.package, ceremony.request, [approvals[0], forged])


def test_a_wrong_approval_among_enough_does_no_harm(ceremony: Ceremony) -> None:
    """A third custodian who hands in rubbish does not keep the other two out."""
    approvals = [ceremony.approve(name) for name in NAMES]
    first, second = (json.loads(path.read_text()) for path in approvals[:2])
    approvals[0].write_text(json.dumps(first | {"wrapped": second["wrapped"]}))
    with open_package(ceremony.package, ceremony.request, approvals) as opened:
        assert ("bob", "carol") == opened.approved_by
    with pytest.raises(DamagedError, match=r"alice, bob, was changed"):
        open_package(ceremony.package, ceremony.request, approvals[:2])


def test_many_custodians_of_whom_some_lie(tmp_path: Path, halves: Path) -> None:
    """Of 32 custodians who all answered, the first two with rubbish, sixteen of the others open the package."""
    create_key_pair(tmp_path / "key")
    package, asked = tmp_path / "p", tmp_path / "r"
    keyrings = {}
    for number in range(32):
        create_key_pair(tmp_path / f"c{number:02}")
        keyrings[f"c{number:02}"] = PublicKeyKeyring(tmp_path / f"c{number:02}")
    with secret(CANARY) as token:
        seal(package, {"token": token}, keyrings, 16)
    told = request(package, asked, reason="outage")
    approvals = [tmp_path / f"{name}.approval" for name in keyrings]
    for path, keyring in zip(approvals, keyrings.values(), strict=True):
        approve(package, asked, keyring, path, fingerprint=told)
    texts = [json.loads(path.read_text()) for path in approvals[:3]]
    for path, text in zip(approvals[:2], texts[:2], strict=True):
        path.write_text(json.dumps(text | {"wrapped": texts[2]["wrapped"]}))
    with open_package(package, asked, approvals) as opened:
        assert CANARY == opened["token"].expose()
        assert not {"c00", "c01"} & set(opened.approved_by)


def test_a_stranger_approves_nothing(ceremony: Ceremony, halves: Path, tmp_path: Path) -> None:
    """A key for which no share is wrapped gives no approval."""
    with pytest.raises(KeyUnavailableError, match="no share of"):
        approve(
            ceremony.package,
            ceremony.request,
            PublicKeyKeyring(halves / "mallory"),
            tmp_path / "mallory.approval",
            fingerprint=ceremony.fingerprint,
        )


@pytest.mark.parametrize("pair", [("bob", "rob"), ("600", "660"), ("binance", "bitmexx")])
def test_a_changed_package_gets_no_share(ceremony: Ceremony, pair: tuple[str, str]) -> None:
    """Names, times and what it opens are bound to each share: who changes them gets none."""
    raw = ceremony.package.read_bytes()
    old, new = (f'"{each}'.encode() for each in pair)
    assert old in raw
    changed = bytearray(raw.replace(old, new, 1))
    changed[60:64] = bytes(4)
    size = int.from_bytes(changed[12:16], "little")
    changed[60:64] = zlib.crc32(changed[:size]).to_bytes(4, "little")
    ceremony.package.write_bytes(changed)
    with pytest.raises(DamagedError, match=r"was changed|does not open"):
        ceremony.approve("alice")


def test_every_changed_byte_of_the_body_is_found(ceremony: Ceremony) -> None:
    """A package that was changed after its header gives nothing."""
    approvals = [ceremony.approve(name) for name in NAMES[:2]]
    raw = ceremony.package.read_bytes()
    for at in (len(raw) - 1, len(raw) - 30, len(raw) - 100):
        changed = bytearray(raw)
        changed[at] ^= 1
        ceremony.package.write_bytes(changed)
        with pytest.raises(DamagedError):
            open_package(ceremony.package, ceremony.request, approvals)


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", "\xff", "[" * 100_000, '{"format": 1}'])
@pytest.mark.parametrize("what", ["package", "request", "approval"])
def test_foreign_files_are_refused(ceremony: Ceremony, what: str, text: str) -> None:
    """What is no package, request or approval is said to be none."""
    approvals = [ceremony.approve(name) for name in NAMES[:2]]
    path = {"package": ceremony.package, "request": ceremony.request, "approval": approvals[0]}
    path[what].write_text(text, encoding="latin-1")
    with pytest.raises((NotATapeError, DamagedError)):
        open_package(ceremony.package, ceremony.request, approvals)


def test_a_blob_for_others_is_no_package(ceremony: Ceremony, halves: Path) -> None:
    """A blob of another kind is no package."""
    other = blob.encrypt(b"x", keyring=PublicKeyKeyring(halves / "alice.pub"))
    ceremony.package.write_bytes(other)
    with pytest.raises(NotATapeError, match="no break-glass package"):
        Package.read(ceremony.package)


@pytest.mark.parametrize(
    "change",
    [
        {"seconds": "9" * 400},
        {"seconds": "9" * 5000},
        {"seconds": "-5"},
        {"seconds": "604801"},
        {"name": "vault\nglass"},
        {"opens": "db-admin\x1b[2J,binance"},
        {"custodian.1": "bob"},
        {"custodian.2": ""},
        {"purpose": "vault share"},
    ],
    ids=lambda change: str(change)[:30],
)
def test_what_a_package_cannot_say(
    ceremony: Ceremony, halves: Path, change: dict[str, str]
) -> None:
    """What was made for custodians by another program, and would be shown to them, is no package."""
    context = {"purpose": "break-glass", "name": "vault.glass", "opens": "", "seconds": "60"}
    context |= {"custodian.1": "alice", "custodian.2": "bob"}
    quorum = Quorum(2, [PublicKeyKeyring(halves / f"{name}.pub") for name in NAMES[:2]])
    ceremony.package.write_bytes(blob.encrypt(b"x", keyring=quorum, encryption_context=context))
    assert ("alice", "bob") == Package.read(ceremony.package).custodians
    forged = blob.encrypt(b"x", keyring=quorum, encryption_context=context | change)
    ceremony.package.write_bytes(forged)
    with pytest.raises(NotATapeError, match="no break-glass package"):
        Package.read(ceremony.package)


@pytest.mark.parametrize(
    "change",
    [
        {"secrets": {}},
        {"threshold": 1},
        {"threshold": 4},
        {"seconds": 0},
        {"seconds": 604801},
        {"opens": ["a,b"]},
        {"name": ""},
    ],
)
def test_packages_that_cannot_be(tmp_path: Path, halves: Path, change: dict[str, object]) -> None:
    """A package that nobody, or one alone, could open is not made, nor one that says nothing readable."""
    arguments = {
        "secrets": {"token": secret("x")},
        "custodians": {name: PublicKeyKeyring(halves / f"{name}.pub") for name in NAMES},
        "threshold": 2,
    } | change
    with pytest.raises(ValueError):
        seal(tmp_path / "p", **arguments)  # type: ignore[arg-type]
    assert [] == list(tmp_path.iterdir())


def test_each_custodian_has_one_key(ceremony: Ceremony, halves: Path) -> None:
    """What could not be opened, for a custodian's share is wrapped for several keys, takes no package's place."""
    before = ceremony.package.read_bytes()
    alice, bob, carol = (PublicKeyKeyring(halves / f"{name}.pub") for name in NAMES)
    with secret("x") as token, pytest.raises(ValueError, match="a custodian has one key"):
        seal(ceremony.package, {"token": token}, {"a": AnyOf([alice, bob]), "c": carol}, 2)
    with secret("x") as token, pytest.raises(ValueError, match="two shares"):
        seal(ceremony.package, {"token": token}, {"a": alice, "b": alice, "c": carol}, 2)
    assert before == ceremony.package.read_bytes()


@pytest.mark.parametrize("reason", ["", "  ", "x" * 501, "a\x1b[2J"])
def test_a_request_has_a_reason(ceremony: Ceremony, tmp_path: Path, reason: str) -> None:
    """Without a reason that can be read there is no request."""
    with pytest.raises(ValueError, match="reason"):
        request(ceremony.package, tmp_path / "r", reason=reason)
    assert not (tmp_path / "r.key").exists()


def test_it_is_loud(ceremony: Ceremony, caplog: pytest.LogCaptureFixture) -> None:
    """Approving and opening are logged as critical, with who and why, and never with what."""
    with caplog.at_level(logging.CRITICAL, "tapeseal.break_glass"):
        approvals = [ceremony.approve(name) for name in NAMES[:2]]
        open_package(ceremony.package, ceremony.request, approvals).close()
    assert 3 == len(caplog.records)
    assert all("KMS outage" in each.getMessage() for each in caplog.records)
    assert re.search(r"opened by dave@ops for 60 s, approved by alice, bob", caplog.text)
    assert CANARY not in caplog.text


class Entries:
    """An audit log that keeps entries in memory, and has no room for those of one action."""

    def __init__(self, full_for: str = "") -> None:
        self.full_for = full_for
        self.entries: dict[str, audit.operation] = {}

    def check(self) -> None:
        """Take anything, as far as is known before."""

    def append(self, entry: audit.operation) -> None:
        """Keep an entry."""
        if entry.action == self.full_for:
            raise AuditError("no space")
        self.entries[entry.action] = entry


def test_the_audit_log_names_who_opened_it(ceremony: Ceremony) -> None:
    """An approval that was made up in the name of another custodian is not in the log, for it opened nothing."""
    approvals = [ceremony.approve(name) for name in NAMES[:2]]
    made_up = ceremony.directory / "made-up.approval"
    made_up.write_text(json.dumps(json.loads(approvals[0].read_text()) | {"share": 3}))
    log = Entries()
    audit.start(log)
    try:
        open_package(ceremony.package, ceremony.request, [*approvals, made_up]).close()
    finally:
        audit.stop()
    details = log.entries["break-glass.open"].details
    assert ("alice,bob", "KMS outage", 60) == tuple(
        details[name] for name in ("custodians", "reason", "seconds")
    )


@pytest.mark.parametrize("action", ["approve", "open"])
def test_nothing_is_done_that_is_not_in_the_audit_log(ceremony: Ceremony, action: str) -> None:
    """Where the log is full when its turn comes, there is no approval, and nothing was opened."""
    approvals = [ceremony.approve(name) for name in NAMES[:2]]
    before = set(ceremony.directory.iterdir())
    act = {
        "approve": lambda: ceremony.approve("carol"),
        "open": lambda: open_package(ceremony.package, ceremony.request, approvals),
    }[action]
    audit.start(Entries(f"break-glass.{action}"))
    try:
        with pytest.raises(AuditError):
            act()
    finally:
        audit.stop()
    assert before == set(ceremony.directory.iterdir())


def test_no_file_holds_a_secret(ceremony: Ceremony) -> None:
    """Package, drill, request, key file and approvals hold nothing of what was sealed, in no usual encoding."""
    for name in NAMES:
        ceremony.approve(name)
    spellings = [
        CANARY.encode(),
        base64.b64encode(CANARY.encode())[:-4],
        CANARY.encode().hex().encode(),
    ]
    for path in ceremony.directory.iterdir():
        assert not any(each in path.read_bytes() for each in spellings), path


def test_sealing_again_replaces(ceremony: Ceremony) -> None:
    """A package that is sealed anew keeps nothing of the one before: its approvals do not open it."""
    approvals = [ceremony.approve(name) for name in NAMES[:2]]
    ceremony.seal()
    with pytest.raises(AccessDeniedError, match="another package"):
        open_package(ceremony.package, ceremony.request, approvals)


def test_a_failed_seal_leaves_the_old_package(
    ceremony: Ceremony, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the disk is full the old package stays, whole."""
    before = ceremony.package.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(break_glass, "write_all", full)
    with pytest.raises(OSError, match="No space"):
        ceremony.seal()
    assert before == ceremony.package.read_bytes()


def test_errors_show_no_share(ceremony: Ceremony) -> None:
    """An error while opening shows neither the contents nor the request's private key."""
    approvals = [ceremony.approve(name) for name in NAMES[:2]]
    private = Path(f"{ceremony.request}.key").read_text()
    raw = bytearray(ceremony.package.read_bytes())
    raw[-1] ^= 1
    ceremony.package.write_bytes(raw)
    with pytest.raises(DamagedError) as caught:
        open_package(ceremony.package, ceremony.request, approvals)
    assert set() == leaks(caught.value, [CANARY, private.splitlines()[1]])
