"""The AWS Encryption SDK with a raw AES keyring: no account, no network, default frames of 4096 bytes."""

import filecmp
import importlib.metadata
import os
import shutil

import aws_encryption_sdk
from aws_cryptographic_material_providers.mpl import AwsCryptographicMaterialProviders
from aws_cryptographic_material_providers.mpl.config import MaterialProvidersConfig
from aws_cryptographic_material_providers.mpl.models import AesWrappingAlg, CreateRawAesKeyringInput

from benchmarks.harness import Job, Settings


def version() -> str:
    """The package's version."""
    return importlib.metadata.version("aws-encryption-sdk")


def file(settings: Settings, opening: bool) -> Job:
    """Encrypt or decrypt a smaller file as a stream."""
    name = "esdk-decrypt" if opening else "esdk-encrypt"
    source, sealed, back = (
        settings.slow_source,
        settings.path(f"{name}.sealed"),
        settings.path(name),
    )
    providers = AwsCryptographicMaterialProviders(config=MaterialProvidersConfig())
    keyring = providers.create_raw_aes_keyring(
        input=CreateRawAesKeyringInput(
            key_namespace="benchmark",
            key_name="key",
            wrapping_key=os.urandom(32),
            wrapping_alg=AesWrappingAlg.ALG_AES256_GCM_IV12_TAG16,
        )
    )
    client = aws_encryption_sdk.EncryptionSDKClient()

    def stream(mode: str, source: os.PathLike[str], target: os.PathLike[str]) -> None:
        with (
            open(source, "rb") as reading,
            open(target, "wb") as writing,
            client.stream(mode=mode, source=reading, keyring=keyring) as pieces,
        ):
            shutil.copyfileobj(pieces, writing)

    stream("e", source, sealed)
    stream("d", sealed, back)
    assert filecmp.cmp(source, back, shallow=False)
    back.unlink()
    if opening:
        return Job(lambda: stream("d", sealed, back), settings.slow_file_size, after=back.unlink)
    sealed.unlink()
    return Job(lambda: stream("e", source, sealed), settings.slow_file_size, after=sealed.unlink)
