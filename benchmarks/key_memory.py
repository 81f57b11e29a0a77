"""Where does a key stand in a process that uses it, by itself and by this library's peers?

Run: python -m benchmarks.key_memory

Needs the development environment, and gcore for the dumps. A process of each library reads one key from a file,
seals and opens a thousand messages of 56 bytes with it, and lets go of all it has; this one looks through its memory
for the key.
"""

import sys
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from tapeseal.keyrings.local import create_key_file

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from memory_scan import Hit, Scanner, child

PROGRAMS = {
    "tapeseal": """
        import tapeseal
        keyring = tapeseal.LocalKeyring(sys.argv[1])
        for _ in range(1000):
            assert tapeseal.decrypt(tapeseal.encrypt(bytes(56), keyring=keyring), keyring=keyring) == bytes(56)
        stage("in use")
        del keyring
        gc.collect()
        stage("closed")
    """,
    "cryptography": """
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
        key = AESGCM(Path(sys.argv[1]).read_bytes())
        for n in range(1000):
            nonce = n.to_bytes(12, "big")
            assert key.decrypt(nonce, key.encrypt(nonce, bytes(56), None), None) == bytes(56)
        stage("in use")
        del key
        gc.collect()
        stage("closed")
    """,
    "tink": """
        import base64, json, tink
        from tink import aead, secret_key_access
        aead.register()
        template = aead.aead_key_templates.AES256_GCM_RAW
        proto = base64.b64encode(b"\\x1a\\x20" + Path(sys.argv[1]).read_bytes()).decode()
        keyset = {"primaryKeyId": 1, "key": [{
            "keyData": {"typeUrl": template.type_url, "value": proto, "keyMaterialType": "SYMMETRIC"},
            "status": "ENABLED", "keyId": 1, "outputPrefixType": "RAW",
        }]}
        handle = tink.json_proto_keyset_format.parse(json.dumps(keyset), secret_key_access.TOKEN)
        key = handle.primitive(aead.Aead)
        for _ in range(1000):
            assert key.decrypt(key.encrypt(bytes(56), b""), b"") == bytes(56)
        stage("in use")
        del key, handle, keyset, proto
        gc.collect()
        stage("closed")
    """,
    "aws-encryption-sdk": """
        import aws_encryption_sdk
        from aws_cryptographic_material_providers.mpl import AwsCryptographicMaterialProviders
        from aws_cryptographic_material_providers.mpl.config import MaterialProvidersConfig
        from aws_cryptographic_material_providers.mpl.models import AesWrappingAlg, CreateRawAesKeyringInput
        keyring = AwsCryptographicMaterialProviders(MaterialProvidersConfig()).create_raw_aes_keyring(
            CreateRawAesKeyringInput(
                key_namespace="n", key_name="k", wrapping_key=Path(sys.argv[1]).read_bytes(),
                wrapping_alg=AesWrappingAlg.ALG_AES256_GCM_IV12_TAG16,
            )
        )
        client = aws_encryption_sdk.EncryptionSDKClient()
        for _ in range(1000):
            sealed, _ = client.encrypt(source=bytes(56), keyring=keyring)
            assert client.decrypt(source=sealed, keyring=keyring)[0] == bytes(56)
        stage("in use")
        del keyring, client
        gc.collect()
        stage("closed")
    """,
}


def look(program: str, path: Path, key: bytes, folder: Path) -> list[set[Hit]]:
    """Return what stands in memory and in a core dump while the key is in use, and in memory afterwards."""
    scanner = Scanner({"key": key})
    with child(program, path) as process:
        process.wait_for("in use")
        found = [scanner.process(process.pid), scanner.core(process.pid, folder)]
        process.go_on_to("closed")
        return [*found, scanner.process(process.pid)]


def forms(hits: set[Hit], wanted: Callable[[Hit], bool] = lambda hit: True) -> str:
    """Name the forms in which the key was found."""
    return ", ".join(sorted({hit.form for hit in hits if wanted(hit)})) or "none"


def main() -> None:
    """Look at each library, and print the forms of the key that were found."""
    layout = "{:20}{:17}{:15}{:15}{}"
    print(layout.format("", "in locked pages", "elsewhere", "in core dumps", "after closing"))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = folder / "archive.key"
        create_key_file(path)
        key = bytes.fromhex(path.read_text().split("secret=")[1][:64])
        (folder / "raw").write_bytes(key)
        for library, program in PROGRAMS.items():
            source = path if library == "tapeseal" else folder / "raw"
            if find_spec(library.replace("-", "_")) is None:
                print(layout.format(library, "not installed", "", "", ""))
                continue
            used, dumped, closed = look(program, source, key, folder)
            cells = (
                forms(used, lambda hit: hit.protected),
                forms(used, lambda hit: not hit.protected),
                forms(dumped),
                forms(closed),
            )
            print(layout.format(library, *cells))


if __name__ == "__main__":
    main()
