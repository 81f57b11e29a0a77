"""A certificate authority in Vault: a root, or an intermediate that a root signs, set up by one call."""

import datetime
from collections.abc import Mapping, Sequence
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from tapeseal import audit
from tapeseal.errors import CertificateError
from tapeseal.vault.engine import member, request
from tapeseal.vault.pki import VALIDITY_DAYS, Pki, check_chain

ROOT_DAYS: Final = 3650
INTERMEDIATE_DAYS: Final = 1825

# RFC 5280, 4.2.1.14, tells clients to fetch CRLs anew; three days leave a weekend for what goes wrong.
_CRL = {"expiry": "72h", "auto_rebuild": True, "auto_rebuild_grace_period": "24h"}


def set_up_authority(
    pki: Pki,
    common_name: str,
    *,
    parent: Pki | None = None,
    issuer: str = "ca",
    key_type: str = "ec-256",
    days: float | None = None,
    roles: Mapping[str, Mapping[str, Any]] | None = None,
    urls: Mapping[str, Sequence[str]] | None = None,
) -> list[str]:
    """Make an engine a certificate authority; what is there already stays, so the same call goes on after a crash.

    The private key of an authority never leaves Vault. A CRL is built anew a day before it expires, after 3 days.

    Args:
        pki: the engine; it is mounted where it is not.
        common_name: of the authority.
        parent: what signs an intermediate; None makes a root.
        issuer: name of the issuer and of its key in the engine. Another one makes another issuer beside, which
            becomes the default: so an authority is replaced before it ends.
        key_type: "ec-256", "ec-384", "rsa-2048", "rsa-3072" or "rsa-4096".
        days: how long it is valid; None: 3650 of a root, 1825 of an intermediate.
        roles: by their names the parameters of roles, as Vault's API has them; one that differs is written anew.
        urls: what goes into each certificate: "issuing_certificates", "crl_distribution_points", "ocsp_servers".

    Returns:
        What was done, a line each; nothing where all was as it should be.

    Raises:
        CertificateError: the engine refuses, or the issuer of that name is not what is asked for.
    """
    done: list[str] = []
    valid = days or (INTERMEDIATE_DAYS if parent else ROOT_DAYS)
    with audit.operation("pki.setup", pki.mount, common_name=common_name, issuer=issuer):
        _mount(pki, valid, done)
        if urls is not None:
            pki.write("config/urls", {name: list(each) for name, each in urls.items()}, done)
        pki.write("config/crl", _CRL, done)
        found = _issuers(pki)
        issuer_id = next((key for key, each in found.items() if each["issuer_name"] == issuer), "")
        if not issuer_id and parent is None:
            issuer_id = _make_root(pki, common_name, issuer, key_type, valid)
            done.append(f"made the root {common_name}")
        elif not issuer_id and parent is not None:
            issuer_id = _make_intermediate(pki, parent, common_name, issuer, key_type, valid, done)
        _check_issuer(pki, issuer_id, common_name, parent)
        pki.write("config/issuers", {"default": issuer_id}, done)
        for name, parameters in (roles or {}).items():
            pki.write(f"roles/{name}", parameters, done)
    return done


def host_role(domains: Sequence[str]) -> dict[str, Any]:
    """Return the parameters of a role for certificates of hosts in some domains, as servers and as clients."""
    return {
        "allowed_domains": ",".join(domains),
        "allow_subdomains": True,
        "allow_localhost": False,
        "key_type": "any",
        "ttl": f"{VALIDITY_DAYS * 86400}s",
        "max_ttl": f"{VALIDITY_DAYS * 86400}s",
    }


def _mount(pki: Pki, days: float, done: list[str]) -> None:
    """Mount the engine, and let it issue for as long as its authority lives: Vault's limit is 32 days."""
    seconds = int(days * 86400)
    mount = pki.mounted("pki", {"max_lease_ttl": f"{seconds}s"}, done)
    if mount is not None and mount["config"]["max_lease_ttl"] < seconds:
        path, body = f"sys/mounts/{pki.mount}/tune", {"max_lease_ttl": f"{seconds}s"}
        request(pki.session, "POST", path, body, idempotent=True)
        done.append(f"raised the longest validity at {pki.mount} to {days:g} days")


def _issuers(pki: Pki) -> dict[str, Mapping[str, Any]]:
    # Asked for one that is not there, the server fails with 500.
    if not pki.names("issuers"):
        return {}
    found: dict[str, Mapping[str, Any]] = member(pki.request("LIST", "issuers"), "key_info", dict)
    return found


def _make_root(pki: Pki, common_name: str, issuer: str, key_type: str, days: float) -> str:
    kind, _, bits = key_type.partition("-")
    body = {
        "common_name": common_name,
        "issuer_name": issuer,
        "key_name": issuer,
        "key_type": kind,
        "key_bits": int(bits),
        "ttl": f"{int(days * 86400)}s",
        "exclude_cn_from_sans": True,
    }
    answer = pki.request("POST", "root/generate/internal", body)
    return str(member(answer, "issuer_id", str))


def _make_intermediate(
    pki: Pki,
    parent: Pki,
    common_name: str,
    issuer: str,
    key_type: str,
    days: float,
    done: list[str],
) -> str:
    key_id = _make_key(pki, issuer, key_type, done)
    # An issuer with this key and no name yet is one that a crash has left.
    left = [name for name, each in _issuers(pki).items() if each["key_id"] == key_id]
    if left:
        issuer_id = left[0]
    else:
        body = {"key_ref": key_id, "common_name": common_name, "exclude_cn_from_sans": True}
        answer = pki.request("POST", "intermediate/generate/existing", body, idempotent=True)
        csr = x509.load_pem_x509_csr(member(answer, "csr", str).encode())
        found = parent.find(csr)
        if found is not None:
            certificate = found.certificate
        else:
            certificate = _sign(parent, csr, common_name, days)
            done.append(f"signed the intermediate {common_name} at {parent.mount}")
        above = parent.chain_of(certificate)
        check_chain(certificate, above, key=csr.public_key())
        bundle = "".join(each.public_bytes(Encoding.PEM).decode() for each in (certificate, *above))
        answer = pki.request(
            "POST", "intermediate/set-signed", {"certificate": bundle}, idempotent=True
        )
        mapping: dict[str, str] = member(answer, "mapping", dict)
        issuer_id = next(key for key, value in mapping.items() if value == key_id)
    pki.request("POST", f"issuer/{issuer_id}", {"issuer_name": issuer}, idempotent=True)
    done.append(f"made the intermediate {common_name}")
    return issuer_id


def _make_key(pki: Pki, name: str, key_type: str, done: list[str]) -> str:
    """Return the id of the key with a name, made where it is not there."""
    if pki.names("keys"):
        found = member(pki.request("LIST", "keys"), "key_info", dict)
        for key_id, each in found.items():
            if each["key_name"] == name:
                return str(key_id)
    kind, _, bits = key_type.partition("-")
    body = {"key_name": name, "key_type": kind, "key_bits": int(bits)}
    answer = pki.request("POST", "keys/generate/internal", body)
    done.append(f"made a key at {pki.mount}")
    return str(member(answer, "key_id", str))


def _sign(
    parent: Pki, csr: x509.CertificateSigningRequest, common_name: str, days: float
) -> x509.Certificate:
    body = {
        "csr": csr.public_bytes(Encoding.PEM).decode(),
        "common_name": common_name,
        "exclude_cn_from_sans": True,
        "max_path_length": 0,
        "ttl": f"{int(days * 86400)}s",
    }
    answer = parent.request("POST", "root/sign-intermediate", body)
    return x509.load_pem_x509_certificate(member(answer, "certificate", str).encode())


def _check_issuer(pki: Pki, issuer_id: str, common_name: str, parent: Pki | None) -> None:
    chain = pki.chain(issuer_id)
    names = chain[0].subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    if [common_name] != [each.value for each in names]:
        raise CertificateError(
            f"the issuer at {pki.mount} is another one, {chain[0].subject.rfc4514_string()}: "
            "under another name of the issuer one is made beside it"
        )
    own = chain[0].issuer == chain[0].subject
    try:
        if own != (parent is None):
            raise CertificateError
        (parent or pki).chain_of(chain[0])
    except CertificateError:
        raise CertificateError(f"the issuer at {pki.mount} has another parent") from None
    now = datetime.datetime.now(datetime.UTC)
    if chain[0].not_valid_after_utc <= now:
        raise CertificateError(
            f"the issuer at {pki.mount} has expired: make another one beside, under another name"
        )
