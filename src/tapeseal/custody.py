"""Custody of a Vault: its unseal shares, each encrypted to the custodian who has it (docs/break-glass.md).

    initialise(session, {"alice": alice, "bob": bob, "carol": carol}, 2, "shares")    # public keys, once
    unseal(session, "shares/alice.share", alice_private)                               # each, on each node

A share is a blob for one custodian's public key. No share is ever a Python object, nor on a disk in the clear.
"""

import contextlib
import os
import re
import secrets
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from hvac.exceptions import VaultError

from tapeseal import audit, blob, break_glass
from tapeseal.datakey import Keyring
from tapeseal.errors import (
    AccessDeniedError,
    OutcomeUnknownError,
    ServiceUnavailableError,
    VaultRefusedError,
)
from tapeseal.files import StrPath, has_name, pwrite_all, sync_directory
from tapeseal.secret import Secret
from tapeseal.vault.connection import said_by
from tapeseal.vault.session import VaultSession

__all__ = ["Initialised", "SealStatus", "initialise", "seal_status", "unseal"]

_PURPOSE: Final = "vault share"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
# More than a share with its header; taken on the disk before there is anything to lose.
_ROOM: Final = 1 << 16
_MAX_SHARE: Final = 1 << 20
# A storage or an HSM may take long, and an answer that nobody waits for is lost.
_INIT_SECONDS: Final = 60.0
# How long a node that has its shares takes to join its cluster.
_JOIN_SECONDS: Final = 10.0


class Initialised(NamedTuple):
    """What came of it."""

    shares: dict[str, Path]
    """The file of each custodian."""
    root: Path
    """The package with the root token, for a quorum of them."""
    recovery: bool
    """Whether they are recovery shares: the Vault unseals by itself, and they authorise what a quorum must."""


class SealStatus(NamedTuple):
    """How far a Vault is from serving."""

    initialised: bool
    sealed: bool
    threshold: int
    progress: int
    """Shares that were given so far; after enough of them 0 until a node has joined its cluster."""
    automatic: bool
    """It unseals by itself, by a KMS or the like."""


def seal_status(session: VaultSession) -> SealStatus:
    """Ask a Vault whether it is sealed; needs no login.

    Raises:
        ServiceUnavailableError: it gives no whole answer in time.
    """
    answer = _ask(session, "GET", "sys/seal-status")
    try:
        return SealStatus(
            bool(answer["initialized"]),
            bool(answer["sealed"]),
            int(answer["t"]),
            int(answer["progress"]),
            # Shamir's is the type of one that people unseal.
            bool(answer.get("recovery_seal", answer.get("type") != "shamir")),
        )
    except (KeyError, TypeError, ValueError):
        raise ServiceUnavailableError(
            "an answer of Vault does not say whether it is sealed"
        ) from None


def initialise(
    session: VaultSession,
    custodians: Mapping[str, Keyring],
    threshold: int,
    directory: StrPath,
) -> Initialised:
    """Initialise a Vault, and hand each custodian a share that nobody else can read.

    All that can go wrong is tried before Vault is asked, and room for what it answers is taken on the disk: it says the
    shares once, and without them all that it will ever hold is lost.

    Args:
        session: the Vault, of one node.
        custodians: keyrings over their public keys, by their names.
        threshold: how many of them unseal together, at least 2.
        directory: where NAME.share of each is written, and root.glass with its drill, the root token in a break-glass
            package for the same quorum.

    Raises:
        ValueError: names or numbers that cannot be; the Vault is initialised already.
        FileExistsError: one of the files is there.
        KeyUnavailableError: a custodian's key cannot be used; a ServiceUnavailableError: Vault is away.
        OutcomeUnknownError: Vault did not answer, and is initialised now: its shares are lost.
    """
    folder = Path(directory)
    for name in custodians:
        if not _NAME.fullmatch(name) or name == "root":
            raise ValueError(f"{name!r} is no name of a custodian")
    break_glass.check_quorum(custodians, threshold)
    root = folder / "root.glass"
    files = {name: folder / f"{name}.share" for name in custodians}
    for path in (*files.values(), root, folder / "root.glass.drill"):
        if os.path.lexists(path):
            raise FileExistsError(17, "the file exists", str(path))
    with (
        contextlib.ExitStack() as last,
        audit.operation("vault.init", session.addresses[0], custodians=",".join(custodians)),
    ):
        status = seal_status(session)
        if status.initialised:
            raise ValueError(f"the Vault at {session.addresses[0]} is initialised already")
        kind = "recovery" if status.automatic else "secret"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with contextlib.ExitStack() as held, contextlib.ExitStack() as unneeded:
            fds = {}
            for name, path in files.items():
                # Under their own names: nothing is left then that a file could get in the way of.
                fds[name] = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
                held.callback(os.close, fds[name])
                unneeded.callback(path.unlink)
                os.posix_fallocate(fds[name], 0, _ROOM)
            problems = []
            # Room for the root token and its drill, given back when it is needed.
            with _room(folder, 4 * _ROOM):
                last.enter_context(_uninterrupted())
                # Nor is an audit log that is full worth the shares.
                held.enter_context(audit.regardless())
                answer = _init(session, kind, len(custodians), threshold)
                shares, token = _taken(answer, kind, len(custodians))
                # From here on nothing may keep the other shares from the disk.
                unneeded.pop_all()
                for each in (*shares, token):
                    held.enter_context(each)
                for number, (share, name) in enumerate(zip(shares, custodians, strict=True), 1):
                    context = {
                        "purpose": _PURPOSE,
                        "custodian": name,
                        "vault": session.addresses[0],
                        "share": f"{number} of {len(custodians)}, {threshold} unseal",
                        "kind": kind,
                    }
                    try:
                        _write_share(fds[name], share, custodians[name], context)
                        if not has_name(fds[name], files[name]):
                            raise FileNotFoundError("somebody took it away")
                    except Exception as error:
                        problems.append(f"{files[name]}: {error}")
            sync_directory(root)
            try:
                break_glass.seal(
                    root, {"root-token": token}, custodians, threshold, name="vault-root"
                )
            except Exception as error:
                problems.append(f"{root}: {error}")
            if problems:
                raise OSError(
                    f"Vault is initialised, and not all that it said is kept: {'; '.join(problems)}"
                )
        return Initialised(files, root, status.automatic)


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Have the signals by which people end a process wait: who gives up on a slow answer loses all shares."""
    came: list[int] = []
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        before = {
            each: signal.signal(each, lambda number, frame: came.append(number))
            for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for number in came:
            signal.raise_signal(number)


@contextlib.contextmanager
def _room(folder: Path, size: int) -> Iterator[None]:
    """Hold room on the disk."""
    path = folder / f".room.{secrets.token_hex(6)}"
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(fd, 0, size)
        yield
    finally:
        os.close(fd)
        path.unlink(missing_ok=True)


def _write_share(fd: int, share: Secret, keyring: Keyring, context: Mapping[str, str]) -> None:
    with share.buffer as buffer:
        sealed = blob.encrypt(buffer, keyring=keyring, encryption_context=context)
    pwrite_all(fd, sealed, 0)
    os.ftruncate(fd, len(sealed))
    os.fsync(fd)


def _init(session: VaultSession, kind: str, shares: int, threshold: int) -> dict[str, Any]:
    body = {f"{kind}_shares": shares, f"{kind}_threshold": threshold}
    secret = [
        f"{prefix}keys{suffix}.*" for prefix in ("", "recovery_") for suffix in ("", "_base64")
    ]
    try:
        return _ask(
            session,
            "POST",
            "sys/init",
            body,
            secret=(*secret, "root_token"),
            timeout=_INIT_SECONDS,
            deadline=_INIT_SECONDS,
        )
    except OutcomeUnknownError as error:
        done = True
        with contextlib.suppress(ServiceUnavailableError, VaultRefusedError):
            done = seal_status(session).initialised
        if not done:
            raise ServiceUnavailableError(
                f"Vault did not initialise, and nothing is lost: try again. {error}"
            ) from None
        raise OutcomeUnknownError(
            f"the answer of Vault, with all shares in it, was lost: {error}. If it says that it is "
            "initialised now, nobody can ever unseal it: stop it, wipe its storage, and begin again "
            "before anything is kept there"
        ) from None


def _taken(answer: Mapping[str, Any], kind: str, count: int) -> tuple[list[Secret], Secret]:
    """Return the shares and the root token of an answer; the same shares in hex are wiped."""
    prefix = "recovery_" if kind == "recovery" else ""
    shares = answer.get(f"{prefix}keys_base64")
    for name in ("keys", "recovery_keys"):
        for each in answer.get(name) or ():
            if isinstance(each, Secret):
                each.close()
    token = answer.get("root_token")
    if (
        not isinstance(shares, list)
        or len(shares) != count
        or not all(isinstance(each, Secret) for each in (*shares, token))
    ):
        raise OutcomeUnknownError(
            "Vault has initialised itself and did not say all shares: stop it, wipe its storage, and begin again"
        )
    assert isinstance(token, Secret)
    return shares, token


def unseal(session: VaultSession, share: StrPath, keyring: Keyring) -> SealStatus:
    """Give a Vault a custodian's share; once as many as it takes are there, it serves.

    Args:
        session: of one node; each of a cluster is unsealed by itself.
        share: the custodian's file.
        keyring: over the custodian's private key.

    Raises:
        DamagedError, NotATapeError: the file was changed, or is none.
        KeyUnavailableError: the key is not the custodian's.
        AccessDeniedError: Vault does not take the shares that it was given; it starts over.
        ValueError: the file is something else, or the Vault is not initialised.
    """
    address = session.addresses[0]
    with open(share, "rb") as file:
        raw = file.read(_MAX_SHARE + 1)
    with memoryview(raw[:_MAX_SHARE]) as view:
        context = blob.read_header(view).content.encryption_context
    if context.get("purpose") != _PURPOSE:
        raise ValueError(f"{os.fspath(share)} is no share of a Vault")
    if not seal_status(session).initialised:
        raise ValueError(
            f"the Vault at {address} is not initialised; a further node of a cluster is when it has "
            "found the first one: try again in a moment"
        )
    custodian = context.get("custodian", "")
    with (
        audit.operation("vault.unseal", address, custodian=custodian),
        Secret(blob.decrypt_secret(raw, keyring=keyring)) as key,
    ):
        try:
            _ask(session, "PUT", "sys/unseal", {"key": key}, idempotent=True)
        except VaultRefusedError as error:
            raise AccessDeniedError(
                f"Vault does not unseal: {error}. One of the shares that it was given is of another "
                "Vault, or was given twice; it starts over, and all of them have to be given again"
            ) from None
        end = time.monotonic() + _JOIN_SECONDS
        while (status := seal_status(session)).sealed and status.progress == 0:
            # A node that joins a cluster by raft has taken the shares, and stays sealed until it has joined.
            if time.monotonic() > end:
                break
            time.sleep(0.1)
        return status


def _ask(
    session: VaultSession,
    method: str,
    path: str,
    body: Mapping[str, Any] | None = None,
    *,
    secret: tuple[str, ...] = (),
    idempotent: bool | None = None,
    timeout: float | None = None,
    deadline: float | None = None,
) -> dict[str, Any]:
    try:
        return session.request(
            method,
            path,
            body,
            secret=secret,
            idempotent=idempotent,
            timeout=timeout,
            deadline=deadline,
            login=False,
        )
    except VaultError as error:
        problem, status = said_by(error), int(getattr(error, "status", 0))
    raise VaultRefusedError(f"{method} {path}: the server says: {problem}", status)
