"""The AWS Encryption SDK with a raw AES keyring: no account, no network, default frames of 4096 bytes."""

import filecmp
import importlib.metadata
import os
import shutil

import aws_encryption_sdk
from aws_cryptographic_material_providers.mpl import AwsCryptographicMaterialProviders
from aws_cryptographic_material_providers.mpl.config import MaterialProvidersConfig
from aws_cryptographic_material_providers.mpl.models import AesWrappingAlg, CreateRawAesKeyringInput
from aws_encryption_sdk.caches.local import LocalCryptoMaterialsCache
from aws_encryption_sdk.identifiers import AlgorithmSuite, EncryptionKeyType, WrappingAlgorithm
from aws_encryption_sdk.internal.crypto.wrapping_keys import WrappingKey
from aws_encryption_sdk.key_providers.raw import RawMasterKeyProvider
from aws_encryption_sdk.materials_managers.caching import CachingCryptoMaterialsManager

from benchmarks.batch import KEY, Batch
from benchmarks.harness import Job, Settings


def version() -> str:
    """The package's version."""
    return importlib.metadata.version("aws-encryption-sdk")


class _LocalKey(RawMasterKeyProvider):
    """Raw AES wrapping keys, for what came before keyrings: the caching manager takes nothing else."""

    provider_id = "benchmark"

    def _get_raw_key(self, key_id: str) -> WrappingKey:
        return WrappingKey(
            wrapping_algorithm=WrappingAlgorithm.AES_256_GCM_IV12_TAG16_NO_PADDING,
            wrapping_key=KEY,
            wrapping_key_type=EncryptionKeyType.SYMMETRIC,
        )


def rows(settings: Settings, size: int, opening: bool, threads: int) -> Job:
    """Seal or open each record as an unsigned message with cached materials; few, and checked by itself alone."""
    batch = Batch(settings, size, share=0.01)
    provider = _LocalKey()
    provider.add_master_key("key")
    manager = CachingCryptoMaterialsManager(
        cache=LocalCryptoMaterialsCache(100), max_age=3600.0, master_key_provider=provider
    )
    client = aws_encryption_sdk.EncryptionSDKClient()
    algorithm = AlgorithmSuite.AES_256_GCM_HKDF_SHA512_COMMIT_KEY
    sealed: dict[int, list[bytes]] = {}

    def seal(part: slice) -> None:
        sealed[part.start] = [
            client.encrypt(source=record, materials_manager=manager, algorithm=algorithm)[0]
            for record in batch.plain(part)
        ]
        b"".join(sealed[part.start])

    def unseal(part: slice) -> None:
        messages = sealed[part.start]
        batch.store_opened(
            part, [client.decrypt(source=row, materials_manager=manager)[0] for row in messages]
        )

    return batch.job_by_parts(seal, unseal, opening=opening, threads=threads)


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
