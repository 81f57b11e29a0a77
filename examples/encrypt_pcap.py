"""Encrypt a packet capture, and read packets out of the middle of it without decrypting the rest.

    python examples/encrypt_pcap.py archive.key capture.pcap

A tape of bytes is a seekable file object: whatever reads pcap, Parquet or zip files reads it in place.
"""

import struct
import sys

import tapeseal


def main(key_file: str, capture: str) -> list[int]:
    """Encrypt a capture beside itself; return the sizes of its first ten packets, read from the tape."""
    keyring = tapeseal.keyring(f"local:{key_file}")
    sealed = f"{capture}.tape"
    anchor = tapeseal.encrypt_file(
        capture, sealed, keyring=keyring, encryption_context={"kind": "pcap"}
    )
    print(f"{sealed}: {anchor.items} bytes in {anchor.frames} frames")

    sizes: list[int] = []
    with tapeseal.open(sealed, "rb", keyring=keyring, expect={"kind": "pcap"}) as file:
        magic = file.read(24)[:4]
        order = "<" if magic in (b"\xd4\xc3\xb2\xa1", b"\x4d\x3c\xb2\xa1") else ">"
        while len(sizes) < 10 and (head := file.read(16)):
            captured = struct.unpack(f"{order}IIII", head)[2]
            file.seek(captured, 1)
            sizes.append(captured)
    print("the first packets have", sizes, "bytes")
    return sizes


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(sys.argv[1], sys.argv[2])
