"""Nanoseconds a row, of each kernel against the AES-only floor, the EVP loop and `cryptography`: for tuning.

Run: python -m benchmarks.rows_quick [SIZE ...] [--rows N]
One process, interleaved rounds; the smallest and the median of each are printed. The floor is `cryptography`'s
AES-256-ECB over as many blocks, in one call.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

import tapeseal
from tapeseal import _core
from tapeseal.keyrings.local import create_key_file


def key_file_keyring() -> tapeseal.LocalKeyring:
    """Return a keyring over a new key file that is gone again."""
    with tempfile.TemporaryDirectory() as folder:
        create_key_file(f"{folder}/bench.key")
        return tapeseal.LocalKeyring(f"{folder}/bench.key")


def subjects(size: int, count: int) -> dict[str, tuple[Callable[[], object], int]]:
    """Return what is to be timed, and the rows that one call does."""
    rng = np.random.default_rng(7)
    records = rng.integers(0, 256, (count, size), np.uint8).view(f"V{size}").reshape(count)
    found: dict[str, tuple[Callable[[], object], int]] = {}
    blocks = bytearray(count * (-(-size // 16) + 1) * 16)
    into = bytearray(len(blocks) + 15)
    ecb = Cipher(algorithms.AES(bytes(32)), modes.ECB()).encryptor()
    found["floor"] = (lambda: ecb.update_into(blocks, into), count)
    for kernel in _core.row_kernels():
        cipher = _core.RowCipher(_core.SecretBuffer.random(32), kernel)
        sealed = np.empty(count, f"V{size + 28}")
        opened = np.empty_like(records)
        found[f"{kernel} seal"] = (
            lambda c=cipher, s=sealed: c.seal_rows(s, records, counter=0),
            count,
        )
        found[f"{kernel} open"] = (lambda c=cipher, s=sealed, o=opened: c.open_rows(o, s), count)
        found[f"{kernel} seal"][0]()
        found[f"{kernel} open"][0]()
        assert opened.tobytes() == records.tobytes()
        found[f"{kernel} seal, 2 threads"] = (
            lambda c=cipher, s=sealed: c.seal_rows(s, records, counter=0, threads=2),
            count,
        )
    keyring = key_file_keyring()
    rows = tapeseal.RowEncryptor(keyring, dtype=records.dtype, threads=1)
    decryptor = tapeseal.RowDecryptor(rows.header, keyring=keyring, threads=1)
    done = rows.encrypt(records)
    one = records[:1].copy()
    found["RowEncryptor"] = (lambda: rows.encrypt(records), count)
    found["RowDecryptor"] = (lambda: decryptor.decrypt(done), count)
    found["RowEncryptor, one row"] = (lambda: rows.encrypt(one), 1)
    found["RowDecryptor, one row"] = (lambda: decryptor.decrypt(done[:1]), 1)
    aead = AESGCM(bytes(32))
    some = [record.tobytes() for record in records[:1000]]
    nonce = bytes(12)
    found["cryptography"] = (lambda: [aead.encrypt(nonce, r, None) for r in some], len(some))
    return found


def main() -> None:
    """Time everything for each size asked for."""
    parser = argparse.ArgumentParser()
    parser.add_argument("sizes", nargs="*", type=int, default=[56])
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    print(tapeseal.openssl_version())
    for size in arguments.sizes:
        found = subjects(size, arguments.rows)
        times: dict[str, list[float]] = {name: [] for name in found}
        for _ in range(arguments.rounds):
            for name, (call, rows) in found.items():
                calls = max(1, int(2e-3 // (rows * (size + 200) * 0.1e-9)))
                call()
                start = time.perf_counter()
                for _ in range(calls):
                    call()
                times[name].append((time.perf_counter() - start) / calls / rows * 1e9)
        floor = min(times["floor"])
        print(f"\n{size} bytes, {arguments.rows} rows a call: ns a row")
        for name, taken in times.items():
            print(
                f"{name:28} min {min(taken):8.1f}  median {statistics.median(taken):8.1f}"
                f"  x floor {min(taken) / floor:7.2f}"
            )


if __name__ == "__main__":
    main()
