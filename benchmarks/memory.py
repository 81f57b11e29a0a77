"""How many MiB it takes: a file over the import, rows over their input and output.

`python -m benchmarks.memory encrypt|decrypt KEY SOURCE TARGET` or `python -m benchmarks.memory seal|open KEY RECORDS`.
"""

import sys
from pathlib import Path

import numpy as np

import tapeseal


def kibibytes(field: str) -> int:
    """Return a field of this process's status: VmRSS is resident now, VmHWM was at the most."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1])
    raise LookupError(field)


def over_the_import(verb: str, keyring: tapeseal.Keyring, source: str, target: str) -> float:
    """Encrypt or decrypt one file."""
    work = tapeseal.encrypt_file if verb == "encrypt" else tapeseal.decrypt_file
    imported = kibibytes("VmRSS")
    work(source, target, keyring=keyring)
    return (kibibytes("VmHWM") - imported) / 1024


def over_the_output(verb: str, keyring: tapeseal.Keyring, source: str) -> float:
    """Seal or open one batch of all records."""
    records = np.load(source)
    encryptor = tapeseal.RowEncryptor(keyring, dtype=records.dtype)
    if verb == "seal":
        work, array = encryptor.encrypt, records
    else:
        work, array = (
            tapeseal.RowDecryptor(encryptor.header, keyring=keyring).decrypt,
            encryptor.encrypt(records),
        )
    work(array[:1])
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts again from VmRSS
    before = kibibytes("VmRSS")
    done = work(array)
    return (kibibytes("VmHWM") - before) / 1024 - done.nbytes / 2**20


def main() -> None:
    """Print it."""
    verb, key, *paths = sys.argv[1:]
    keyring = tapeseal.keyring(f"local:{key}")
    measure = over_the_import if verb in ("encrypt", "decrypt") else over_the_output
    print(measure(verb, keyring, *paths))


if __name__ == "__main__":
    main()
