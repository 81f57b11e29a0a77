"""tapeseal vault transit: its commands."""

import contextlib
import dataclasses
import datetime
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import click

from tapeseal.cli import data, failures, options, output
from tapeseal.errors import TapesealError

if TYPE_CHECKING:
    from tapeseal.vault.transit import Transit, TransitKey

_Command = TypeVar("_Command", bound=Callable[..., Any])

_MAX_MESSAGE = 1 << 30
_MAX_CIPHERTEXT = 1 << 16
_MAX_CIPHERTEXTS = 1 << 28


@click.group()
def transit() -> None:
    """Encrypt, sign and compute HMACs with keys of a Transit engine.

    KEY is MOUNT/NAME, as in transit/orders.
    """


_key = click.argument("key")


def _bound(command: _Command) -> _Command:
    command = click.option(
        "--associated-data",
        metavar="TEXT",
        default="",
        help="Public text that the ciphertext is bound to.",
    )(command)
    return _context(command)


def _context(command: _Command) -> _Command:
    return click.option(
        "--context",
        metavar="TEXT",
        default="",
        help="Public text from which a derived key's own key is derived.",
    )(command)


@contextlib.contextmanager
def _open(key: str) -> Iterator[tuple["Transit", str]]:
    """Give the engine and the name of a key."""
    from tapeseal.vault.session import VaultSession
    from tapeseal.vault.transit import Transit, split_key

    mount, name = split_key(key)
    with VaultSession() as session:
        yield Transit(session, mount), name


def _algorithm(engine: "Transit", name: str) -> str:
    found = engine.read_key(name)
    if found.algorithm is None:
        raise ValueError(
            f"{engine.mount}/{name}: keys of type {found.type}{', derived,' if found.derived else ''} do not sign here"
        )
    return found.algorithm


@transit.command()
@_key
@data.file
@data.out
@_bound
@options.as_json
def encrypt(
    key: str, file: str, out: str, context: str, associated_data: str, as_json: bool
) -> None:
    """Encrypt up to 32 KiB under the latest version of KEY.

    \b
      tapeseal vault transit encrypt transit/config password -o password.enc
      tapeseal vault transit decrypt transit/config password.enc
    """
    from tapeseal.vault.transit import MAX_ITEM_SIZE

    data.check_new(out)
    with (
        contextlib.closing(data.read_secret(file, MAX_ITEM_SIZE)) as secret,
        _open(key) as (engine, name),
    ):
        ciphertext = engine.encrypt(
            name, secret, context=context.encode(), associated_data=associated_data.encode()
        )
    _write_text(key, "ciphertext", ciphertext, out, as_json)


@transit.command()
@_key
@data.file
@data.out
@_bound
@options.as_json
def decrypt(
    key: str, file: str, out: str, context: str, associated_data: str, as_json: bool
) -> None:
    """Decrypt a ciphertext of KEY; a file is made for its owner alone."""
    data.check_new(out)
    ciphertext = _text(file, _MAX_CIPHERTEXT)
    with _open(key) as (engine, name):
        plaintext = engine.decrypt(
            name, ciphertext, context=context.encode(), associated_data=associated_data.encode()
        )
    size = len(plaintext)
    data.write_secret(out, plaintext)
    if as_json:
        output.as_json({"key": key, "output": out, "bytes": size}, err=out == "-")


@transit.command()
@_key
@data.file
@data.out
@_context
@options.as_json
def rewrap(key: str, file: str, out: str, context: str, as_json: bool) -> int:
    """Encrypt by the latest version of KEY what earlier ones encrypted, one ciphertext a line.

    The plaintexts stay in the server. A line that does not open is left as it is, with exit code 1.
    """
    data.check_new(out)
    lines = _text(file, _MAX_CIPHERTEXTS).splitlines()
    with _open(key) as (engine, name):
        results = engine.rewrap_batch(name, lines, context=context.encode())
    errors = {
        number: each for number, each in enumerate(results, 1) if isinstance(each, TapesealError)
    }
    texts = [
        line if isinstance(each, TapesealError) else each
        for line, each in zip(lines, results, strict=True)
    ]
    data.write(out, "".join(f"{each}\n" for each in texts).encode())
    codes = [failures.report(error, f"{file}, line {number}") for number, error in errors.items()]
    if as_json:
        report = {
            "key": key,
            "output": out,
            "rewrapped": len(lines) - len(errors),
            "failed": len(errors),
        }
        output.as_json(report, err=out == "-")
    return failures.worst(codes)


@transit.command()
@_key
@data.file
@data.out
@options.as_json
def sign(key: str, file: str, out: str, as_json: bool) -> None:
    """Sign FILE by the latest version of KEY; the signature is written as Vault does, vault:vN:….

    Other than for Ed25519 only its digest is sent. ECDSA signatures are in DER, RSA's are PSS.
    """
    data.check_new(out)
    message = data.read(file, _MAX_MESSAGE)
    with _open(key) as (engine, name):
        signature = engine.sign(name, message, _algorithm(engine, name))
    _write_text(key, "signature", str(signature), out, as_json)


@transit.command()
@_key
@data.file
@click.option(
    "--signature", metavar="SIGNATURE", required=True, type=click.Path(), help="What sign wrote."
)
@options.as_json
def verify(key: str, file: str, signature: str, as_json: bool) -> None:
    """Have the server check a signature of FILE; exit code 1 where it is not one by KEY."""
    from tapeseal.vault.transit import Signature

    made = Signature.parse(_text(signature, _MAX_CIPHERTEXT))
    message = data.read(file, _MAX_MESSAGE)
    with _open(key) as (engine, name):
        algorithm = _algorithm(engine, name)
        engine.verify(name, message, made, algorithm)
    if as_json:
        output.as_json({"key": key, "version": made.version, "algorithm": algorithm, "valid": True})
    else:
        output.line(f"{file}: signed by version {made.version} of {key} ({algorithm})")


@transit.command()
@_key
@data.file
@data.out
@options.as_json
def hmac(key: str, file: str, out: str, as_json: bool) -> None:
    """Compute the HMAC-SHA-256 of up to 32 KiB by the latest version of KEY."""
    from tapeseal.vault.transit import MAX_ITEM_SIZE

    data.check_new(out)
    with (
        contextlib.closing(data.read_secret(file, MAX_ITEM_SIZE)) as secret,
        _open(key) as (engine, name),
    ):
        mac = engine.hmac(name, secret)
    _write_text(key, "hmac", mac, out, as_json)


@transit.command()
@_key
@data.file
@click.option(
    "--hmac", "mac", metavar="HMAC", required=True, type=click.Path(), help="What hmac wrote."
)
@options.as_json
def verify_hmac(key: str, file: str, mac: str, as_json: bool) -> None:
    """Have the server check an HMAC of FILE; exit code 1 where it is not one by KEY."""
    from tapeseal.vault.transit import MAX_ITEM_SIZE

    text = _text(mac, _MAX_CIPHERTEXT)
    with (
        contextlib.closing(data.read_secret(file, MAX_ITEM_SIZE)) as secret,
        _open(key) as (engine, name),
    ):
        engine.verify_hmac(name, secret, text)
    if as_json:
        output.as_json({"key": key, "valid": True})
    else:
        output.line(f"{file}: the HMAC is one by {key}")


@transit.command()
@_key
@click.option("--version", "number", metavar="N", type=click.IntRange(1), help="[the latest]")
@data.out
@options.as_json
def public_key(key: str, number: int | None, out: str, as_json: bool) -> None:
    """Print the public half of a version of KEY in PEM."""
    data.check_new(out)
    with _open(key) as (engine, name):
        found = engine.read_key(name)
    version = found.latest_version if number is None else number
    pem = found.public_keys.get(version)
    if pem is None:
        raise ValueError(
            f"{key}: version {version} of a key of type {found.type} has no public half"
        )
    if out != "-" or not as_json:
        data.write(out, pem)
    if as_json:
        output.as_json(
            {
                "key": key,
                "version": version,
                "algorithm": found.algorithm,
                "public_key": pem.decode(),
                "output": out,
            }
        )


@transit.command()
@_key
@click.option(
    "--type",
    "kind",
    metavar="TYPE",
    default="aes256-gcm96",
    show_default=True,
    help="Or chacha20-poly1305; for signatures ecdsa-p256, ecdsa-p384, ed25519, rsa-2048, rsa-3072 or rsa-4096.",
)
@click.option("--derived", is_flag=True, help="Each call then needs a context.")
@options.as_json
def create(key: str, kind: str, derived: bool, as_json: bool) -> None:
    """Make KEY; one of the same kind that exists stays as it is."""
    with _open(key) as (engine, name):
        engine.create_key(name, type=kind, derived=derived)
        _show(key, engine.read_key(name), as_json)


@transit.command()
@_key
@options.as_json
def show(key: str, as_json: bool) -> None:
    """Say everything about KEY: its versions, and which of them may be used."""
    with _open(key) as (engine, name):
        _show(key, engine.read_key(name), as_json)


@transit.command()
@click.argument("mount", default="transit")
@options.as_json
def keys(mount: str, as_json: bool) -> None:
    """List the keys of an engine."""
    with _open(f"{mount}/key") as (engine, _):
        for name in engine.key_names():
            key = f"{mount}/{name}"
            output.as_json({"key": key}) if as_json else output.line(key)


@transit.command()
@_key
@options.as_json
def rotate(key: str, as_json: bool) -> None:
    """Make a new version of KEY; what earlier ones made still opens."""
    with _open(key) as (engine, name):
        version = engine.rotate_key(name)
    if as_json:
        output.as_json({"key": key, "version": version})
    else:
        output.line(f"{key}: version {version} is the latest now")


@transit.command()
@_key
@click.option(
    "--min-decryption-version",
    metavar="N",
    type=click.IntRange(1),
    help="Earlier versions open and verify nothing any more.",
)
@click.option(
    "--min-encryption-version",
    metavar="N",
    type=click.IntRange(0),
    help="Earlier versions encrypt and sign nothing any more; 0: only the latest does.",
)
@click.option(
    "--deletion-allowed/--no-deletion-allowed", default=None, help="Whether it may be deleted."
)
@click.option(
    "--auto-rotate-days", metavar="N", type=click.IntRange(0), help="Rotate it so often; 0: never."
)
@options.as_json
def configure(
    key: str,
    min_decryption_version: int | None,
    min_encryption_version: int | None,
    deletion_allowed: bool | None,
    auto_rotate_days: int | None,
    as_json: bool,
) -> None:
    """Change settings of KEY."""
    with _open(key) as (engine, name):
        engine.configure_key(
            name,
            min_decryption_version=min_decryption_version,
            min_encryption_version=min_encryption_version,
            deletion_allowed=deletion_allowed,
            auto_rotate_seconds=None if auto_rotate_days is None else auto_rotate_days * 86400,
        )
        _show(key, engine.read_key(name), as_json)


def _text(file: str, limit: int) -> str:
    """Read text, without the line's end that follows it."""
    try:
        return data.read(file, limit).decode("ascii").rstrip("\r\n")
    except UnicodeDecodeError:
        pass
    raise ValueError(f"{file}: it holds other characters than those of Vault's ciphertexts")


def _write_text(key: str, name: str, text: str, out: str, as_json: bool) -> None:
    if out != "-" or not as_json:
        data.write(out, f"{text}\n".encode())
    if as_json:
        output.as_json({"key": key, name: text, "output": out})


def _show(key: str, found: "TransitKey", as_json: bool) -> None:
    def stamp(date: datetime.datetime) -> str:
        return date.astimezone(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")

    versions = {number: stamp(date) for number, date in sorted(found.created.items())}
    if as_json:
        report = dataclasses.asdict(found)
        report["public_keys"] = {number: pem.decode() for number, pem in found.public_keys.items()}
        output.as_json({**report, "key": key, "algorithm": found.algorithm, "created": versions})
        return
    pairs = [
        ("type", found.type + (", derived" if found.derived else "")),
        ("latest version", str(found.latest_version)),
        ("opens from version", str(found.min_decryption_version)),
        ("encrypts from version", str(found.min_encryption_version or found.latest_version)),
        (
            "rotated",
            f"every {found.auto_rotate_seconds / 86400:g} days"
            if found.auto_rotate_seconds
            else "by hand",
        ),
        ("deletion", "allowed" if found.deletion_allowed else "not allowed"),
    ]
    pairs += [(f"version {number}", date) for number, date in versions.items()]
    output.line(key)
    output.rows(pairs)
