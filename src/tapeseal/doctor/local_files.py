"""Checks of files: who may read keys and tokens, who may change them, or what leads to them."""

import contextlib
import os
import shlex
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from tapeseal.doctor.findings import Checks, Look, Problem, SetUp, registrar

SECONDS: Final = 30.0

CHECKS: Final[Checks] = {}
check = registrar(CHECKS)


class Known(NamedTuple):
    """A file that matters."""

    path: str
    what: str
    """What it is, to stand before its path in a sentence."""
    forbidden: int
    """The permission bits that it must not have."""


_SECRET: Final = 0o077
_OWN: Final = 0o022
_LOG: Final = 0o007


class FilesLook(Look):
    """The files that the set-up names or the environment does, as far as they are there."""

    def __init__(self, files: Iterator[Known]) -> None:
        super().__init__("the files", SECONDS)
        self.files: list[tuple[Known, os.stat_result]] = []
        self._missing: list[tuple[str, str, str]] = []
        for each in dict.fromkeys(files):
            try:
                self.files.append((each, os.stat(each.path)))
            except OSError as error:
                self._missing.append((each.path, each.what, error.strerror or ""))

    def present(self) -> Iterator[tuple[Known, os.stat_result]]:
        """Yield each file with its status; those that could not be looked at are noted."""
        for path, what, said in self._missing:
            self.not_seen(
                path,
                path,
                f"the {what} could not be looked at: {said}",
                command=f"ls -ld {shlex.quote(path)}",
            )
        for each in self.files:
            self.seen += 1
            yield each


def _files(set_up: SetUp) -> Iterator[Known]:
    from tapeseal.keyrings import parse_uri
    from tapeseal.rotation.plan import Plan

    home = Path("~").expanduser()
    for file, what in (
        (home / ".vault-token", "token file"),
        (home / ".bao-token", "token file"),
        (home / ".aws" / "credentials", "credentials file of AWS"),
    ):
        if file.exists():
            yield Known(str(file), what, _SECRET)
    for name in ("BAO_CLIENT_KEY", "VAULT_CLIENT_KEY"):
        if os.environ.get(name):
            yield Known(os.environ[name], "private key of the client certificate", _SECRET)
    uris = [*set_up.keyrings, *os.environ.get("TAPESEAL_AUDIT_KEYRING", "").split()]
    for uri in uris:
        provider, path, parameters = parse_uri(
            uri, ("local", "public-key", "aws-kms", "vault-transit"), "keyring"
        )
        if provider == "local":
            yield Known(path, "key file", _SECRET)
        elif provider == "public-key":
            yield Known(
                path, *(("private half", _SECRET) if _is_private(path) else ("public half", _OWN))
            )
        if "passphrase_file" in parameters:
            yield Known(parameters["passphrase_file"], "passphrase file", _SECRET)
    if set_up.plan is not None:
        yield Known(set_up.plan, "rotation plan", _OWN)
    plan = set_up.read_plan
    if isinstance(plan, Plan) and plan.state.exists():
        yield Known(str(plan.state), "journal of rotations", _SECRET)
    if set_up.log is not None:
        yield Known(set_up.log, "audit log", _LOG)
        yield Known(f"{set_up.log}.head", "head of the audit log", _LOG)


def _is_private(path: str) -> bool:
    """Whether a file is the private half of a key pair: its first line says so, and is no secret."""
    return b"PRIVATE" in _first_line(path)


def _first_line(path: str) -> bytes:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        # As long as the label of an encrypted key, and no longer: after it comes the key.
        return os.read(fd, len(b"-----BEGIN ENCRYPTED PRIVATE KEY")) if _is_regular(fd) else b""
    finally:
        os.close(fd)


def _is_regular(fd: int) -> bool:
    return stat.S_ISREG(os.fstat(fd).st_mode)


@contextlib.contextmanager
def look(set_up: SetUp) -> Iterator[FilesLook | None]:
    """Look at the files of the set-up."""
    yield FilesLook(_files(set_up))


@check(
    "file.mode",
    "Keys, tokens and journals that others may read, and plans that others may write.",
    "Whoever reads a key has what it opens; whoever writes the plan runs commands as who runs it.",
)
def _mode(files: FilesLook) -> Iterator[Problem]:
    for each, status in files.present():
        mode = stat.S_IMODE(status.st_mode)
        if mode & each.forbidden:
            may = [
                word
                for word, bits in (("read", 0o044), ("changed", 0o022))
                if mode & bits & each.forbidden
            ]
            yield Problem(
                "serious",
                each.path,
                f"the {each.what} can be {' and '.join(may) or 'entered'} by others (mode {mode:04o})",
                command=f"chmod {mode & ~each.forbidden:04o} {shlex.quote(each.path)}",
            )


@check(
    "file.owner",
    "Files that belong to another user than this one or root.",
    "Their owner can change them whatever their mode.",
)
def _owner(files: FilesLook) -> Iterator[Problem]:
    for each, status in files.present():
        if status.st_uid not in (os.geteuid(), 0):
            yield Problem(
                "serious",
                each.path,
                f"the {each.what} belongs to another user (uid {status.st_uid})",
                command=f"chown {os.geteuid()} {shlex.quote(each.path)}",
            )


@check(
    "file.directory",
    "Directories on the way to these files that others may write.",
    "Whoever may write a directory can put another file in the place of one in it.",
)
def _directory(files: FilesLook) -> Iterator[Problem]:
    seen = set()
    for each, _ in files.present():
        for path in (os.path.abspath(each.path), os.path.realpath(each.path)):
            for parent in map(str, Path(path).parents):
                if parent in seen:
                    continue
                seen.add(parent)
                status = os.stat(parent)
                mode = stat.S_IMODE(status.st_mode)
                # In a sticky one, such as /tmp, others cannot touch what is not theirs.
                if mode & 0o022 and not mode & stat.S_ISVTX:
                    yield Problem(
                        "serious",
                        parent,
                        f"others may write it (mode {mode:04o}), and the {each.what} is below it",
                        command=f"chmod go-w {shlex.quote(parent)}",
                    )
                elif status.st_uid not in (os.geteuid(), 0):
                    yield Problem(
                        "warning",
                        parent,
                        f"it belongs to another user (uid {status.st_uid}), and the {each.what} is below it",
                        command=f"chown {os.geteuid()} {shlex.quote(parent)}",
                    )


@check(
    "file.passphrase",
    "Key files without a passphrase.",
    "A copy of such a file, from a backup or a disk that was thrown away, is the key.",
)
def _passphrase(files: FilesLook) -> Iterator[Problem]:
    from tapeseal.errors import TapesealError
    from tapeseal.keyrings.local import needs_passphrase

    for each, _ in files.present():
        if each.what == "key file":
            try:
                open_to_all = not needs_passphrase(each.path)
            except TapesealError as error:
                files.not_seen(
                    each.path, each.path, f"could not be looked at: {error}", "Mend that first."
                )
                continue
            new = "tapeseal keygen --passphrase NEW.key"
        elif each.what == "private half":
            open_to_all = b"ENCRYPTED" not in _first_line(each.path)
            new = "tapeseal keygen --public --passphrase NEW"
        else:
            continue
        if open_to_all:
            yield Problem(
                "info",
                each.path,
                "it is under no passphrase",
                "Make a new one, and rewrap the tapes to it.",
                new,
            )
