"""A double of a Kubernetes API server, as far as Secrets go: not a real one, for none can be had here.

    with KubernetesApi(directory) as api:
        ...                                   # a client of api.kubeconfig
        api.secrets["hft", "feed"]            # key: value, decoded

It serves over TLS, to one bearer token, what the target uses: PATCH /api/v1/namespaces/NAMESPACE/secrets/NAME as a
server-side apply. It keeps who manages which key, and answers 409 in the words of a real one where a manager other than
the one that applies has it and `force` is not asked for; keys that a manager applied before and leaves out are removed.
Resource versions, watches, RBAC and everything else of a cluster are not there.
"""

import base64
import http.server
import json
import re
import secrets
import ssl
import threading
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

from servers.certs import Authority

_PATH = re.compile(r"/api/v1/namespaces/([^/]+)/secrets/([^/]+)")
_KUBECONFIG = """\
apiVersion: v1
kind: Config
clusters: [{{name: double, cluster: {{server: "{address}", certificate-authority: "{ca_file}"}}}}]
users: [{{name: tapeseal, user: {{token: "{token}"}}}}]
contexts: [{{name: double, context: {{cluster: double, user: tapeseal}}}}]
current-context: double
"""


class KubernetesApi:
    """See the module.

    Attributes:
        kubeconfig: the path of a configuration of its client.
        secrets: by namespace and name, the data of each Secret, decoded.
        managers: by the same, which field manager has which key.
        namespaces: those there are.
        down: answer 503 to everything.
        seen: "METHOD /path?query" of each request.
    """

    def __init__(self, directory: Path) -> None:
        authority = Authority(directory / "kubernetes-tls", "kubernetes authority")
        self.secrets: dict[tuple[str, str], dict[str, str]] = {}
        self.managers: dict[tuple[str, str], dict[str, str]] = {}
        self.namespaces = {"default", "hft"}
        self.down = False
        self.seen: list[str] = []
        self._token = secrets.token_urlsafe(24)
        self._lock = threading.Lock()
        api = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_PATCH(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                authorized = self.headers.get("Authorization") == f"Bearer {api._token}"
                kind = self.headers.get("Content-Type", "")
                status, document = api._patch(self.path, authorized, kind, body)
                content = json.dumps(document).encode()
                self.send_response_only(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, format: str, *args: Any) -> None:
                """Say nothing."""

        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*authority.issue_server())
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.socket = context.wrap_socket(
            self._server.socket, server_side=True, do_handshake_on_connect=False
        )
        self.address = f"https://127.0.0.1:{self._server.server_port}"
        self.kubeconfig = directory / "kubeconfig"
        self.kubeconfig.write_text(
            _KUBECONFIG.format(address=self.address, ca_file=authority.ca_file, token=self._token)
        )
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def _patch(
        self, path: str, authorized: bool, kind: str, body: bytes
    ) -> tuple[int, dict[str, Any]]:
        self.seen.append(f"PATCH {path}")
        parts = urlsplit(path)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        found = _PATH.fullmatch(parts.path)
        if self.down:
            return _status(503, "the server is currently unable to handle the request")
        if not authorized:
            return _status(401, "Unauthorized")
        if found is None:
            return _status(404, "the server could not find the requested resource")
        if not kind.startswith("application/apply-patch+yaml"):
            return _status(415, f"the body of the request was in an unknown format - {kind}")
        namespace, name = found.groups()
        if namespace not in self.namespaces:
            return _status(404, f'namespaces "{namespace}" not found')
        applied = json.loads(body)
        data = {
            key: base64.b64decode(value, validate=True).decode()
            for key, value in applied["data"].items()
        }
        with self._lock:
            return self._apply((namespace, name), data, query)

    def _apply(
        self, key: tuple[str, str], data: dict[str, str], query: dict[str, str]
    ) -> tuple[int, dict[str, Any]]:
        manager = query["fieldManager"]
        have, managers = self.secrets.setdefault(key, {}), self.managers.setdefault(key, {})
        others = {
            name: managers[name]
            for name in data
            if managers.get(name, manager) != manager and have.get(name) != data[name]
        }
        if others and query.get("force") not in ("true", "True"):
            fields = "".join(f"\n- .data.{name}" for name in others)
            by = ", ".join(sorted(set(others.values())))
            return _status(
                409, f'Apply failed with {len(others)} conflicts: conflicts with "{by}":{fields}'
            )
        for name in [each for each, owner in managers.items() if owner == manager]:
            if name not in data:
                del managers[name], have[name]
        have |= data
        managers |= dict.fromkeys(data, manager)
        return 200, {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"namespace": key[0], "name": key[1]},
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()


def _status(code: int, message: str) -> tuple[int, dict[str, Any]]:
    return code, {"apiVersion": "v1", "kind": "Status", "code": code, "message": message}
