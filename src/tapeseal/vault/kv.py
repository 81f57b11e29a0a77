"""Secrets of KV version 2: versions, check-and-set, metadata, and a cache that outlasts an outage (docs/secrets.md)."""

import contextlib
import logging
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple
from urllib.parse import quote

from hvac.exceptions import InvalidPath, VaultError

from tapeseal import audit
from tapeseal._core import check_process, process_epoch
from tapeseal.closing import Closing
from tapeseal.errors import (
    AccessDeniedError,
    OutcomeUnknownError,
    SecretDeletedError,
    SecretNotFoundError,
    ServiceUnavailableError,
    TapesealError,
    VaultRefusedError,
    VersionConflictError,
)
from tapeseal.secret import Secret
from tapeseal.vault.connection import said_by
from tapeseal.vault.session import VaultSession

__all__ = ["CacheStatistics", "KeyValue", "Metadata", "SecretCache", "SecretVersion", "Version"]

logger = logging.getLogger("tapeseal.vault")

# A part of a path; Vault takes more than that, and clients then disagree on what is meant.
_PART = re.compile(r"(?!\.{1,2}$)[^/\x00-\x1f\x7f]{1,128}")

_CAS_MISMATCH = "check-and-set parameter did not match"
_CAS_MISSING = "check-and-set parameter required"

# How long a standby may be behind a write: up to 0.1 s where it is not busy.
_BEHIND_SECONDS = (0.02, 0.04, 0.08, 0.16, 0.32, 0.64)


class Version(NamedTuple):
    """What is known of one version of a secret, without its values."""

    number: int
    created: datetime
    deleted: datetime | None
    """When it was deleted, or will be by itself; it can be undeleted."""
    destroyed: bool
    """Its values are gone for good."""


@dataclass(frozen=True)
class Metadata:
    """What is known of a secret, without its values."""

    current: int
    """The newest version; 0 before the first."""
    oldest: int
    """Versions before this one are gone."""
    created: datetime
    updated: datetime
    max_versions: int
    """How many are kept; 0: as the mount says."""
    cas_required: bool
    delete_after: timedelta | None
    """After which a version is deleted by itself."""
    custom: Mapping[str, str]
    versions: Mapping[int, Version]


class SecretVersion(Closing, Mapping[str, Secret | None]):
    """The members of one version of a secret; a context manager that wipes them on exit.

    A member whose value is a string is that text, any other value is its JSON text; null and "" are None.
    """

    def __init__(
        self,
        path: str,
        members: Mapping[str, Secret | None],
        version: int,
        created: datetime,
        custom: Mapping[str, str],
        stale_since: datetime | None = None,
    ) -> None:
        self.path = path
        """MOUNT/PATH."""
        self.version = version
        self.created = created
        self.custom = custom
        """The custom metadata of the secret."""
        self.stale_since = stale_since
        """Of one from a cache: since when Vault could not be asked; None: it is not older than the cache allows."""
        self._members = dict(members)

    def __getitem__(self, name: str) -> Secret | None:
        try:
            return self._members[name]
        except KeyError:
            raise SecretNotFoundError(
                f"version {self.version} of {self.path} has no member {name!r}; it has "
                + (", ".join(sorted(self._members)) or "none")
            ) from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._members)

    def __len__(self) -> int:
        return len(self._members)

    def __contains__(self, name: object) -> bool:
        return name in self._members

    def copy(self, stale_since: datetime | None = None) -> "SecretVersion":
        """Return one with copies of the members, which has to be closed by itself."""
        members = {name: each and each.copy() for name, each in self._members.items()}
        return SecretVersion(
            self.path, members, self.version, self.created, self.custom, stale_since
        )

    def close(self) -> None:
        """Wipe the members; closing again does nothing."""
        for each in self._members.values():
            if each is not None:
                each.close()

    def __repr__(self) -> str:
        return f"<SecretVersion {self.version} of {self.path}>"

    def __reduce__(self) -> str:
        raise TypeError("a SecretVersion is neither pickled nor copied")


class KeyValue:
    """A mount of KV version 2.

    Values go between Vault and key memory; no Python object holds one. A read after a write of this object sees it,
    also from a standby that is behind. Threads may share it.

    Args:
        session: the Vault's.
        mount: where the engine is mounted.

    Every method that asks Vault raises, besides what it names itself:
        AccessDeniedError, ServiceUnavailableError: as VaultSession.call().
        VaultRefusedError: Vault takes the request for wrong; the text is its own.
    """

    def __init__(self, session: VaultSession, mount: str = "secret") -> None:
        self.session = session
        self.mount = _checked(mount)
        self._seen: dict[str, int] = {}

    def read(self, path: str, version: int | None = None) -> SecretVersion:
        """Read a secret.

        Args:
            path: under the mount.
            version: None: the newest.

        Raises:
            SecretDeletedError: this version was deleted or destroyed.
            SecretNotFoundError: there is no such secret or version.
            ValueError: a version below 1, which Vault would take for the newest.
        """
        if version is not None and version < 1:
            raise ValueError(f"versions of a secret count from 1: there is no {version}")
        name = self._name(path)
        with audit.operation("kv.read", name) as entry:
            found: SecretVersion | SecretNotFoundError
            for pause in (*_BEHIND_SECONDS, None):
                number = 0
                try:
                    found = self._read(path, version)
                    number = found.version
                except SecretNotFoundError as error:
                    found = error
                    if isinstance(error, SecretDeletedError):
                        number = error.version
                if version is not None or number >= self._seen.get(path, 0):
                    break
                if pause is None:
                    # It was put back to an earlier state, or made anew.
                    self._seen.pop(path, None)
                    break
                if isinstance(found, SecretVersion):
                    found.close()
                time.sleep(pause)
            if isinstance(found, SecretNotFoundError):
                raise found.with_traceback(None)
            entry.version = found.version
            return found

    def _read(self, path: str, version: int | None) -> SecretVersion:
        name = self._name(path)
        what = f"data/{_quoted(path)}" + ("" if version is None else f"?version={version:d}")
        answer = self._ask("GET", what, secret=("data.data.*",))
        with _whole(name):
            data = answer.get("data")
            if data is None:
                raise SecretNotFoundError(
                    f"there is no secret {name}"
                    + ("" if version is None else f" of version {version}")
                )
            metadata = data["metadata"]
            number, members = int(metadata["version"]), data["data"]
            if members is None:
                state = "destroyed" if metadata.get("destroyed") else "deleted"
                raise SecretDeletedError(f"version {number} of {name} was {state}", number)
            return SecretVersion(
                name,
                {member: each or None for member, each in members.items()},
                number,
                datetime.fromisoformat(metadata["created_time"]),
                dict(metadata.get("custom_metadata") or {}),
            )

    def write(
        self, path: str, members: Mapping[str, Secret | str], *, cas: int | None = None
    ) -> int:
        """Write a new version with exactly these members.

        Args:
            path: under the mount.
            members: by their names, at least one; a Secret goes from its own memory. They stay their owner's.
            cas: the version that has to be the newest one now, 0 for none yet; the write can then be repeated safely,
                and whether it was done when the answer was lost, a look at what is there tells.

        Returns:
            The version's number.

        Raises:
            VersionConflictError: another version than `cas` is the newest.
            OutcomeUnknownError: without `cas`, an answer was lost.
        """
        return self._put("kv.write", path, members, cas, self._post)

    def patch(
        self, path: str, members: Mapping[str, Secret | str | None], *, cas: int | None = None
    ) -> int:
        """Write a new version with some members set, or removed where they are None; others stay. As write().

        Where the server has no such call, or a policy does not allow it, the secret is read and written.

        Raises:
            SecretNotFoundError: there is nothing to patch.
        """
        return self._put("kv.patch", path, members, cas, self._patch)

    def _put(
        self,
        action: str,
        path: str,
        members: Mapping[str, Secret | str | None],
        cas: int | None,
        put: Callable[[str, Mapping[str, Secret | str | None], int | None], int],
    ) -> int:
        name = self._name(path)
        if not members:
            raise ValueError(f"{name} would have no members")
        with audit.operation(action, name) as entry:
            try:
                number = put(path, members, cas)
            except VaultRefusedError as error:
                if _CAS_MISSING in str(error):
                    raise VersionConflictError(
                        f"{name} takes no write without the version that it is to follow (cas)"
                    ) from None
                raise
            entry.version = number
        self._seen[path] = max(self._seen.get(path, 0), number)
        return number

    def _post(self, path: str, members: Mapping[str, Secret | str | None], cas: int | None) -> int:
        body: dict[str, Any] = {"data": dict(members)}
        if cas is not None:
            body["options"] = {"cas": cas}
        try:
            answer = self._ask("POST", f"data/{_quoted(path)}", body, idempotent=cas is not None)
        except VaultRefusedError as error:
            if cas is None or _CAS_MISMATCH not in str(error):
                raise
            return self._own_write(path, members, cas)
        return self._number(answer, path)

    def _patch(self, path: str, members: Mapping[str, Secret | str | None], cas: int | None) -> int:
        body: dict[str, Any] = {"data": dict(members)}
        if cas is not None:
            body["options"] = {"cas": cas}
        try:
            answer = self._ask("PATCH", f"data/{_quoted(path)}", body, idempotent=cas is not None)
        except (VaultRefusedError, AccessDeniedError) as error:
            if isinstance(error, VaultRefusedError) and error.status != 405:
                if cas is None or _CAS_MISMATCH not in str(error):
                    raise
                return self._own_write(path, members, cas, patch=True)
            with self.read(path) as found:
                if cas is not None and cas != found.version:
                    raise VersionConflictError(
                        _conflict(self._name(path), cas, found.version)
                    ) from None
                merged: dict[str, Secret | str | None] = {
                    name: "" if each is None else each for name, each in found.items()
                }
                merged |= members
                kept = {name: each for name, each in merged.items() if each is not None}
                return self._post(path, kept, found.version)
        if not answer:
            raise SecretNotFoundError(f"there is no secret {self._name(path)} to patch")
        return self._number(answer, path)

    def _own_write(
        self,
        path: str,
        members: Mapping[str, Secret | str | None],
        cas: int,
        *,
        patch: bool = False,
    ) -> int:
        """Return the version that follows `cas` if it is what we wrote, and its answer was lost.

        Raises:
            VersionConflictError: it is somebody else's, or nobody can tell.
        """
        # A policy may let this token write what it cannot read.
        unseen = contextlib.suppress(SecretNotFoundError, AccessDeniedError)
        with unseen, contextlib.ExitStack() as stack:
            found = stack.enter_context(self.read(path, cas + 1))
            # A patch leaves others as they were. A version that has these and more is not ours.
            before = stack.enter_context(self.read(path, cas)) if patch and cas else {}
            wanted: dict[str, Secret | str | None] = {**before, **members}
            if all(_same(found.get(each), wanted.get(each)) for each in {*found, *wanted}):
                return cas + 1
        newest = None
        with unseen:
            newest = self.metadata(path).current
        raise VersionConflictError(_conflict(self._name(path), cas, newest))

    def list(self, path: str = "", *, recursive: bool = False) -> Iterator[str]:
        """Yield the names under a path; those of folders end with a slash.

        Args:
            path: a folder; "" for the mount.
            recursive: go into folders, and yield the whole paths of secrets alone.
        """
        folder = path.strip("/")
        answer = self._ask("LIST", f"metadata/{_quoted(folder)}" if folder else "metadata")
        with _whole(f"the names in {self.mount}/{folder}"):
            keys = [_checked_name(key) for key in (answer.get("data") or {}).get("keys", [])]
        for key in keys:
            if not recursive:
                yield key
            else:
                whole = f"{folder}/{key}" if folder else key
                if key.endswith("/"):
                    yield from self.list(whole, recursive=True)
                else:
                    yield whole

    def delete(self, path: str, versions: Sequence[int] = ()) -> None:
        """Delete versions, the newest one where none is named; undelete() takes that back."""
        name = self._name(path)
        with audit.operation("kv.delete", name, versions=_listed(versions)):
            if versions:
                self._ask("PUT", f"delete/{_quoted(path)}", {"versions": list(versions)})
            else:
                self._ask("DELETE", f"data/{_quoted(path)}")

    def undelete(self, path: str, versions: Sequence[int]) -> None:
        """Take back the deletion of versions; what was destroyed stays so.

        Raises:
            SecretDeletedError: one of them was destroyed.
        """
        name = self._name(path)
        with audit.operation("kv.undelete", name, versions=_listed(versions)):
            self._ask("PUT", f"undelete/{_quoted(path)}", {"versions": list(versions)})
            known = self.metadata(path).versions
            for number in versions:
                # The server says nothing of it.
                if number in known and known[number].destroyed:
                    raise SecretDeletedError(f"version {number} of {name} was destroyed", number)

    def destroy(self, path: str, versions: Sequence[int]) -> None:
        """Destroy the values of versions for good."""
        with audit.operation("kv.destroy", self._name(path), versions=_listed(versions)):
            self._ask("PUT", f"destroy/{_quoted(path)}", {"versions": list(versions)})

    def forget(self, path: str) -> None:
        """Destroy a secret with all its versions and metadata."""
        with audit.operation("kv.forget", self._name(path)):
            self._ask("DELETE", f"metadata/{_quoted(path)}")
            self._seen.pop(path, None)

    def metadata(self, path: str) -> Metadata:
        """Return what is known of a secret without its values.

        Raises:
            SecretNotFoundError: there is none.
        """
        data = self._ask("GET", f"metadata/{_quoted(path)}").get("data")
        if data is None:
            raise SecretNotFoundError(f"there is no secret {self._name(path)}")
        with _whole(self._name(path)):
            return Metadata(
                int(data["current_version"]),
                int(data["oldest_version"]),
                datetime.fromisoformat(data["created_time"]),
                datetime.fromisoformat(data["updated_time"]),
                int(data["max_versions"]),
                bool(data["cas_required"]),
                _duration(data["delete_version_after"]),
                dict(data.get("custom_metadata") or {}),
                {
                    int(number): Version(
                        int(number),
                        datetime.fromisoformat(each["created_time"] or data["created_time"]),
                        _time(each["deletion_time"]),
                        bool(each["destroyed"]),
                    )
                    for number, each in sorted(
                        (data.get("versions") or {}).items(), key=lambda item: int(item[0])
                    )
                },
            )

    def configure(
        self,
        path: str,
        *,
        max_versions: int | None = None,
        cas_required: bool | None = None,
        delete_after: timedelta | None = None,
        custom: Mapping[str, str] | None = None,
    ) -> None:
        """Change the metadata of a secret, which need not have a version yet; what is None stays as it is.

        Args:
            max_versions: how many are kept; 0: as the mount says.
            cas_required: refuse writes without check-and-set.
            delete_after: delete versions by themselves; 0: never.
            custom: in the place of all custom metadata that there is.
        """
        body: dict[str, Any] = {}
        if max_versions is not None:
            body["max_versions"] = max_versions
        if cas_required is not None:
            body["cas_required"] = cas_required
        if delete_after is not None:
            body["delete_version_after"] = f"{delete_after.total_seconds():.0f}s"
        if custom is not None:
            body["custom_metadata"] = dict(custom)
        with audit.operation("kv.configure", self._name(path)):
            self._ask("POST", f"metadata/{_quoted(path)}", body, idempotent=True)

    def _ask(
        self,
        method: str,
        what: str,
        body: Mapping[str, Any] | None = None,
        *,
        secret: tuple[str, ...] = (),
        idempotent: bool | None = None,
    ) -> dict[str, Any]:
        """Make a request; what is not there is an answer, with what Vault says of deleted versions, or an empty one."""
        path = f"{_quoted(self.mount)}/{what}"
        try:
            return self.session.request(method, path, body, secret=secret, idempotent=idempotent)
        except InvalidPath as error:
            if not error.errors:
                document = getattr(error, "json", None)
                return document if isinstance(document, dict) else {}
            refused, status = said_by(error), 404
        except VaultError as error:
            refused, status = said_by(error), int(getattr(error, "status", 0))
        raise VaultRefusedError(f"{method} {path}: the server says: {refused}", status)

    def _number(self, answer: Mapping[str, Any], path: str) -> int:
        data = answer.get("data")
        number = data.get("version") if isinstance(data, dict) else None
        if not isinstance(number, int):
            raise OutcomeUnknownError(
                f"the answer to a write of {self._name(path)} holds no version; whether it was "
                "written is unknown"
            )
        return number

    def _name(self, path: str) -> str:
        return f"{self.mount}/{_checked(path)}"

    def __repr__(self) -> str:
        return f"<KeyValue {self.mount} of {self.session!r}>"


class CacheStatistics(NamedTuple):
    """What a cache has done, for metrics."""

    hits: int
    """Answers from memory within max_age."""
    reads: int
    """Answers of Vault."""
    stale: int
    """Answers from memory beyond max_age, while Vault was away."""
    entries: int


class _Entry:
    """One secret in a cache: its newest version as it is known, and one read of it at a time."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.found: SecretVersion | None = None
        self.read_at = 0.0
        self.failed_at = 0.0
        self.problem = ""
        self.away_since: datetime | None = None


class SecretCache(Closing):
    """A read-through cache over a mount, which serves what it read last while Vault is away.

    What Vault refuses or has no more is dropped at once: an outage alone makes it serve what is old. Threads may share
    it, and wait for one read of a secret together; a fork makes its own. A context manager that wipes all on exit.

    Args:
        store: the mount.
        max_age_seconds: how old a value may be without another look.
        max_stale_seconds: how old it may be while Vault cannot be asked.
        max_entries: secrets kept; those not used for longest go first.
    """

    def __init__(
        self,
        store: KeyValue,
        *,
        max_age_seconds: float = 60.0,
        max_stale_seconds: float = 3600.0,
        max_entries: int = 256,
    ) -> None:
        if not 0 <= max_age_seconds <= max_stale_seconds or max_entries < 1:
            raise ValueError("a cache has 0 <= max_age_seconds <= max_stale_seconds, and entries")
        self.store = store
        self.max_age_seconds = max_age_seconds
        self.max_stale_seconds = max_stale_seconds
        self.max_entries = max_entries
        self._lock = threading.Lock()
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._counts = {"hits": 0, "reads": 0, "stale": 0}
        self._closed = False
        self._epoch = process_epoch()

    def read(self, path: str) -> SecretVersion:
        """Return the newest version of a secret, which the caller closes; errors as KeyValue.read().

        While Vault cannot be asked it is the last one known, and its `stale_since` says since when.

        Raises:
            ServiceUnavailableError: Vault is away, and what is known is older than max_stale_seconds.
            ForkError: the cache is of the process that forked this one.
        """
        check_process(self._epoch)
        asked = time.monotonic()
        with self._lock:
            if self._closed:
                raise ValueError("the cache is closed")
            entry = self._entries.setdefault(path, _Entry())
            self._entries.move_to_end(path)
            dropped = [
                self._entries.popitem(last=False)[1]
                for _ in range(len(self._entries) - self.max_entries)
            ]
        for each in dropped:
            with each.lock:
                self._wipe(each)
        with entry.lock:
            try:
                return self._read(path, entry, asked)
            finally:
                with self._lock:
                    kept = not self._closed and self._entries.get(path) is entry
                if not kept:
                    self._wipe(entry)

    def _read(self, path: str, entry: _Entry, asked: float) -> SecretVersion:
        now = time.monotonic()
        if entry.found is not None and now - entry.read_at < self.max_age_seconds:
            self._counts["hits"] += 1
            return entry.found.copy()
        if entry.failed_at > asked:
            # The try that it waited for is its own too: each would take the whole deadline, one after the other.
            if entry.found is None:
                raise ServiceUnavailableError(entry.problem)
            self._counts["stale"] += 1
            return entry.found.copy(entry.away_since)
        try:
            found = self.store.read(path)
        except ServiceUnavailableError as error:
            entry.failed_at, entry.problem = time.monotonic(), str(error)
            age = entry.failed_at - entry.read_at
            if entry.found is None or age >= self.max_stale_seconds:
                self._wipe(entry)
                raise
            if entry.away_since is None:
                entry.away_since = datetime.now(UTC)
                logger.warning(
                    "%s is served from memory, %.0f s old, for at most %.0f s more: %s",
                    entry.found.path,
                    age,
                    self.max_stale_seconds - age,
                    error,
                )
            self._counts["stale"] += 1
            return entry.found.copy(entry.away_since)
        except BaseException:
            # Refused, deleted or unknown: whoever may no longer read it does not get it from here.
            self._wipe(entry)
            raise
        if entry.away_since is not None:
            logger.info("%s is read from Vault again", found.path)
        self._wipe(entry)
        entry.found, entry.read_at = found, now
        self._counts["reads"] += 1
        return found.copy()

    @staticmethod
    def _wipe(entry: _Entry) -> None:
        if entry.found is not None:
            entry.found.close()
        entry.found = entry.away_since = None

    def drop(self, path: str) -> None:
        """Forget a secret, so that the next read asks Vault.

        Raises:
            ForkError: as read().
        """
        check_process(self._epoch)
        with self._lock:
            entry = self._entries.pop(path, None)
        if entry is not None:
            with entry.lock:
                self._wipe(entry)

    def statistics(self) -> CacheStatistics:
        """Say what the cache has done so far.

        Raises:
            ForkError: as read().
        """
        check_process(self._epoch)
        with self._lock:
            return CacheStatistics(**self._counts, entries=len(self._entries))

    def close(self) -> None:
        """Wipe all; closing again does nothing."""
        if process_epoch() != self._epoch:
            return  # Wiped by the fork, whose locks nobody may ever release.
        with self._lock:
            self._closed = True
            entries = [*self._entries.values()]
            self._entries.clear()
        for entry in entries:
            with entry.lock:
                self._wipe(entry)

    def __repr__(self) -> str:
        return f"<SecretCache of {self.store!r}>"

    def __reduce__(self) -> str:
        raise TypeError("a SecretCache is neither pickled nor copied")


@contextlib.contextmanager
def _whole(what: str) -> Iterator[None]:
    """Raise ServiceUnavailableError where what reads an answer does not find in it what every server says."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, TapesealError):
            raise
    else:
        return
    raise ServiceUnavailableError(
        f"{what}: the answer is not whole: try again, and ask whoever runs Vault or what stands before it"
    )


def _checked_name(name: str) -> str:
    _checked(name.removesuffix("/"))
    return name


def _checked(path: str) -> str:
    """Return a path as it is, if it is one.

    Raises:
        ValueError: it has an empty part, "..", or what no name has.
    """
    if not all(_PART.fullmatch(part) for part in path.split("/")):
        raise ValueError(f"{path!r} is no path of a secret: NAME, or FOLDER/NAME")
    return path


def _quoted(path: str) -> str:
    return quote(_checked(path))


def _listed(versions: Sequence[int]) -> str | None:
    return ",".join(map(str, versions)) or None


def _conflict(name: str, cas: int, newest: int | None) -> str:
    if newest is None:
        return (
            f"{name} was changed meanwhile: version {cas} is not the newest; read it and try again"
        )
    return f"{name} was changed meanwhile: version {newest} is the newest, not {cas}; read it and try again"


def _same(found: Secret | None, given: Secret | str | None) -> bool:
    if found is None or given is None or given == "":
        return found is None and given in (None, "")
    if isinstance(given, Secret):
        return found == given
    with Secret.take(bytearray(given.encode())) as text:
        return found == text


def _time(text: str) -> datetime | None:
    return datetime.fromisoformat(text) if text else None


def _duration(text: str) -> timedelta | None:
    """Read a duration as Go writes it, "720h0m0s"; None for 0."""
    units = {"h": 3600.0, "m": 60.0, "s": 1.0}
    parts = re.findall(r"([0-9.]+)([hms])", text)
    seconds = sum(float(number) * units[unit] for number, unit in parts)
    return timedelta(seconds=seconds) if seconds else None
