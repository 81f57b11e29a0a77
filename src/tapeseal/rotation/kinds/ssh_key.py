"""The kind "ssh-key": a key pair made here, which servers take for its certificate, or by name."""

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final

from tapeseal.errors import RotationError, ServiceUnavailableError
from tapeseal.files import new_file, sync_directory, write_all
from tapeseal.rotation.kinds import Credential, Live, Rotation, Services
from tapeseal.rotation.kinds.stored import (
    SETTINGS,
    Stored,
    destroy_calls,
    live_calls,
    old_calls,
    read_text,
    write_calls,
)
from tapeseal.rotation.settings import Setting
from tapeseal.secret import Secret

if TYPE_CHECKING:
    from tapeseal.rotation.plan import PlannedSecret
    from tapeseal.vault.ssh import Ssh

_PARTS: Final = ("private_key", "public_key", "certificate")


class SshKey:
    """Keeps an Ed25519 key pair in KV, where its users read it, and has servers refuse the old one.

    The parts are `private_key`, in OpenSSH's format, `public_key`, a line, and with a `role` `certificate`, a line.

    With a `role`, the SSH engine at `ssh_mount` signs the public key for the `principals`, valid for `ttl`: all servers
    that trust its CA take it at once. The old one ends in `revoked_keys`, a KRL that servers name as RevokedKeys.
    Without one, the public key is a line of `authorized_keys`, beside that of the old one until the revoke.
    """

    settings: ClassVar[Mapping[str, Setting]] = {
        **SETTINGS,
        "ssh_mount": Setting(str, default="ssh"),
        "role": Setting(str, default=None),
        "principals": Setting(list, default=None),
        "ttl": Setting(timedelta, default=timedelta(days=365)),
        "revoked_keys": Setting(Path, default=None),
        "authorized_keys": Setting(Path, default=None, names=True),
        "restrictions": Setting(str, default="restrict"),
    }

    def live(self, secret: "PlannedSecret", services: Services) -> Live | None:
        """Return the current version in KV, and when its certificate ends."""
        stored = Stored(secret, services)
        live = stored.live()
        if live is None or secret.options["role"] is None:
            return live
        from tapeseal.vault.ssh import parse_certificate

        with stored.read(live.version) as found:
            certificate = read_text(found, "certificate")
        if certificate is None:
            return live
        return Live(live.version, live.made, parse_certificate(certificate).valid_before)

    def generate(self, rotation: Rotation) -> Credential:
        """Make a key pair that servers take; what an interrupted try left behind is taken away first."""
        from tapeseal.vault.private_keys import make_ssh_key_pair

        options = rotation.secret.options
        pair = make_ssh_key_pair(_mark(rotation))
        credential = {"private_key": pair.private, "public_key": _text(pair.public)}
        try:
            if options["role"] is not None:
                # A certificate whose answer was lost is for a key that nobody has.
                signed = _ssh(rotation).sign(
                    options["role"],
                    pair.public,
                    principals=options["principals"],
                    seconds=options["ttl"].total_seconds(),
                    key_id=_mark(rotation),
                )
                credential["certificate"] = _text(signed.text)
            if options["authorized_keys"] is not None:
                line = f"{options['restrictions']} {pair.public}"
                with _lines(options["authorized_keys"]) as lines:
                    lines[:] = [each for each in lines if not _is_marked(each, rotation)]
                    lines.append(line)
        except BaseException:
            pair.private.close()
            raise
        return credential

    def store(self, rotation: Rotation, credential: Credential) -> None:
        """Write the next version in KV."""
        Stored(rotation.secret, rotation.services).write(rotation, credential)

    def old(self, rotation: Rotation) -> Credential:
        """Read the version before."""
        return Stored(rotation.secret, rotation.services).old(rotation, _PARTS)

    def discard(self, rotation: Rotation) -> None:
        """Put back the version before, then have servers refuse the new key."""
        Stored(rotation.secret, rotation.services).restore(rotation)
        options = rotation.secret.options
        if options["role"] is not None:
            _revoke(
                rotation, key_ids=[_mark(rotation)], ca_public_key=_ssh(rotation).ca_public_key()
            )
        if options["authorized_keys"] is not None:
            _remove(options["authorized_keys"], lambda line: _is_marked(line, rotation))

    def revoke(self, rotation: Rotation) -> None:
        """Have servers refuse the old key, and destroy its version in KV."""
        stored = Stored(rotation.secret, rotation.services)
        before = rotation.facts.get("old_version")
        if before is None:
            return
        with stored.read(before) as found:
            public_key = read_text(found, "public_key")
            if found is not None and public_key is None:
                raise RotationError(
                    f"version {before} of {stored.name} has no member 'public_key', so which key is to be refused is "
                    "unknown: see to it by hand, and destroy that version"
                )
        if public_key is not None:
            options = rotation.secret.options
            if options["role"] is not None:
                _revoke(rotation, public_keys=[public_key])
            if options["authorized_keys"] is not None:
                key = public_key.split()[1]
                _remove(options["authorized_keys"], lambda line: key in line.split())
        stored.destroy_old(rotation, "private_key")

    def calls(self, secret: "PlannedSecret") -> list[str]:
        """Name the calls of a rotation."""
        options = secret.options
        role, lines = options["role"], options["authorized_keys"]
        if role is None and lines is None:
            raise ValueError("a key needs a role, or authorized_keys: otherwise no server takes it")
        for name in ("principals", "revoked_keys"):
            if (options[name] is None) != (role is None):
                raise ValueError(f"role and {name} go together")
        sign, revoke = list[str](), list[str]()
        if role is not None:
            sign.append(f"POST {options['ssh_mount']}/sign/{role}")
            revoke.append(f"write {options['revoked_keys']}")
        if lines is not None:
            sign.append(f"write {lines}")
            revoke.append(f"write {lines}")
        return [
            *live_calls(options),
            *([] if role is None else old_calls(options)),
            *sign,
            *write_calls(options),
            *old_calls(options),
            *old_calls(options),
            *revoke,
            *destroy_calls(options),
        ]


def _ssh(rotation: Rotation) -> "Ssh":
    from tapeseal.vault.ssh import Ssh

    return Ssh(rotation.services.vault, rotation.secret.options["ssh_mount"])


def _text(text: str) -> Secret:
    return Secret.take(bytearray(text.encode()))


def _mark(rotation: Rotation) -> str:
    """Return the comment and key id of what a rotation makes."""
    return f"tapeseal-{rotation.id}"


def _is_marked(line: str, rotation: Rotation) -> bool:
    return line.split()[-1:] == [_mark(rotation)]


def _revoke(rotation: Rotation, **what: Any) -> None:
    from tapeseal.vault.ssh import Krl

    try:
        Krl(rotation.secret.options["revoked_keys"]).revoke(**what)
    except BlockingIOError as error:
        raise ServiceUnavailableError(f"{error.filename}: {error.strerror}") from None


def _remove(path: Path, wanted: Callable[[str], bool]) -> None:
    with _lines(path) as lines:
        lines[:] = [line for line in lines if not wanted(line)]


@contextlib.contextmanager
def _lines(path: Path) -> Iterator[list[str]]:
    """Yield the lines of a file, and put them in its place, all at once, where they were changed.

    Raises:
        ServiceUnavailableError: another run is at it.
    """
    path = Path(os.path.realpath(path))
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ServiceUnavailableError(f"{path}: another run is at work on it") from None
        before = path.stat() if path.exists() else None
        lines = path.read_text().splitlines() if before is not None else []
        after = list(lines)
        yield after
        if after != lines:
            with new_file(path, 0o600, replace=True) as fd:
                if before is not None and os.geteuid() == 0:
                    # sshd takes only a file that belongs to the user, or root.
                    os.fchown(fd, before.st_uid, before.st_gid)
                write_all(fd, "".join(f"{line}\n" for line in after).encode())
                os.fsync(fd)
            sync_directory(path)
    finally:
        os.close(directory)
