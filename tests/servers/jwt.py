"""JSON web tokens, signed by a key of the tests."""

import base64
import json
import time
from typing import Any

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

UID = "5e5a1c3d-0000-4000-8000-000000000001"
"""Of every service account: a Vault compares that of the token with that of its review."""


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


class Signer:
    """A key that signs by ES256; `public_key` is its public half in PEM."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self.public_key = (
            self._key.public_key()
            .public_bytes(
                serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
            )
            .decode()
        )

    def sign(self, **claims: Any) -> str:
        """Return a token with these claims, good for ten minutes."""
        now = int(time.time())
        claims = {"iat": now, "nbf": now, "exp": now + 600, **claims}
        parts = [{"alg": "ES256", "typ": "JWT"}, claims]
        text = ".".join(_base64(json.dumps(part).encode()) for part in parts)
        pair = decode_dss_signature(self._key.sign(text.encode(), ec.ECDSA(hashes.SHA256())))
        return f"{text}.{_base64(b''.join(number.to_bytes(32, 'big') for number in pair))}"

    def service_account(self, namespace: str, name: str) -> str:
        """Return a token with the claims of a service account of Kubernetes."""
        account = {"name": name, "uid": UID}
        return self.sign(
            iss="https://kubernetes.default.svc",
            sub=f"system:serviceaccount:{namespace}:{name}",
            aud=["https://kubernetes.default.svc"],
            **{"kubernetes.io": {"namespace": namespace, "serviceaccount": account}},
        )
