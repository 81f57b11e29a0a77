"""Work with libraries that hold secrets in Python strings, each time in a process of its own, which ends with them.

The process is this module, as `python -m tapeseal.rotation.isolated WORK SETTINGS`: it gets the credential on its
standard input, and its exit code and one line on standard error say how it ended.
"""

import base64
import contextlib
import json
import os
import re
import resource
import ssl
import sys
from collections.abc import Mapping
from typing import Any, Final

from tapeseal.errors import (
    CommandError,
    RotationError,
    ServiceUnavailableError,
    VerificationError,
)
from tapeseal.rotation.commands import run_command
from tapeseal.secret import Secret

_FAILED: Final = 10
_REFUSED: Final = 11
_LATER: Final = 12
_EXCEPTIONS: Final = {_REFUSED: VerificationError, _LATER: ServiceUnavailableError}

# Of the server's own words, which may be of another language: then a refusal looks like an outage.
_POSTGRES_REFUSES = re.compile(
    r"(?:password|SCRAM|certificate|peer) authentication failed|role \".*\" does not exist"
    r"|is not permitted to log in|no pg_hba\.conf entry"
)
# The alerts of RFC 8446, 6.2, that are about a certificate.
_TLS_REFUSES = re.compile(
    r"ALERT_(?:\w*CERTIFICATE\w*|UNKNOWN_CA|ACCESS_DENIED|HANDSHAKE_FAILURE)$"
)


def run_isolated(
    work: str, settings: Mapping[str, Any], credential: Mapping[str, Secret], seconds: float
) -> None:
    """Run one of the works below to its end.

    Raises:
        VerificationError: the credential was refused.
        ServiceUnavailableError: the other side could not be asked, or not in time.
        RotationError: it said something else.
    """
    command = [sys.executable, "-m", __name__, work, json.dumps(settings)]
    try:
        printed = run_command(command, credential=credential, seconds=seconds)
    except CommandError as error:
        failure = _EXCEPTIONS.get(error.code, RotationError)(error.said or str(error))
    except ServiceUnavailableError:
        failure = ServiceUnavailableError(f"{work}: no answer within {seconds:.0f} seconds")
    else:
        if printed is not None:
            printed.close()
        return
    raise failure


def postgres(settings: Mapping[str, Any], credential: Mapping[str, str]) -> None:
    """Log in to PostgreSQL."""
    import psycopg

    where = f"PostgreSQL at {settings['host']}:{settings['port']}"
    try:
        connection = psycopg.connect(
            host=settings["host"],
            port=settings["port"],
            dbname=settings["database"],
            user=credential.get("username", settings["username"]),
            password=credential["password"],
            sslmode=settings["sslmode"],
            sslrootcert=settings["ca_file"],
            connect_timeout=settings["seconds"],
            application_name="tapeseal",
        )
        with connection:
            connection.execute("SELECT 1")
    except psycopg.OperationalError as error:
        text = str(error)
        if _POSTGRES_REFUSES.search(text):
            raise VerificationError(f"{where} says: {text}") from None
        raise ServiceUnavailableError(f"{where}: {text}") from None


def kubernetes(settings: Mapping[str, Any], credential: Mapping[str, str]) -> None:
    """Apply keys of a Secret."""
    import urllib3
    from kubernetes import client, config

    where = f"the Secret {settings['namespace']}/{settings['name']} of Kubernetes"
    try:
        if settings["kubeconfig"] is None and "KUBERNETES_SERVICE_HOST" in os.environ:
            configuration = client.Configuration()
            config.load_incluster_config(configuration)
            api = client.ApiClient(configuration)
        else:
            api = config.new_client_from_config(settings["kubeconfig"], settings["context"])
        api.configuration.retries = 0
        data = {
            key: base64.b64encode(credential[part].encode()).decode()
            for key, part in settings["keys"].items()
        }
        metadata = {"name": settings["name"], "namespace": settings["namespace"]}
        client.CoreV1Api(api).patch_namespaced_secret(
            settings["name"],
            settings["namespace"],
            {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "data": data},
            field_manager="tapeseal",
            force=settings["force"],
            _content_type="application/apply-patch+yaml",
        )
    except config.ConfigException as error:
        raise RotationError(f"{where}: {error}") from None
    except client.ApiException as error:
        said = _kubernetes_says(error.body) or error.reason
        if error.status >= 500 or error.status in (0, 429):
            raise ServiceUnavailableError(f"{where}: {said} ({error.status})") from None
        hint = ""
        if error.status == 409:
            hint = "; force = true in the plan takes them over"
        raise RotationError(f"{where}: {said} ({error.status}){hint}") from None
    except urllib3.exceptions.HTTPError as error:
        raise ServiceUnavailableError(f"{where}: {error}") from None


def _kubernetes_says(body: object) -> str:
    try:
        return str(json.loads(body)["message"])  # type: ignore[arg-type]
    except (TypeError, ValueError, LookupError):
        return ""


def tls_client(settings: Mapping[str, Any], credential: Mapping[str, str]) -> None:
    """Show a client certificate to a server of TLS, which says in the handshake whether it takes it."""
    import socket

    where = f"{settings['host']}:{settings['port']}"
    context = ssl.create_default_context(cafile=settings["ca_file"])
    # Python's ssl takes keys from files alone. This one has no name, and no disk.
    fd = os.memfd_create("tapeseal")
    with open(fd, "wb", buffering=0) as file:
        file.write(f"{credential['private_key']}\n{credential['certificate']}\n".encode())
        context.load_cert_chain(f"/proc/self/fd/{fd}")
    try:
        address = settings["host"], settings["port"]
        with (
            socket.create_connection(address, settings["seconds"]) as plain,
            context.wrap_socket(plain, server_hostname=settings["server_name"]) as connection,
        ):
            # In TLS 1.3 the server judges after our part of the handshake, so only what it says next tells. This lets
            # it know that we have nothing to say; SSLSocket.shutdown() would end our reading too.
            # Where it has closed the connection already, its alert is still to be read.
            with contextlib.suppress(OSError):
                socket.socket.shutdown(connection, socket.SHUT_WR)
            connection.recv(1)
    except ssl.SSLError as error:
        reason = error.reason or str(error)
        if _TLS_REFUSES.search(reason):
            raise VerificationError(f"{where} says: {reason}") from None
        # What is left of servers that let us in: their end, or that of a stream we cut short (decode_error).
        if not isinstance(error, ssl.SSLEOFError) and not reason.endswith("ALERT_DECODE_ERROR"):
            raise ServiceUnavailableError(f"{where}: {reason}") from None
    except ConnectionError as error:
        raise ServiceUnavailableError(f"{where}: {error.strerror}") from None
    except OSError as error:
        raise ServiceUnavailableError(f"{where}: {error.strerror or 'no answer'}") from None


_WORKS: Final = {"postgres": postgres, "kubernetes": kubernetes, "tls_client": tls_client}


def main() -> int:
    """Do the work that the arguments name, and return the exit code."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _, work, settings = sys.argv
    failure: BaseException
    try:
        _WORKS[work](json.loads(settings), json.load(sys.stdin))
        return 0
    except VerificationError as error:
        code, failure = _REFUSED, error
    except ServiceUnavailableError as error:
        code, failure = _LATER, error
    except RotationError as error:
        code, failure = _FAILED, error
    except ModuleNotFoundError as error:
        code, failure = (
            _FAILED,
            RotationError(f"{work} needs {error.name}: pip install 'tapeseal[rotation]'"),
        )
    except Exception as error:
        # Whose text may hold anything.
        code, failure = _FAILED, RotationError(f"{work}: {type(error).__name__}")
    print(" ".join(str(failure).split()), file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
