"""Checks of a Vault or an OpenBao: its listener, and what it says of itself to a token that may read that."""

import contextlib
import os
import re
import select
import shlex
import socket
import ssl
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from tapeseal.doctor import policies
from tapeseal.doctor.findings import Checks, GoneError, Look, Problem, SetUp, days, registrar

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

    from tapeseal.vault.session import VaultSession

SECONDS: Final = 30.0
"""For all questions to a Vault together."""
MAX_NAMES: Final = 500
"""Of each list, so many are looked at."""

_DAY: Final = 86400
MAX_TOKEN_SECONDS: Final = 32 * _DAY
MAX_LOGIN_SECONDS: Final = 32 * _DAY
MAX_DATABASE_SECONDS: Final = _DAY
MAX_KEY_AGE_SECONDS: Final = 90 * _DAY
MAX_VERSIONS: Final = 100
MAX_OLD_TRANSIT_VERSIONS: Final = 5
CERTIFICATE_SOON_SECONDS: Final = 30 * _DAY
CERTIFICATE_NOW_SECONDS: Final = 7 * _DAY
AUTHORITY_SOON_SECONDS: Final = 90 * _DAY

EMERGENCY: Final = "break-glass"
"""The policy and the AppRole of the templates for emergencies: as wide as it must be, its secret id in a package."""

_SELF: Final = "auth/token/lookup-self"
_STATUS: Final = "sys/seal-status"

CHECKS: Final[Checks] = {}
check = registrar(CHECKS)


class VaultLook(Look):
    """A Vault, asked by one session within one deadline. Each path is asked for once."""

    def __init__(self, addresses: Sequence[str], set_up: SetUp) -> None:
        super().__init__("Vault", SECONDS)
        self.addresses = list(addresses)
        self.now = set_up.now
        self.session: VaultSession | None = None
        self.gone: GoneError | None = None
        """Why the session could not be opened."""

    def open(self) -> None:
        """Open the session; where that cannot be, `gone` says why."""
        from tapeseal.vault.session import VaultSession

        try:
            # What still speaks TLS 1.2 is to be looked at too, and told.
            self.session = VaultSession(minimum_tls=ssl.TLSVersion.TLSv1_2, deadline=SECONDS / 6)
        except ValueError as error:
            self.gone = GoneError(f"no session with Vault: {error}", "Mend that, and run it again.")

    def ask(
        self,
        path: str,
        needs: str,
        method: str = "GET",
        body: Mapping[str, Any] | None = None,
        *,
        capabilities: Sequence[str] = ("read",),
    ) -> dict[str, Any] | None:
        """Return the data at a path; None where there is nothing or, which is noted, where it may not be seen.

        Args:
            path: what follows /v1/.
            needs: the path of a policy that lets it be seen, such as "sys/policies/acl/*".
            method: "GET", "LIST", or "POST" where Vault reads by that.
            body: as VaultSession.request() has it.
            capabilities: what the policy needs on that path.

        Raises:
            GoneError: Vault cannot be asked any more.
        """
        return self.once(
            (method, path, repr(body)), lambda: self._ask(path, needs, method, body, capabilities)
        )

    def _ask(
        self,
        path: str,
        needs: str,
        method: str,
        body: Mapping[str, Any] | None,
        capabilities: Sequence[str],
    ) -> dict[str, Any] | None:
        from hvac.exceptions import InvalidPath, VaultError

        from tapeseal.errors import AccessDeniedError, ServiceUnavailableError
        from tapeseal.vault.connection import said_by

        if self.session is None:
            assert self.gone is not None
            raise self.gone
        try:
            answer = self.session.request(
                method,
                path,
                body,
                # Of its own token Vault says the token itself.
                secret=("data.id",) if path == _SELF else (),
                idempotent=True,
                deadline=min(self.left(), self.session.deadline),
            )
        except AccessDeniedError as error:
            if path == _SELF:
                allow = f'A token needs: path "{_SELF}" {{ capabilities = ["read"] }}, as `default` has it.'
                raise GoneError(str(error), allow, "vault login") from None
            # A token that is no good is not one with too narrow a policy.
            self._aside(_SELF)
            listed = ", ".join(f'"{each}"' for each in capabilities)
            self.not_seen(
                needs,
                needs,
                "could not be looked at: the policies of this token do not allow it",
                f'Add to its policy: path "{needs}" {{ capabilities = [{listed}] }}',
            )
            return None
        except ServiceUnavailableError as error:
            away = GoneError(
                str(error), "See that it runs, is unsealed and can be reached.", "vault status"
            )
            if path == _STATUS or (self._aside(_STATUS) or {}).get("sealed") is not False:
                raise away from None
            self.not_seen(needs, path, f"could not be looked at: {error}", "Look into its log.")
            return None
        except InvalidPath:
            self.seen += 1
            return None
        except VaultError as error:
            self.not_seen(
                needs,
                path,
                f"could not be looked at: Vault refuses it: {said_by(error)}",
                command=f"vault read {shlex.quote(path)}",
            )
            return None
        self.seen += 1
        data = answer.get("data", answer)
        if not isinstance(data, dict):
            return None
        secret = data.pop("id", None) if path == _SELF else None
        if secret is not None:
            secret.close()
        return data

    def _aside(self, path: str) -> dict[str, Any] | None:
        """Ask for what tells why something else cannot be seen, which makes nothing seen of that."""
        seen = self.seen
        try:
            return self.ask(path, path)
        finally:
            self.seen = seen

    def names(
        self, path: str, needs: str = "", capabilities: Sequence[str] = ("list",)
    ) -> list[str]:
        """Return the names that a path lists, MAX_NAMES at most; that there are more is noted."""
        data = self.ask(path, needs or path, "LIST", capabilities=capabilities) or {}
        found = [str(each) for each in data.get("keys") or []]
        if len(found) > MAX_NAMES:
            self.not_seen(
                f"more of {path}",
                path,
                f"only the first {MAX_NAMES} of {len(found):,} were looked at",
                "Look at the others by hand.",
            )
        return found[:MAX_NAMES]

    def mounts(self, kind: str) -> dict[str, dict[str, Any]]:
        """Return the mounts of secrets engines of a type, by their paths without a slash at the end."""
        return self._mounted("sys/mounts", kind)

    def auth_mounts(self, kind: str | None = None) -> dict[str, dict[str, Any]]:
        """Return the mounts of auth methods, of a type or all."""
        return self._mounted("sys/auth", kind)

    def _mounted(self, path: str, kind: str | None) -> dict[str, dict[str, Any]]:
        found = self.ask(path, path) or {}
        return {
            name.rstrip("/"): mount
            for name, mount in found.items()
            if isinstance(mount, dict) and kind in (None, mount.get("type"))
        }

    def certificate(self, address: str) -> "Certificate | None":
        """Return the certificate that a server shows, whoever signed it; None where it shows none."""
        from cryptography import x509

        with _connected(address, _any_server(), self) as tls:
            der = None if tls is None else tls.getpeercert(binary_form=True)
        return None if der is None else x509.load_der_x509_certificate(der)

    def speaks(self, address: str, version: ssl.TLSVersion) -> bool:
        """Whether a server agrees to a version of TLS."""
        context = _any_server()
        context.minimum_version = context.maximum_version = version
        with _connected(address, context, self) as tls:
            return tls is not None


def _any_server() -> ssl.SSLContext:
    """Return a context that takes any certificate: one that nobody should trust is to be seen too. Nothing is sent."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    return context


@contextlib.contextmanager
def _connected(
    address: str, context: ssl.SSLContext, look: VaultLook
) -> Iterator[ssl.SSLSocket | None]:
    """Connect to an address by TLS; None where it does not come to that."""
    parts = urlsplit(address)
    host = parts.hostname or ""
    end = time.monotonic() + min(3.0, look.left())
    with contextlib.ExitStack() as stack:
        tls = None
        try:
            plain = stack.enter_context(
                socket.create_connection((host, parts.port or 443), end - time.monotonic())
            )
            made = context.wrap_socket(plain, server_hostname=host, do_handshake_on_connect=False)
            stack.enter_context(made)
            _shake_hands(made, end)
            tls = made
        except (OSError, ValueError):
            pass
        yield tls


def _shake_hands(tls: ssl.SSLSocket, end: float) -> None:
    """Do the handshake by a `time.monotonic()`, or raise OSError; a timeout of a socket is for each byte of it anew."""
    tls.setblocking(False)
    while (left := end - time.monotonic()) > 0:
        try:
            tls.do_handshake()
            return
        except ssl.SSLWantReadError:
            select.select([tls], [], [], left)
        except ssl.SSLWantWriteError:
            select.select([], [tls], [], left)
    raise TimeoutError


def addresses() -> list[str]:
    """Return the addresses of Vault that the environment names."""
    for name in ("AGENT_ADDR", "ADDR"):
        text = os.environ.get(f"BAO_{name}", os.environ.get(f"VAULT_{name}", ""))
        if text:
            return [each.strip().rstrip("/") for each in text.split(",")]
    return []


@contextlib.contextmanager
def look(set_up: SetUp) -> Iterator[VaultLook | None]:
    """Look at the Vault that the environment names."""
    found = addresses()
    if not found:
        yield None
        return
    vault = VaultLook(found, set_up)
    vault.open()
    try:
        yield vault
    finally:
        if vault.session is not None:
            vault.session.close()


# The listener


@check(
    "vault.address",
    "An address of Vault that is http://, not https://.",
    "Tokens and secrets cross the network in the clear.",
)
def _address(vault: VaultLook) -> Iterator[Problem]:
    vault.seen += 1
    for address in vault.addresses:
        parts = urlsplit(address)
        if parts.scheme != "https":
            here = re.fullmatch(r"localhost|127(\.\d+){3}|::1", parts.hostname or "")
            yield Problem(
                "info" if here else "serious",
                address,
                "it is http://" + (", to this machine itself" if here else ""),
                "Give its listener a certificate.",
                f"export VAULT_ADDR=https://{parts.netloc}",
            )


@check(
    "vault.tls",
    "A listener that speaks TLS 1.2 or less.",
    "TLS 1.2 allows key exchanges and ciphers that later fell to attacks; every client here speaks 1.3.",
)
def _tls(vault: VaultLook) -> Iterator[Problem]:
    for address in _https(vault):
        if vault.speaks(address, ssl.TLSVersion.TLSv1_2):
            yield Problem(
                "warning",
                address,
                "it agrees to TLS 1.2"
                + ("" if vault.speaks(address, ssl.TLSVersion.TLSv1_3) else ", and not to 1.3"),
                'Set in its listener, and restart it: tls_min_version = "tls13"',
            )


def _https(vault: VaultLook) -> Iterator[str]:
    """Yield the addresses with TLS that answer."""
    for address in vault.addresses:
        if not address.startswith("https:"):
            vault.seen += 1
        elif vault.certificate(address) is None:
            vault.not_seen(
                address,
                address,
                "it shows no certificate",
                command=f"vault status -address={shlex.quote(address)}",
            )
        else:
            vault.seen += 1
            yield address


@check(
    "vault.certificate",
    "The certificate of a listener: it ends within 30 days, or its key is short.",
    "With its end every client stops at once; a short key can be found.",
)
def _certificate(vault: VaultLook) -> Iterator[Problem]:
    from cryptography.hazmat.primitives.asymmetric import ec, rsa

    for address in _https(vault):
        certificate = vault.certificate(address)
        if certificate is None:
            continue
        yield from _ending(
            certificate,
            address,
            vault.now,
            CERTIFICATE_SOON_SECONDS,
            "Renew it, and have the server read it by a SIGHUP.",
            "tapeseal vault pki renew DIRECTORY",
        )
        key = certificate.public_key()
        short = (isinstance(key, rsa.RSAPublicKey) and key.key_size < 2048) or (
            isinstance(key, ec.EllipticCurvePublicKey) and key.key_size < 256
        )
        if short:
            yield Problem(
                "serious",
                address,
                f"its key has {key.key_size} bits",  # type: ignore[union-attr]
                "Issue it anew with a key of EC P-256 or RSA 3072.",
            )


def _ending(
    certificate: "Certificate",
    subject: str,
    now: datetime,
    soon: float,
    fix: str,
    command: str = "",
) -> Iterator[Problem]:
    """Yield a problem where a certificate ends within so many seconds, or has ended."""
    left = (certificate.not_valid_after_utc - now).total_seconds()
    if left < soon:
        end = f"{certificate.not_valid_after_utc:%Y-%m-%d}"
        yield Problem(
            "serious" if left < CERTIFICATE_NOW_SECONDS else "warning",
            subject,
            f"it ended on {end}" if left < 0 else f"it ends on {end}, in {days(left)}",
            fix,
            command,
        )


# Itself


@check(
    "vault.audit",
    "No audit device.",
    "Without one nobody can tell who read what, before or after a break-in.",
)
def _audit(vault: VaultLook) -> Iterator[Problem]:
    devices = vault.ask("sys/audit", "sys/audit", capabilities=("read", "sudo"))
    if devices is not None and not devices:
        yield Problem(
            "serious",
            "sys/audit",
            "there is no audit device",
            "OpenBao takes one from its configuration alone, as `tapeseal init` writes it.",
            "vault audit enable file file_path=/var/log/vault/audit.log mode=0600",
        )


@check(
    "vault.seal",
    "Unseal shares of which a single one opens Vault.",
    "One person, or whoever finds that one share, opens everything.",
)
def _seal(vault: VaultLook) -> Iterator[Problem]:
    status = vault.ask(_STATUS, _STATUS) or {}
    threshold, shares = status.get("t"), status.get("n")
    if status.get("type") == "shamir" and threshold == 1:
        yield Problem(
            "serious",
            vault.addresses[0],
            f"1 of {shares} unseal shares opens it",
            "HashiCorp's server calls it `vault operator rekey`. With -pgp-keys each share is for its custodian alone.",
            "bao operator rotate-keys -init -key-shares=5 -key-threshold=3",
        )


@check(
    "vault.policies",
    "Policies that grant every path, write policies, logins or audit devices, or have sudo to write.",
    "Whoever steals one token of such a policy has everything.",
)
def _policies(vault: VaultLook) -> Iterator[Problem]:
    for name in vault.names("sys/policies/acl"):
        if name in ("root", "default"):
            continue
        found = vault.ask(f"sys/policies/acl/{name}", "sys/policies/acl/*")
        if found is None:
            continue
        try:
            rules = policies.parse(str(found.get("policy", "")))
        except ValueError as error:
            vault.not_seen(
                name,
                name,
                f"the policy could not be read: {error}",
                command=f"vault policy read {shlex.quote(name)}",
            )
            continue
        for severity, text in (each for rule in rules for each in policies.excesses(rule)):
            meant = name == EMERGENCY
            yield Problem(
                "info" if meant else severity,
                name,
                text,
                "Narrow that path, and write the policy back.",
                f"vault policy read {shlex.quote(name)}",
            )


# Tokens and logins


@check(
    "vault.own-token",
    "The token of this caller: root, without an end, an orphan, or good for over 32 days.",
    "What works on its own with such a token hands it to whoever breaks in there.",
)
def _own_token(vault: VaultLook) -> Iterator[Problem]:
    token = vault.ask(_SELF, _SELF) or {}
    subject = f"this token ({token.get('display_name', '')})"
    own = "Log in by an AppRole, a certificate or OIDC, with a policy of its own (docs/vault.md)"
    if "root" in (token.get("policies") or []):
        yield Problem(
            "serious",
            subject,
            "it is a root token",
            f"{own}; then end this one.",
            "vault token revoke -self",
        )
        return
    lifetime = token.get("creation_ttl") or 0
    if not token.get("ttl"):
        yield Problem(
            "serious",
            subject,
            "it never expires",
            f"{own}; then end this one.",
            "vault token revoke -self",
        )
    elif lifetime > MAX_TOKEN_SECONDS:
        yield Problem(
            "warning", subject, f"it is good for {days(lifetime)}", f"{own}, for an hour or a day."
        )
    if token.get("orphan") and str(token.get("path", "")).startswith("auth/token/create"):
        yield Problem(
            "info",
            subject,
            "it is an orphan: it outlives whoever made it",
            f"{own}.",
        )


@check(
    "vault.approles",
    "AppRoles whose secret ids never end, or that need none.",
    "A secret id that leaked logs in for ever.",
)
def _approles(vault: VaultLook) -> Iterator[Problem]:
    for mount in vault.auth_mounts("approle"):
        for name in vault.names(f"auth/{mount}/role"):
            role = vault.ask(f"auth/{mount}/role/{name}", f"auth/{mount}/role/*")
            if role is None:
                continue
            path = f"auth/{mount}/role/{name}"
            if role.get("bind_secret_id") is False:
                yield Problem(
                    "warning" if role.get("token_bound_cidrs") else "serious",
                    path,
                    "its role id alone logs in",
                    command=f"vault write {shlex.quote(path)} bind_secret_id=true",
                )
            elif not role.get("secret_id_ttl"):
                yield Problem(
                    "info" if name == EMERGENCY else "warning",
                    path,
                    "its secret ids never end",
                    command=f"vault write {shlex.quote(path)} secret_id_ttl=720h",
                )


@check(
    "vault.auth-ttl",
    "Auth methods whose tokens are good for over 32 days.",
    "A stolen token works until its end.",
)
def _auth_ttl(vault: VaultLook) -> Iterator[Problem]:
    for mount, found in vault.auth_mounts().items():
        longest = (found.get("config") or {}).get("max_lease_ttl") or 0
        if longest > MAX_LOGIN_SECONDS:
            yield Problem(
                "warning",
                f"auth/{mount}",
                f"its tokens are good for up to {days(longest)}",
                command=f"vault auth tune -max-lease-ttl=768h {shlex.quote(mount)}",
            )


# Engines


@check(
    "vault.transit",
    "Transit keys that nothing rotates, that can be exported or deleted, or whose old versions still open.",
    "The older a key, the more is lost with it; what leaves Vault is not protected by it.",
)
def _transit(vault: VaultLook) -> Iterator[Problem]:
    for mount in vault.mounts("transit"):
        for name in vault.names(f"{mount}/keys"):
            key = vault.ask(f"{mount}/keys/{name}", f"{mount}/keys/*")
            if key is None:
                continue
            path = f"{mount}/keys/{name}"
            config = f"vault write {shlex.quote(path)}/config"
            latest, least = key.get("latest_version") or 0, key.get("min_decryption_version") or 1
            age = (vault.now - _made(key, latest)).total_seconds()
            if not key.get("auto_rotate_period") and age > MAX_KEY_AGE_SECONDS:
                yield Problem(
                    "warning",
                    path,
                    f"its latest version ({latest}) is {days(age)} old, and nothing rotates it",
                    command=f"vault write -f {shlex.quote(path)}/rotate && {config} auto_rotate_period=2160h",
                )
            elif not key.get("auto_rotate_period"):
                yield Problem(
                    "info",
                    path,
                    "Vault does not rotate it by itself",
                    "Have Vault do it, or the rotation plan by a secret of the kind transit-key.",
                    f"{config} auto_rotate_period=2160h",
                )
            if key.get("deletion_allowed"):
                yield Problem(
                    "warning",
                    path,
                    "it can be deleted",
                    command=f"{config} deletion_allowed=false",
                    why="With it goes all that it has encrypted.",
                )
            if key.get("exportable") or key.get("allow_plaintext_backup"):
                yield Problem(
                    "warning",
                    path,
                    "it can be exported, which cannot be taken back",
                    "Make a new key that cannot, rewrap to it, and delete this one.",
                    "tapeseal rewrap FILE -k KEYRING --to NEW",
                    "Whoever may read the export has the key for good, and no audit record of its use.",
                )
            if latest - least >= MAX_OLD_TRANSIT_VERSIONS:
                yield Problem(
                    "info",
                    path,
                    f"versions from {least} on still open; the latest is {latest}",
                    "Rewrap what is old first.",
                    f"{config} min_decryption_version={latest - 1}",
                )


def _made(key: Mapping[str, Any], version: int) -> datetime:
    """Return when a version of a Transit key was made: seconds, or an object with a time, by the key's type."""
    found = (key.get("keys") or {}).get(str(version))
    if isinstance(found, dict):
        return datetime.fromisoformat(str(found.get("creation_time")))
    return datetime.fromtimestamp(float(found or 0), UTC)


@check(
    "vault.kv",
    "KV mounts of version 1, or that keep over 100 versions.",
    "Version 1 overwrites for good and without check-and-set; versions without end are old secrets kept for ever.",
)
def _kv(vault: VaultLook) -> Iterator[Problem]:
    for mount, found in vault.mounts("kv").items():
        if (found.get("options") or {}).get("version") != "2":
            yield Problem(
                "warning",
                mount,
                "it is of version 1",
                command=f"vault kv enable-versioning {shlex.quote(mount)}",
            )
            continue
        config = vault.ask(f"{mount}/config", f"{mount}/config")
        if config is not None and (config.get("max_versions") or 0) > MAX_VERSIONS:
            yield Problem(
                "info",
                mount,
                f"it keeps {config['max_versions']:,} versions of each secret",
                command=f"vault write {shlex.quote(mount)}/config max_versions=10",
            )


@check(
    "vault.database",
    "Database roles whose credentials are good for over a day.",
    "Dynamic credentials protect by being short: a stolen one works until its end.",
)
def _database(vault: VaultLook) -> Iterator[Problem]:
    for mount, found in vault.mounts("database").items():
        of_mount = (found.get("config") or {}).get("max_lease_ttl") or 0
        for name in vault.names(f"{mount}/roles"):
            role = vault.ask(f"{mount}/roles/{name}", f"{mount}/roles/*")
            if role is None:
                continue
            longest = role.get("max_ttl") or of_mount
            if not longest or longest > MAX_DATABASE_SECONDS:
                path = f"{mount}/roles/{name}"
                yield Problem(
                    "warning",
                    path,
                    f"its credentials are good for up to {days(longest)}"
                    if longest
                    else "its credentials have no max_ttl of their own",
                    command=f"vault write {shlex.quote(path)} max_ttl=24h",
                )


@check(
    "vault.pki",
    "Authorities within 90 days of their end; certificates of 60 days or more within 30 of it, without a successor.",
    "What an authority has signed ends with it.",
)
def _pki(vault: VaultLook) -> Iterator[Problem]:
    from cryptography import x509

    for mount in vault.mounts("pki"):
        issuers = set()
        for issuer in vault.names(f"{mount}/issuers"):
            # This form of it, as the lists and certificates, anybody may read.
            found = vault.ask(f"{mount}/issuer/{issuer}/json", f"{mount}/issuer/+/json") or {}
            if "certificate" in found:
                certificate = x509.load_pem_x509_certificate(found["certificate"].encode())
                issuers.add(certificate.serial_number)
                name = certificate.subject.rfc4514_string()
                yield from _ending(
                    certificate,
                    f"{mount}: issuer {name}",
                    vault.now,
                    AUTHORITY_SOON_SECONDS,
                    "Have a successor signed while this one is still good: docs/pki.md.",
                )
        newest: dict[str, Certificate] = {}
        for serial in vault.names(f"{mount}/certs"):
            found = vault.ask(f"{mount}/cert/{serial}", f"{mount}/cert/*") or {}
            if found.get("revocation_time") or "certificate" not in found:
                continue
            certificate = x509.load_pem_x509_certificate(found["certificate"].encode())
            subject = certificate.subject.rfc4514_string()
            before = newest.get(subject)
            if certificate.serial_number not in issuers and (
                before is None or before.not_valid_after_utc < certificate.not_valid_after_utc
            ):
                newest[subject] = certificate
        for subject, certificate in newest.items():
            life = certificate.not_valid_after_utc - certificate.not_valid_before_utc
            if life.days >= 60 and certificate.not_valid_after_utc > vault.now:
                yield from _ending(
                    certificate,
                    f"{mount}: {subject}",
                    vault.now,
                    CERTIFICATE_SOON_SECONDS,
                    "Renew it where its directory is (tapeseal vault pki renew) or, if nobody uses it, revoke it.",
                    f"tapeseal vault pki revoke --mount {shlex.quote(mount)} {_serial(certificate)}",
                )


def _serial(certificate: "Certificate") -> str:
    """Return a serial number as Vault writes it: 1f:09:…"""
    number = certificate.serial_number
    return number.to_bytes((number.bit_length() + 7) // 8, "big").hex(":")


# The longest list, and so the last to be asked for


@check(
    "vault.tokens",
    "Other tokens that never expire, or are root.",
    "A token without an end works for whoever finds it in a backup years later.",
)
def _tokens(vault: VaultLook) -> Iterator[Problem]:
    own = (vault.ask(_SELF, _SELF) or {}).get("accessor")
    for accessor in vault.names(
        "auth/token/accessors/", "auth/token/accessors/", capabilities=("list", "sudo")
    ):
        if accessor == own:
            continue
        token = vault.ask(
            "auth/token/lookup-accessor",
            "auth/token/lookup-accessor",
            "POST",
            {"accessor": accessor},
            capabilities=("update",),
        )
        if token is None or token.get("ttl") or token.get("type") == "batch":
            continue
        root = "root" in (token.get("policies") or [])
        made = datetime.fromtimestamp(token.get("creation_time") or 0, UTC)
        yield Problem(
            "serious" if root else "warning",
            f"accessor {accessor}",
            f"a {'root ' if root else ''}token ({token.get('display_name') or 'without a name'}) of {made:%Y-%m-%d}"
            " that never expires",
            command=f"vault token revoke -accessor {shlex.quote(accessor)}",
        )
