"""Fleets moved between key files, AWS KMS, Vault and public keys."""

import itertools
from pathlib import Path

import pytest

import tapeseal
from support import TICK, ticks
from tapeseal.fleet import Condition, blast_radius, rewrap_fleet
from tapeseal.keyrings.local import LocalKeyring

pytestmark = pytest.mark.server
RECORDS = ticks(0, 100)


@pytest.fixture
def keyrings(
    services: dict[str, tapeseal.Keyring], keyring: LocalKeyring
) -> dict[str, tapeseal.Keyring]:
    """One keyring a provider."""
    return {**services, "local": keyring}


def read_with(path: str, keyrings: dict[str, tapeseal.Keyring]) -> list[str]:
    """Return which keyrings open a tape; each that does finds RECORDS in it."""
    found = []
    for name, keyring in keyrings.items():
        try:
            with tapeseal.open(path, keyring=keyring) as tape:
                assert RECORDS.tobytes() == tape[:].tobytes()
        except tapeseal.KeyUnavailableError:
            continue
        found.append(name)
    return found


def test_moves_in_every_direction(tmp_path: Path, keyrings: dict[str, tapeseal.Keyring]) -> None:
    """From any provider to any other: only the new keyring opens the tapes, and their headers alone changed."""
    for old, new in itertools.permutations(keyrings, 2):
        paths = [str(tmp_path / f"{old}-{new}-{number}.tape") for number in range(2)]
        for path in paths:
            with tapeseal.open(path, "x", keyring=keyrings[old], dtype=TICK) as tape:
                tape.append(RECORDS)
        bodies = [Path(path).read_bytes()[8192:] for path in paths]
        moved = list(rewrap_fleet(paths, keyring=keyrings[old], to=keyrings[new]))
        assert ["rewrapped"] * 2 == [each.state for each in moved]
        assert [[new]] * 2 == [read_with(path, keyrings) for path in paths]
        assert bodies == [Path(path).read_bytes()[8192:] for path in paths]


def test_blast_radius_of_services(tmp_path: Path, keyrings: dict[str, tapeseal.Keyring]) -> None:
    """Headers alone tell which tapes a provider's keys open, and how many records those hold."""
    for name, keyring in keyrings.items():
        with tapeseal.open(tmp_path / f"{name}.tape", "x", keyring=keyring, dtype=TICK) as tape:
            tape.append(RECORDS)
    everyone = tapeseal.AnyOf(list(keyrings.values()))
    with tapeseal.open(tmp_path / "all.tape", "x", keyring=everyone, dtype=TICK) as tape:
        tape.append(RECORDS)
    providers = {
        "kms": "aws-kms",
        "vault": "vault-transit",
        "escrow": "public-key",
        "local": "local",
    }
    for name, provider in providers.items():
        paths = [str(path) for path in sorted(tmp_path.glob("*.tape"))]
        found = list(blast_radius(paths, [Condition.parse(f"provider={provider}")]))
        assert sorted(str(tmp_path / each) for each in ("all.tape", f"{name}.tape")) == [
            each.path for each in found
        ]
