"""The kind "api-key": a key in KV, made here or issued by an exchange."""

import json
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final, Protocol

from tapeseal._core import SecretBuffer
from tapeseal.errors import AccessDeniedError, RotationError
from tapeseal.rotation.commands import credential_of, run_command
from tapeseal.rotation.http import Reply, check_url, request
from tapeseal.rotation.kinds import Credential, Live, Rotation, Services
from tapeseal.rotation.kinds.stored import (
    SETTINGS,
    Stored,
    destroy_calls,
    live_calls,
    old_calls,
    read_text,
    wipe,
    write_calls,
)
from tapeseal.rotation.paths import api_path
from tapeseal.rotation.settings import Setting
from tapeseal.secret import Secret

if TYPE_CHECKING:
    from tapeseal.rotation.plan import PlannedSecret
    from tapeseal.transport.scanner import Pattern

ID: Final = "id"
"""The part of a credential that names the key at its issuer; nothing secret."""
_KEY: Final = "key"
_LABEL: Final = "label"
_NEW_ID: Final = "key_id"
"""The fact with the ID of the new key."""
_SIZE: Final = 32
_SECONDS: Final = 30.0

_NEEDED: Final[Mapping[str, Sequence[str]]] = {
    "random": (),
    "http": ("url", "admin"),
    "exec": ("create", "list", "revoke"),
}
_ALLOWED: Final[Mapping[str, Sequence[str]]] = {
    "random": (),
    "http": ("url", "admin", "ca_file"),
    "exec": ("create", "list", "revoke"),
}


class Issuer(Protocol):
    """Who issues keys, each with the id of its rotation as its label."""

    def create(self, label: str) -> dict[str, Secret]:
        """Issue a key, alive beside the others, and return its parts, ID among them."""

    def list(self) -> Mapping[str, str]:
        """Return the label of each key that is alive, by its id."""

    def revoke(self, key_id: str) -> None:
        """End a key; where there is no such key any more nothing happens."""


class ApiKey:
    """Writes each new key to KV, where its consumers read it, and ends the old one.

    The `issuer` is one of these:

    "random": the key is made here, in the part `key`: 64 hexadecimal digits. It is for two sides that both read it in
    KV, of which the one that accepts keys takes that of any version that is there: of two from the store until the
    revoke, which destroys the old one.

    "http": an exchange issues it. POST `url` with {"label": ROTATION} answers a JSON object with `id` and the `parts`
    of the key, or one of which these are in a member; GET `url` one with a list of all keys that are alive, objects
    with `id` and `label`; DELETE `url`/ID ends one. Who may do so proves it by the `admin_member` of the secret `admin`
    in KV (MOUNT/PATH), which goes along in `header`, after `prefix`.

    "exec": commands do the same. They find TAPESEAL_SECRET, the secret's name, and TAPESEAL_ROTATION, which is the
    label, in their environment. `create` prints a JSON object of texts: `id` and the parts of the key. `list` prints a
    JSON object: the label of each key by its id. `revoke` finds the id in TAPESEAL_KEY_ID.
    """

    settings: ClassVar[Mapping[str, Setting]] = {
        **SETTINGS,
        "issuer": Setting(str, default="random", choices=tuple(_NEEDED), names=True),
        "url": Setting(str, default=None, names=True),
        "ca_file": Setting(Path, default=None),
        "parts": Setting(list, default=[_KEY]),
        "admin": Setting(str, default=None),
        "admin_member": Setting(str, default=_KEY),
        "header": Setting(str, default="Authorization"),
        "prefix": Setting(str, default="Bearer "),
        "create": Setting(list, default=None),
        "list": Setting(list, default=None),
        "revoke": Setting(list, default=None),
    }

    def live(self, secret: "PlannedSecret", services: Services) -> Live | None:
        """Return the current version in KV."""
        return Stored(secret, services).live()

    def generate(self, rotation: Rotation) -> Credential:
        """Have a key issued; one that an interrupted try left behind is ended first."""
        issuer = _issuer(rotation.secret, rotation.services)
        if issuer is None:
            with closing(SecretBuffer.random(_SIZE)) as key:
                return {_KEY: Secret(key.to_hex())}
        _revoke_own(issuer, rotation)
        made = issuer.create(rotation.id)
        rotation.facts[_NEW_ID] = made[ID].expose()
        return made

    def store(self, rotation: Rotation, credential: Credential) -> None:
        """Write the next version in KV."""
        Stored(rotation.secret, rotation.services).write(rotation, credential)

    def old(self, rotation: Rotation) -> Credential:
        """Read the version before."""
        options = rotation.secret.options
        names = (_KEY,) if options["issuer"] == "random" else (*options["parts"], ID)
        return Stored(rotation.secret, rotation.services).old(rotation, names)

    def discard(self, rotation: Rotation) -> None:
        """Put back the version before, then end the new key."""
        Stored(rotation.secret, rotation.services).restore(rotation)
        issuer = _issuer(rotation.secret, rotation.services)
        if issuer is not None:
            _revoke_own(issuer, rotation)

    def revoke(self, rotation: Rotation) -> None:
        """End the old key, and destroy its version in KV."""
        stored = Stored(rotation.secret, rotation.services)
        before = rotation.facts.get("old_version")
        if before is None:
            return
        issuer = _issuer(rotation.secret, rotation.services)
        if issuer is not None:
            with stored.read(before) as found:
                key_id = read_text(found, ID)
            if found is not None and key_id is None:
                raise RotationError(
                    f"version {before} of {stored.name} has no member {ID!r}, so which key of the issuer is to be "
                    "ended is unknown: end it there by hand, and destroy that version"
                )
            # A request that was given up may have been done late, when the next one had looked.
            _revoke_own(issuer, rotation, but=rotation.facts.get(_NEW_ID))
            if key_id is not None:
                issuer.revoke(key_id)
        stored.destroy_old(
            rotation, _KEY if issuer is None else rotation.secret.options["parts"][0]
        )

    def calls(self, secret: "PlannedSecret") -> list[str]:
        """Name the calls of a rotation."""
        options = secret.options
        issuer = options["issuer"]
        if missing := [name for name in _NEEDED[issuer] if options[name] is None]:
            raise ValueError(f"the issuer {issuer!r} needs {' and '.join(missing)}")
        for name in ("url", "admin", "ca_file", "create", "list", "revoke"):
            if options[name] is not None and name not in _ALLOWED[issuer]:
                raise ValueError(f"{name} is not for the issuer {issuer!r}")
        create, find, revoke = list[str](), list[str](), list[str]()
        if issuer == "http":
            url, admin = check_url(options["url"]), f"GET {api_path(options['admin'], 'data')}"
            find, create = [admin, f"GET {url}"], [admin, f"POST {url}"]
            revoke = [*old_calls(options), *find, admin, f"DELETE {url}/…"]
        elif issuer == "exec":
            find, create = (
                [f"run {' '.join(options['list'])}"],
                [f"run {' '.join(options['create'])}"],
            )
            revoke = [*old_calls(options), *find, f"run {' '.join(options['revoke'])}"]
        return [
            *live_calls(options),
            *find,
            *create,
            *write_calls(options),
            *old_calls(options),
            *revoke,
            *destroy_calls(options),
        ]


def _revoke_own(issuer: Issuer, rotation: Rotation, *, but: object = "") -> None:
    """End the keys of a rotation, all but one: of an issuer that lists that under another id, none at all."""
    own = [key_id for key_id, label in issuer.list().items() if label == rotation.id]
    if but == "" or but in own:
        for key_id in own:
            if key_id != but:
                issuer.revoke(key_id)


def _issuer(secret: "PlannedSecret", services: Services) -> Issuer | None:
    match secret.options["issuer"]:
        case "http":
            return _HttpIssuer(secret.options, services)
        case "exec":
            return _ExecIssuer(secret)
    return None


class _HttpIssuer:
    def __init__(self, options: Mapping[str, Any], services: Services) -> None:
        self._options = options
        self._services = services

    def create(self, label: str) -> dict[str, Secret]:
        parts = self._options["parts"]
        body = json.dumps({_LABEL: label}).encode()
        # At the top of the answer, or one level down, as in {"data": …}.
        places = [place for part in parts for place in ((part,), ("*", part))]
        reply = self._send("POST", self._options["url"], [body], secret=places)
        document = reply.document
        try:
            inner = [each for each in document.values() if isinstance(each, dict)]
            key_id = next((each[ID] for each in (document, *inner) if ID in each), None)
            if not isinstance(key_id, str | int) or isinstance(key_id, bool) or key_id == "":
                raise self._unknown("POST", f"no {ID}")
            if missing := [part for part in parts if part not in reply.secrets]:
                raise self._unknown("POST", f"no {missing[0]}")
        except BaseException:
            wipe(reply.secrets)
            raise
        made = {part: reply.secrets.pop(part) for part in parts}
        wipe(reply.secrets)  # What nobody asked for is no part of the credential.
        return {**made, ID: Secret.take(bytearray(str(key_id).encode()))}

    def list(self) -> Mapping[str, str]:
        document = self._send("GET", self._options["url"], secret=[]).document
        found = next((each for each in document.values() if isinstance(each, list)), None)
        if found is None or not all(isinstance(each, dict) for each in found):
            raise self._unknown("GET", "no list of objects")
        return {str(each.get(ID)): str(each.get(_LABEL)) for each in found}

    def revoke(self, key_id: str) -> None:
        if not key_id.isascii() or not key_id.replace("-", "").replace("_", "").isalnum():
            raise RotationError(f"{key_id!r} is no id of a key")
        self._send("DELETE", f"{self._options['url']}/{key_id}", gone=True)

    def _send(
        self,
        method: str,
        url: str,
        body: Sequence[bytes] = (),
        *,
        secret: "Sequence[Pattern] | None" = None,
        gone: bool = False,
    ) -> Reply:
        from tapeseal.vault.kv import KeyValue

        options = self._options
        mount, _, path = options["admin"].partition("/")
        with KeyValue(self._services.vault, mount).read(path) as found:
            admin = found[options["admin_member"]]
            if admin is None:
                raise RotationError(f"{found.path} has an empty {options['admin_member']!r}")
            reply = request(
                method,
                url,
                secret_headers={options["header"]: [options["prefix"].encode(), admin.buffer]},
                body=body,
                secret=secret,
                ca_file=options["ca_file"],
                seconds=_SECONDS,
            )
        if gone and (reply.done or reply.status in (404, 410)):
            return reply
        if reply.done and reply.document is not None:
            return reply
        wipe(reply.secrets)
        if reply.refused:
            raise AccessDeniedError(
                f"{method} {url} is refused ({reply.status}): see {options['admin']}"
            )
        raise RotationError(f"{method} {url} answers {reply.status}")

    def _unknown(self, method: str, what: str) -> RotationError:
        return RotationError(f"the answer to {method} {self._options['url']} holds {what}")


class _ExecIssuer:
    def __init__(self, secret: "PlannedSecret") -> None:
        self._secret = secret

    def create(self, label: str) -> dict[str, Secret]:
        printed = self._run("create", {"TAPESEAL_ROTATION": label})
        if printed is None:
            raise RotationError("create printed no key")
        with closing(printed):
            try:
                found = credential_of(printed)
            except ValueError as error:
                raise RotationError(f"what create printed is no key: {error}") from None
        names = (*self._secret.options["parts"], ID)
        if missing := [name for name in names if name not in found]:
            wipe(found)
            raise RotationError(f"what create printed is no key: it has no {missing[0]}")
        return found

    def list(self) -> Mapping[str, str]:
        printed = self._run("list", {})
        if printed is None:
            return {}
        # No secret is in it.
        with closing(printed), printed, memoryview(printed) as view:
            text = bytes(view)
        try:
            found = json.loads(text)
        except ValueError:
            found = None
        if not isinstance(found, dict) or not all(isinstance(each, str) for each in found.values()):
            raise RotationError("list printed no JSON object of labels by their ids")
        return found

    def revoke(self, key_id: str) -> None:
        printed = self._run("revoke", {"TAPESEAL_KEY_ID": key_id})
        if printed is not None:
            printed.close()

    def _run(self, step: str, variables: Mapping[str, str]) -> SecretBuffer | None:
        return run_command(
            self._secret.options[step],
            variables={"TAPESEAL_SECRET": self._secret.name, **variables},
            seconds=_SECONDS,
        )
