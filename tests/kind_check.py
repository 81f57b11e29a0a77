"""The command of a check that tests break: kind_check.py DIRECTORY

It keeps the credentials that it is given in DIRECTORY/tried. While there is DIRECTORY/trusted, it takes only the one
whose digest is in there; where a credential has no parts, it fails once, and takes the file away.
"""

import hashlib
import json
import sys
from pathlib import Path


def main() -> int:
    """Return the exit code."""
    directory, given = Path(sys.argv[1]), sys.stdin.buffer.read()
    with open(directory / "tried", "ab") as file:
        file.write(given + b"\n")
    trusted = directory / "trusted"
    if not trusted.exists():
        return 0
    if not given:
        trusted.unlink()
        return 1
    parts = json.dumps(json.loads(given), sort_keys=True)
    return 0 if hashlib.sha256(parts.encode()).hexdigest() == trusted.read_text() else 1


if __name__ == "__main__":
    sys.exit(main())
