"""The one call of a Kubernetes API server that a Vault makes: a review of a service account's token."""

import http.server
import json
import threading
from types import TracebackType
from typing import Any, Self

from servers.jwt import UID


class TokenReviews:
    """Reviews the tokens that issue() made.

    Attributes:
        address: its URL.
        down: answer 500 to everything.
    """

    def __init__(self) -> None:
        self._accounts: dict[str, tuple[str, str]] = {}
        self.down = False
        reviews = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                body = json.dumps(reviews._review(asked["spec"])).encode()
                self.send_response(500 if reviews.down else 201)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                """Say nothing."""

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def issue(self, namespace: str, account: str, signed: str) -> str:
        """Let a token, signed by whomever, be that of a service account, and return it."""
        self._accounts[signed] = namespace, account
        return signed

    def withdraw(self, token: str) -> None:
        """Let a token no longer be good."""
        del self._accounts[token]

    def _review(self, spec: dict[str, Any]) -> dict[str, Any]:
        status: dict[str, Any] = {"authenticated": False, "error": "invalid token"}
        if spec["token"] in self._accounts:
            namespace, account = self._accounts[spec["token"]]
            status = {
                "authenticated": True,
                "audiences": spec.get("audiences") or ["https://kubernetes.default.svc"],
                "user": {
                    "username": f"system:serviceaccount:{namespace}:{account}",
                    "uid": UID,
                    "groups": ["system:serviceaccounts", f"system:serviceaccounts:{namespace}"],
                },
            }
        return {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "status": status}

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
