"""The administrator's command of an exchange, run by a rotation: exchange_admin.py FILE create|list|revoke"""

import json
import os
import ssl
import sys
import urllib.error
import urllib.request
from typing import Any


def main() -> int:
    """Do one step; FILE says who the exchange is, and holds the administrator's key."""
    path, step = sys.argv[1:]
    with open(path) as file:
        settings = json.load(file)

    def call(method: str, url: str, body: Any = None) -> Any:
        request = urllib.request.Request(
            settings["address"] + url,
            None if body is None else json.dumps(body).encode(),
            {"Authorization": f"Bearer {settings['key']}"},
            method=method,
        )
        context = ssl.create_default_context(cafile=settings["ca_file"])
        with urllib.request.urlopen(request, context=context, timeout=10) as answer:
            return json.loads(answer.read() or b"null")

    try:
        if step == "create":
            made = call("POST", "/keys", {"label": os.environ["TAPESEAL_ROTATION"]})
            print(json.dumps({"id": str(made["id"]), "key": made["key"]}))
        elif step == "list":
            keys = call("GET", "/keys")["keys"]
            print(json.dumps({str(each["id"]): each["label"] for each in keys}))
        else:
            call("DELETE", f"/keys/{os.environ['TAPESEAL_KEY_ID']}")
    except urllib.error.HTTPError as error:
        if error.code == 404 and step == "revoke":
            return 0
        print(f"the exchange answers {error.code}", file=sys.stderr)
        return 75 if error.code >= 500 else 1
    except OSError:
        print("the exchange does not answer", file=sys.stderr)
        return 75
    return 0


if __name__ == "__main__":
    sys.exit(main())
