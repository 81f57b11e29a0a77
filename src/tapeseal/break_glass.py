"""Break-glass: sealed emergency access that any m of n custodians open together, for a while and for a reason.

    seal("vault.glass", {"token": secret}, {"alice": alice, "bob": bob, "carol": carol}, threshold=2)
    request("vault.glass", "vault.request", reason="KMS outage, ticket 4711")     # whoever needs it
    approve("vault.glass", "vault.request", alice_private, "alice.approval")      # each custodian, at home
    with open_package("vault.glass", "vault.request", ["alice.approval", "bob.approval"]) as opened:
        opened["token"]

A package is a blob whose data key is shared among the custodians' public keys (docs/break-glass.md). An approval is the
custodian's share, wrapped anew for a key that the request brought along and bound to that request: no custodian's
private key leaves its machine, and whoever has approvals but not the request's key file opens nothing.

Beside each package stands its drill: sealed for the same custodians, with nothing in it that opens anything.
"""

import base64
import contextlib
import getpass
import hashlib
import itertools
import json
import logging
import math
import os
import random
import re
import socket
import struct
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple, Self

from tapeseal import _core, audit, blob
from tapeseal._core import SecretBuffer
from tapeseal.closing import Closing
from tapeseal.datakey import DataKey, Keyring
from tapeseal.errors import (
    AccessDeniedError,
    DamagedError,
    InvalidTag,
    KeyUnavailableError,
    NotATapeError,
)
from tapeseal.files import StrPath, new_file, sync_directory, write_all
from tapeseal.header import Header, check_mac
from tapeseal.keyrings.public_key import PROVIDER, PublicKeyKeyring, create_key_pair
from tapeseal.keyrings.quorum import Quorum
from tapeseal.layout import Recipient, unique_members
from tapeseal.secret import Secret

__all__ = ["Opened", "Package", "Request", "approve", "open_package", "request", "seal"]

logger = logging.getLogger("tapeseal.break_glass")

DEFAULT_SECONDS: Final = 3600
COLLECTING_SECONDS: Final = 3600
"""How long after a request its approvals can be collected."""

_MAX_SECONDS: Final = 7 * 86400
_MAX_FILE_SIZE: Final = 1 << 20
_MAX_REASON: Final = 500
_MAX_TRIES: Final = 10_000
_CLOCKS_APART: Final = timedelta(minutes=5)
_PURPOSE, _DRILL_PURPOSE = "break-glass", "break-glass drill"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_LENGTH = struct.Struct("<I")


@dataclass(frozen=True)
class Package:
    """What a package says of itself. Nobody has authenticated it before it is opened."""

    path: str
    id: str
    """The 16 random bytes of its header, in hex."""
    name: str
    drill: bool
    opens: tuple[str, ...]
    """The secrets of the rotation plan that it gives access to, and that are rotated once it was opened."""
    seconds: int
    """The longest that access may be granted for."""
    custodians: tuple[str, ...]
    """Their names; the custodian at place i has the share of number i + 1."""
    threshold: int

    @classmethod
    def read(cls, path: StrPath) -> Self:
        """Read a package's header; needs no key.

        Raises:
            NotATapeError, DamagedError: it is no package, or it was changed.
            OSError: it cannot be read.
        """
        return cls._of(os.fspath(path), _read_blob(path)[1])

    @classmethod
    def _of(cls, path: str, header: Header) -> Self:
        context = header.content.encryption_context
        try:
            if context["purpose"] not in (_PURPOSE, _DRILL_PURPOSE):
                raise ValueError
            seconds = int(context["seconds"])
            shares = [each.share for each in header.recipients]
            custodians = tuple(context[f"custodian.{n + 1}"] for n in range(len(shares)))
            thresholds = {share and (share[0], share[1]) for share in shares}
            ((group, threshold),) = thresholds  # type: ignore[misc]
            if group != 0 or [share[2] for share in shares if share] != list(
                range(1, len(shares) + 1)
            ):
                raise ValueError
            opens = tuple(filter(None, context["opens"].split(",")))
            name = context["name"]
            if not all(map(_NAME.fullmatch, (name, *custodians, *opens))):
                raise ValueError
            if not (1 <= seconds <= _MAX_SECONDS and len(set(custodians)) == len(custodians)):
                raise ValueError
        except (KeyError, ValueError, TypeError):
            raise NotATapeError(f"{path} is no break-glass package") from None
        drill = context["purpose"] == _DRILL_PURPOSE
        return cls(path, header.tape_id.hex(), name, drill, opens, seconds, custodians, threshold)


@dataclass(frozen=True)
class Request:
    """Who asks for what, why and for how long."""

    package: str
    """The id of the package."""
    name: str
    drill: bool
    reason: str
    requester: str
    made: str
    expires: str
    """When it can no longer be approved or opened: ISO 8601, UTC."""
    seconds: int
    """How long access is asked for."""
    public_key: str
    """In PEM: what approvals are wrapped under."""
    digest: str = ""
    """SHA-256 of its file, in hex: what approvals are bound to."""

    @property
    def fingerprint(self) -> str:
        """What requester and custodian compare over a line that nobody else controls, 80 bits of the digest.

        Who swapped the request's key for one of his own has another fingerprint.
        """
        shown = base64.b32encode(bytes.fromhex(self.digest)[:10]).decode()
        return "-".join(shown[at : at + 4] for at in range(0, 16, 4))

    @classmethod
    def read(cls, path: StrPath) -> Self:
        """Read a request.

        Raises:
            DamagedError: it is no request.
            OSError: it cannot be read.
        """
        text = _read_file(path)
        fields = _parse(text, "request", set(cls.__dataclass_fields__) - {"digest"}, path)
        try:
            made = cls(**fields, digest=_digest(text))
            well = (
                # They are shown to custodians, and go to logs.
                all(map(_is_line, (getattr(made, name) for name in _LINES)))
                and isinstance(made.public_key, str)
                and type(made.drill) is bool
                and type(made.seconds) is int
                and made.seconds > 0
                and all(
                    datetime.fromisoformat(each).tzinfo is not None
                    for each in (made.made, made.expires)
                )
            )
        except (TypeError, ValueError):
            well = False
        if not well:
            raise DamagedError(f"{os.fspath(path)} is no break-glass request", 0)
        return made

    def check(self, package: Package) -> None:
        """Raise AccessDeniedError unless the request is for this package, and not too old."""
        if self.package != package.id or self.drill != package.drill or self.name != package.name:
            kind = "a drill" if self.drill else "no drill"
            raise AccessDeniedError(
                f"the request is for another package than {package.path}: for {self.name}, {kind}, "
                "or it was sealed anew since"
            )
        now, made = datetime.now(UTC), datetime.fromisoformat(self.made)
        expires = datetime.fromisoformat(self.expires)
        if now >= expires:
            raise AccessDeniedError(
                f"the request expired at {self.expires}: make another, and have that approved"
            )
        if made - now > _CLOCKS_APART:
            raise AccessDeniedError(
                f"the request says that it was made at {self.made}, and here it is "
                f"{now.isoformat(timespec='seconds')}: set the clock that is wrong, and make another "
                "request where it was the requester's"
            )
        if expires - made > timedelta(seconds=COLLECTING_SECONDS):
            raise AccessDeniedError(
                f"the request was made at {self.made} to be open until {self.expires}; "
                f"{COLLECTING_SECONDS} s are possible"
            )
        if self.seconds > package.seconds:
            raise AccessDeniedError(
                f"the request asks for {self.seconds} s; the package grants {package.seconds} at most"
            )


_LINES = ("package", "name", "reason", "requester", "made", "expires")


def _is_line(text: object) -> bool:
    return isinstance(text, str) and 1 <= len(text) <= _MAX_REASON and text.isprintable()


def _digest(request: bytes) -> str:
    return hashlib.sha256(b"tapeseal break-glass request\0" + request).hexdigest()


def seal(
    path: StrPath,
    secrets: Mapping[str, Secret],
    custodians: Mapping[str, Keyring],
    threshold: int,
    *,
    name: str | None = None,
    opens: Sequence[str] = (),
    seconds: int = DEFAULT_SECONDS,
) -> None:
    """Seal secrets so that any `threshold` of the custodians open them together, and a drill beside them.

    Args:
        path: of the package, made or replaced; its drill stands at path.drill.
        secrets: by their names; they stay their owner's.
        custodians: keyrings over their public keys by their names, 2 to 32.
        threshold: at least 2.
        name: of the package; None: that of the file.
        opens: names of the secrets in the rotation plan that this gives access to.
        seconds: the longest that access may be granted for.

    Raises:
        ValueError: names, numbers or sizes that a package cannot have.
        KeyUnavailableError: a custodian's key could not be used.
        OSError: a file could not be written; the one that was there stays.
    """
    path = os.fspath(path)
    name = os.path.basename(path) if name is None else name
    for each in (name, *secrets, *custodians, *opens):
        if not _NAME.fullmatch(each):
            raise ValueError(f"{each!r} is no name: letters, digits, '.', '_' and '-', at most 64")
    if not secrets:
        raise ValueError("there is nothing to seal")
    if not 1 <= seconds <= _MAX_SECONDS:
        raise ValueError("access is granted for a second to a week")
    quorum = check_quorum(custodians, threshold)
    context = {"name": name, "opens": ",".join(opens), "seconds": str(seconds)}
    context |= {f"custodian.{n}": each for n, each in enumerate(custodians, 1)}
    with audit.operation("break-glass.seal", name, custodians=",".join(custodians)):
        plain = _pack(secrets)
        with contextlib.closing(plain), plain:
            package = blob.encrypt(
                plain, keyring=quorum, encryption_context={"purpose": _PURPOSE, **context}
            )
        drill = blob.encrypt(
            b"a drill", keyring=quorum, encryption_context={"purpose": _DRILL_PURPOSE, **context}
        )
        for target, content in ((path + ".drill", drill), (path, package)):
            _write(target, content, replace=True)


def check_quorum(custodians: Mapping[str, Keyring], threshold: int) -> Quorum:
    """Return the quorum of custodians, once it is known that a package can be sealed for it.

    Raises:
        ValueError: too few or too many of them, or one who has several keys, or the key of another.
        KeyUnavailableError: a custodian's key could not be used.
    """
    if len(custodians) > 32:
        raise ValueError(f"{len(custodians)} custodians; 32 are possible")
    quorum = Quorum(threshold, list(custodians.values()))
    with memoryview(blob.encrypt(b"a trial", keyring=quorum)) as view:
        if len(blob.read_header(view).recipients) != len(custodians):
            raise ValueError("a custodian has one key: a share for several cannot be approved")
    return quorum


def request(
    package: StrPath,
    path: StrPath,
    *,
    reason: str,
    seconds: int | None = None,
    requester: str | None = None,
) -> str:
    """Ask for access: write a request for the custodians, and its key file for oneself at path.key.

    Args:
        package: what is to be opened, or its drill.
        path: of the request, where there is nothing yet.
        reason: why; what the custodians and the audit log read.
        seconds: how long access is needed; None: as long as the package grants.
        requester: who; None: user and host.

    Returns:
        The fingerprint to tell the custodians.

    Raises:
        ValueError: no reason, or longer than the package grants.
        FileExistsError: there is a file already.
    """
    found = Package.read(package)
    reason = " ".join(reason.split())
    requester = requester or f"{getpass.getuser()}@{socket.gethostname()}"
    if not (_is_line(reason) and _is_line(requester)):
        raise ValueError(
            f"a request has a reason and a requester, each of at most {_MAX_REASON} characters"
        )
    seconds = found.seconds if seconds is None else seconds
    if not 1 <= seconds <= found.seconds:
        raise ValueError(f"the package grants a second to {found.seconds} s, not {seconds}")
    path = os.fspath(path)
    if os.path.lexists(path):
        raise FileExistsError(17, "the file exists", path)
    with audit.operation("break-glass.request", found.name, reason=reason, drill=int(found.drill)):
        key_file = f"{path}.key"
        key_id = create_key_pair(key_file)
        public = _read_file(f"{key_file}.pub")
        if PublicKeyKeyring.of_public_half(public, f"{key_file}.pub").key_id != key_id:
            raise DamagedError(f"{key_file}.pub was changed while the request was made", 0)
        os.unlink(f"{key_file}.pub")  # The request has it.
        now = datetime.now(UTC).replace(microsecond=0)
        made = Request(
            found.id,
            found.name,
            found.drill,
            reason,
            requester,
            now.isoformat(),
            (now + timedelta(seconds=COLLECTING_SECONDS)).isoformat(),
            seconds,
            public.decode(),
        )
        fields = asdict(made)
        del fields["digest"]
        content = _build("request", fields)
        _write(path, content, replace=False)
    # Of what was written, whatever stands there by now.
    return replace(made, digest=_digest(content)).fingerprint


def approve(
    package: StrPath,
    request: StrPath,
    keyring: Keyring,
    path: StrPath,
    *,
    fingerprint: str | Callable[[Package, Request], str],
) -> str:
    """Grant a request: take this custodian's share and wrap it for the request's key.

    Args:
        package: the package that the request is for, or its drill.
        request: the request's file.
        keyring: over the custodian's private key.
        path: of the approval, where there is nothing yet.
        fingerprint: what the requester said, in person or over the telephone; or a function that shows what is
            granted, and asks for it.

    Returns:
        The custodian's name.

    Raises:
        AccessDeniedError: another fingerprint, another package, or a request that has expired.
        KeyUnavailableError: no share is wrapped for this key.
        DamagedError: the share, or what the package says of itself, was changed.
    """
    _, header = _read_blob(package)
    found = Package._of(os.fspath(package), header)
    asked = Request.read(request)
    asked.check(found)
    if not isinstance(fingerprint, str):
        fingerprint = fingerprint(found, asked)
        asked.check(found)
    if _plain(fingerprint) != _plain(asked.fingerprint):
        raise AccessDeniedError(
            "the fingerprint is not the one of this request: ask whoever made it once more, and if it "
            "stays so, somebody has put another request in its place"
        )
    operator = PublicKeyKeyring.of_public_half(asked.public_key.encode(), f"the key of {request}")
    context = header.content.encryption_context
    reasons: list[str] = []
    for each in header.recipients:
        assert each.share is not None
        try:
            share = keyring.unwrap([each._replace(share=None)], context)
        except KeyUnavailableError as error:
            reasons.append(str(error))
            continue
        except InvalidTag as error:
            raise DamagedError(str(error), 0) from None
        custodian = found.custodians[each.share[2] - 1]
        with (
            share,
            # The file has its name once the audit log has the entry.
            _new(path, replace=False) as fd,
            audit.operation(
                "break-glass.approve",
                found.name,
                custodian=custodian,
                reason=asked.reason,
                requester=asked.requester,
                drill=int(found.drill),
            ),
        ):
            (wrapped,) = operator.wrap(share, _bound(context, asked))
            approval = {
                "request": asked.digest,
                "custodian": custodian,
                "share": each.share[2],
                "approved": datetime.now(UTC).replace(microsecond=0).isoformat(),
                "wrapped": wrapped.wrapped,
            }
            write_all(fd, _build("approval", approval))
        logger.critical(
            "break-glass: %s has approved %s for %s: %s",
            custodian,
            found.name,
            asked.requester,
            asked.reason,
        )
        return custodian
    raise KeyUnavailableError(f"no share of {found.path} is wrapped for this key: {reasons[0]}")


class Opened(Closing, Mapping[str, Secret]):
    """The secrets of an open package, for as long as was granted; a context manager that wipes them on exit."""

    def __init__(
        self, package: Package, request: Request, approved_by: Sequence[str], content: SecretBuffer
    ) -> None:
        self.package = package
        self.request = request
        self.approved_by = tuple(approved_by)
        self.until = time.monotonic() + request.seconds
        """A `time.monotonic()` at which access ends."""
        self._secrets = {} if package.drill else dict(_unpack(content))

    def __getitem__(self, name: str) -> Secret:
        if time.monotonic() >= self.until:
            self.close()
            raise AccessDeniedError(f"the time granted for {self.package.name} is over")
        return self._secrets[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._secrets)

    def __len__(self) -> int:
        return len(self._secrets)

    @property
    def seconds_left(self) -> float:
        """How long access lasts yet."""
        return max(self.until - time.monotonic(), 0.0)

    def close(self) -> None:
        """Wipe the secrets; closing again does nothing."""
        for secret in self._secrets.values():
            secret.close()

    def __repr__(self) -> str:
        return f"<Opened {self.package.name}>"


def open_package(package: StrPath, request: StrPath, approvals: Sequence[StrPath]) -> Opened:
    """Open a package with the approvals of a request, whose key file stands beside it; of a drill, none of it.

    Of more approvals than are needed a wrong one does no harm.

    Raises:
        AccessDeniedError: too few approvals, some of another request, or the request has expired.
        KeyUnavailableError: the request's key file is not there.
        DamagedError: the package or an approval was changed.
    """
    raw, header = _read_blob(package)
    found = Package._of(os.fspath(package), header)
    asked = Request.read(request)
    asked.check(found)
    shares: list[_Approved] = []
    keyring = PublicKeyKeyring(f"{os.fspath(request)}.key")
    for path in approvals:
        number, wrapped = _read_approval(path, asked)
        if not 1 <= number <= len(found.custodians):
            raise DamagedError(f"{os.fspath(path)} holds a share that {found.path} has not", 0)
        recipient = Recipient(PROVIDER, keyring.key_id, wrapped)
        share = _Approved(number, found.custodians[number - 1], recipient)
        if share not in shares:
            shares.append(share)
    approvers = _names(shares)
    if len(approvers) < found.threshold:
        have = ", ".join(approvers) or "nobody"
        raise AccessDeniedError(
            f"{found.threshold} custodians have to approve {found.name}; so far {have} did"
        )
    with audit.operation(
        "break-glass.open",
        found.name,
        reason=asked.reason,
        requester=asked.requester,
        custodians=",".join(approvers),
        seconds=asked.seconds,
        drill=int(found.drill),
    ) as entry:
        context = _bound(header.content.encryption_context, asked)
        content, used = _open_with_any(raw, header, found, keyring, shares, context)
        with contextlib.closing(content):
            opened = Opened(found, asked, _names(used), content)
        # Who has the request can make up approvals of others, which open nothing.
        entry.details["custodians"] = ",".join(opened.approved_by)
    logger.critical(
        "break-glass: %s was opened by %s for %d s, approved by %s: %s",
        found.name + (" (drill)" if found.drill else ""),
        asked.requester,
        asked.seconds,
        ", ".join(opened.approved_by),
        asked.reason,
    )
    return opened


class _Approved(NamedTuple):
    """A share as an approval brings it, which may be a forger's: there can be several of a number."""

    number: int
    custodian: str
    recipient: Recipient


def _names(shares: Sequence[_Approved]) -> list[str]:
    return list(dict.fromkeys(share.custodian for share in shares))


class _Combined:
    """A keyring over shares, whatever recipients a header has."""

    def __init__(self, shares: Mapping[int, DataKey]) -> None:
        self._shares = shares

    def unwrap(
        self, recipients: Sequence[Recipient], encryption_context: Mapping[str, str]
    ) -> DataKey:
        """Put the data key together."""
        return DataKey.combine(self._shares)


def _open_with_any(
    raw: bytes,
    header: Header,
    package: Package,
    keyring: Keyring,
    shares: Sequence[_Approved],
    context: Mapping[str, str],
) -> tuple[SecretBuffer, Sequence[_Approved]]:
    """Open a package with the first shares, as many as are needed, that give its key, and say which."""
    problem = "no approvals"
    with contextlib.ExitStack() as stack:
        keys: dict[_Approved, DataKey] = {}
        for share in sorted(shares):
            try:
                keys[share] = stack.enter_context(keyring.unwrap([share.recipient], context))
            except InvalidTag as error:
                problem = str(error)
        for chosen in _choices(list(keys), package.threshold):
            combined = {share.number: keys[share] for share in chosen}
            try:
                with DataKey.combine(combined) as data_key:
                    check_mac(data_key, header.copy, header.offset)
            except DamagedError as error:
                problem = error.problem
                continue
            try:
                return blob.decrypt_secret(raw, keyring=_Combined(combined)), chosen  # type: ignore[arg-type]
            except DamagedError as error:
                raise DamagedError(f"{package.path}: {error.problem}", error.offset) from None
    if len(shares) > package.threshold:
        problem += f"; no {package.threshold} of the approvals open it"
    names = ", ".join(_names(shares))
    raise DamagedError(f"the package, or an approval of {names}, was changed: {problem}", 0)


def _choices(shares: Sequence[_Approved], threshold: int) -> Iterator[Sequence[_Approved]]:
    """Yield shares of different numbers to be tried together: all choices or, of too many, some at random."""
    of: dict[int, list[_Approved]] = {}
    for share in shares:
        of.setdefault(share.number, []).append(share)
    if len(of) < threshold:
        return
    if math.comb(len(shares), threshold) <= _MAX_TRIES:
        for numbers in itertools.combinations(of, threshold):
            yield from itertools.product(*(of[number] for number in numbers))
        return
    # In order, one wrong share of many would be in all of the first choices.
    for _ in range(_MAX_TRIES):
        yield [random.choice(of[number]) for number in sorted(random.sample(list(of), threshold))]


def _read_approval(path: StrPath, request: Request) -> tuple[int, str]:
    fields = _parse(
        _read_file(path),
        "approval",
        {"request", "custodian", "share", "approved", "wrapped"},
        path,
    )
    number, wrapped = fields["share"], fields["wrapped"]
    if type(number) is not int or not isinstance(wrapped, str):
        raise DamagedError(f"{os.fspath(path)} is no break-glass approval", 0)
    if fields["request"] != request.digest:
        raise AccessDeniedError(f"{os.fspath(path)} approves another request")
    return number, wrapped


def _bound(context: Mapping[str, str], request: Request) -> dict[str, str]:
    """Return the encryption context of a share in an approval, which binds it to package and request."""
    return {**context, "request": request.digest}


def _plain(fingerprint: str) -> str:
    return re.sub(r"[\s-]", "", fingerprint).upper()


# Secrets in one buffer: each name and each value behind its length.


def _pack(secrets: Mapping[str, Secret]) -> SecretBuffer:
    parts = [part for name, secret in secrets.items() for part in (name.encode(), secret.buffer)]
    size = sum(_LENGTH.size + len(part) for part in parts)
    if size > _MAX_FILE_SIZE // 2:
        raise ValueError(
            f"the secrets have {size} bytes in all; {_MAX_FILE_SIZE // 2} are possible"
        )
    packed = SecretBuffer(size, writable=True)
    at = 0
    with packed, memoryview(packed) as target:
        for part in parts:
            at += _core.copy_into(target, at, _LENGTH.pack(len(part)))
            if isinstance(part, bytes):
                at += _core.copy_into(target, at, part)
            else:
                with part:
                    at += _core.copy_into(target, at, part)
    return packed


def _unpack(content: SecretBuffer) -> Iterator[tuple[str, Secret]]:
    with content, memoryview(content) as view:
        at = 0
        while at < len(view):
            ends = []
            for _ in range(2):
                (length,) = _LENGTH.unpack_from(view, at)
                at += _LENGTH.size
                ends.append((at, at + length))
                at += length
            (start, stop), (first, last) = ends
            copy = SecretBuffer(last - first, writable=True)
            with copy, memoryview(copy) as target:
                _core.copy_into(target, 0, view[first:last])
            yield bytes(view[start:stop]).decode(), Secret(copy)


# Files


def _read_blob(path: StrPath) -> tuple[bytes, Header]:
    raw = _read_file(path)
    with memoryview(raw) as view:
        return raw, blob.read_header(view)


def _read_file(path: StrPath) -> bytes:
    with open(path, "rb") as file:
        text = file.read(_MAX_FILE_SIZE + 1)
    if len(text) > _MAX_FILE_SIZE:
        raise DamagedError(f"{os.fspath(path)} has more than {_MAX_FILE_SIZE} bytes", 0)
    return text


def _build(what: str, fields: Mapping[str, Any]) -> bytes:
    return json.dumps({"format": f"tapeseal break-glass {what} v1", **fields}, indent=1).encode()


def _parse(text: bytes, what: str, members: set[str], path: StrPath) -> dict[str, Any]:
    try:
        fields = json.loads(text, object_pairs_hook=unique_members)
    except (ValueError, RecursionError):
        fields = None
    if isinstance(fields, dict):
        form = fields.pop("format", None)
        if form == f"tapeseal break-glass {what} v1" and fields.keys() == members:
            return fields
    raise DamagedError(f"{os.fspath(path)} is no break-glass {what}", 0)


def _write(path: StrPath, content: bytes, *, replace: bool) -> None:
    with _new(path, replace=replace) as fd:
        write_all(fd, content)


@contextlib.contextmanager
def _new(path: StrPath, *, replace: bool) -> Iterator[int]:
    with new_file(path, 0o644, replace=replace) as fd:
        yield fd
        os.fsync(fd)
    sync_directory(path)
