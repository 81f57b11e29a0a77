"""`python -m benchmarks.memory encrypt|decrypt KEY SOURCE TARGET` prints how many MiB that took over the import."""

import sys
from pathlib import Path

import tapeseal


def kibibytes(field: str) -> int:
    """Return a field of this process's status: VmRSS is resident now, VmHWM was at the most."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1])
    raise LookupError(field)


def main() -> None:
    """Encrypt or decrypt one file."""
    verb, key, source, target = sys.argv[1:]
    keyring = tapeseal.keyring(f"local:{key}")
    imported = kibibytes("VmRSS")
    if verb == "encrypt":
        tapeseal.encrypt_file(source, target, keyring=keyring)
    else:
        tapeseal.decrypt_file(source, target, keyring=keyring)
    print((kibibytes("VmHWM") - imported) / 1024)


if __name__ == "__main__":
    main()
