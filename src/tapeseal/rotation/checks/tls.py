"""The check "tls": a handshake, in which a server shows the new certificate, or takes it from a client."""

import socket
import ssl
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from tapeseal.errors import ServiceUnavailableError, VerificationError
from tapeseal.rotation.isolated import run_isolated
from tapeseal.rotation.settings import Setting

if TYPE_CHECKING:
    from tapeseal.rotation.kinds import Credential
    from tapeseal.rotation.plan import PlannedSecret

_PARTS = ("certificate", "private_key")


class TlsCheck:
    """Opens a connection, checking the server's certificate against `ca_file`, or what the system trusts.

    As `role` "server" the target is to show the certificate of the credential itself, and refuses one when it shows
    another; as "client" it is to take it, and refuses it by an alert.
    """

    settings: ClassVar[Mapping[str, Setting]] = {
        "host": Setting(str),
        "port": Setting(int, default=443, least=1),
        "server_name": Setting(str, default=None),
        "role": Setting(str, default="server", choices=("server", "client")),
        "ca_file": Setting(Path, default=None),
        "timeout": Setting(timedelta, default=timedelta(seconds=10)),
    }

    def __init__(self, settings: Mapping[str, Any], secret: "PlannedSecret") -> None:
        self._settings = settings
        self._where = f"{settings['host']}:{settings['port']}"
        self._seconds = settings["timeout"].total_seconds()

    def accepts(self, credential: "Credential") -> None:
        """Open a connection."""
        self._check_parts(credential)
        if self._settings["role"] == "client":
            self._show(credential)
            return
        wanted, served = _serial_number(credential), self._served()
        if served != wanted:
            raise VerificationError(
                f"{self._where} shows the certificate {served:x}, not the new one, {wanted:x}"
            )

    def refuses(self, credential: "Credential") -> bool:
        """Return whether the target shows another certificate, or refuses this one."""
        self._check_parts(credential)
        if self._settings["role"] == "server":
            return self._served() != _serial_number(credential)
        try:
            self._show(credential)
        except VerificationError:
            return True
        return False

    def _check_parts(self, credential: "Credential") -> None:
        if not set(_PARTS) <= credential.keys():
            raise VerificationError(
                f"a certificate has the parts {' and '.join(_PARTS)}, not {', '.join(credential)}"
            )

    def _show(self, credential: "Credential") -> None:
        settings = self._settings
        ca_file: Path | None = settings["ca_file"]
        run_isolated(
            "tls_client",
            {
                "host": settings["host"],
                "port": settings["port"],
                "server_name": settings["server_name"] or settings["host"],
                "ca_file": None if ca_file is None else str(ca_file),
                "seconds": self._seconds,
            },
            {name: credential[name] for name in _PARTS},
            self._seconds + 5,
        )

    def _served(self) -> int:
        from cryptography import x509

        settings = self._settings
        problem = ""
        try:
            context = ssl.create_default_context(cafile=settings["ca_file"])
            address = settings["host"], settings["port"]
            with (
                socket.create_connection(address, self._seconds) as plain,
                context.wrap_socket(
                    plain, server_hostname=settings["server_name"] or settings["host"]
                ) as connection,
            ):
                served = connection.getpeercert(binary_form=True)
            assert served is not None
            return x509.load_der_x509_certificate(served).serial_number
        except ssl.SSLCertVerificationError as error:
            problem = error.verify_message
        except OSError as error:
            failure = error.strerror or "no answer"
            raise ServiceUnavailableError(f"{self._where}: {failure}") from None
        raise VerificationError(f"{self._where} shows a certificate that is not trusted: {problem}")

    def calls(self) -> list[str]:
        """Name the handshake."""
        return [f"TLS handshake with {self._where}"]


def _serial_number(credential: "Credential") -> int:
    from cryptography import x509

    try:
        # There is nothing secret in it.
        return x509.load_pem_x509_certificate(
            credential["certificate"].expose().encode()
        ).serial_number
    except ValueError:
        raise VerificationError("the part certificate holds no certificate in PEM") from None
