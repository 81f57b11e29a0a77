"""tapeseal kms: its commands."""

import base64
import contextlib
import datetime
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from tapeseal.cli import data, failures, options, output

if TYPE_CHECKING:
    from tapeseal.kms import KeyInfo, KeyRotation, Kms

_Command = TypeVar("_Command", bound=Callable[..., Any])

_MAX_MESSAGE = 1 << 30


@click.group()
def kms() -> None:
    """Use, rotate and list keys of AWS KMS.

    KEY is an id, an ARN, alias/NAME or the ARN of an alias. Credentials are those of boto3.
    """


def _service(command: _Command) -> _Command:
    command = click.option(
        "--endpoint-url", metavar="URL", help="Another address than the region's own."
    )(command)
    return click.option(
        "--region", metavar="REGION", help="Where the key is; an ARN says so itself."
    )(command)


def _key(command: _Command) -> _Command:
    return click.argument("key")(_service(command))


def _open(key: str, region: str | None, endpoint_url: str | None) -> "Kms":
    from tapeseal.kms import Kms, parse_arn

    arn = parse_arn(key)
    if region is None and arn is not None:
        region = arn.region
    return Kms(region=region, endpoint_url=endpoint_url)


@kms.command()
@_key
@data.file
@data.out
@options.context
@options.as_json
def encrypt(
    key: str,
    file: str,
    out: str,
    context: dict[str, str],
    region: str | None,
    endpoint_url: str | None,
    as_json: bool,
) -> None:
    """Encrypt up to 4096 bytes under a symmetric KEY.

    \b
      tapeseal kms encrypt alias/config password -c app=recorder -o password.kms
      tapeseal kms decrypt alias/config password.kms -c app=recorder
    """
    from tapeseal.kms import MAX_PLAINTEXT_SIZE

    data.check_new(out)
    data.check_no_terminal(out, "a ciphertext")
    opened = _open(key, region, endpoint_url)
    with contextlib.closing(data.read_secret(file, MAX_PLAINTEXT_SIZE)) as secret:
        ciphertext = opened.encrypt(key, secret, context)
    data.write(out, ciphertext)
    if as_json:
        output.as_json({"key": key, "output": out, "bytes": len(ciphertext)}, err=out == "-")


@kms.command()
@_key
@data.file
@data.out
@options.context
@options.as_json
def decrypt(
    key: str,
    file: str,
    out: str,
    context: dict[str, str],
    region: str | None,
    endpoint_url: str | None,
    as_json: bool,
) -> None:
    """Decrypt what was encrypted under KEY; a file is made for its owner alone."""
    from tapeseal.kms import MAX_BLOB_SIZE

    data.check_new(out)
    opened = _open(key, region, endpoint_url)
    plaintext = opened.decrypt(key, data.read(file, MAX_BLOB_SIZE), context)
    size = len(plaintext)
    data.write_secret(out, plaintext)
    if as_json:
        output.as_json({"key": key, "output": out, "bytes": size}, err=out == "-")


@kms.command()
@_key
@data.file
@data.out
@options.as_json
def sign(
    key: str, file: str, out: str, region: str | None, endpoint_url: str | None, as_json: bool
) -> None:
    """Sign FILE with an asymmetric KEY: ECDSA on P-256 or P-384, or RSA-PSS.

    Only its digest is sent. The signature is checked here before it is written; ECDSA's is in DER.
    """
    from tapeseal.signing import KmsSigner

    data.check_new(out)
    if not as_json:
        data.check_no_terminal(out, "a signature")
    signer = KmsSigner(_open(key, region, endpoint_url), key)
    signature = signer.sign(data.read(file, _MAX_MESSAGE))
    if out != "-" or not as_json:
        data.write(out, signature)
    if as_json:
        output.as_json(
            {
                "key": signer.key.removeprefix("aws-kms:"),
                "algorithm": signer.algorithm,
                "signature": base64.b64encode(signature).decode(),
                "output": out,
            }
        )


@kms.command()
@_key
@data.file
@click.option(
    "--signature", metavar="SIGNATURE", required=True, type=click.Path(), help="What sign wrote."
)
@options.as_json
def verify(
    key: str,
    file: str,
    signature: str,
    region: str | None,
    endpoint_url: str | None,
    as_json: bool,
) -> int:
    """Have KMS check a signature of FILE; exit code 1 where it is not one by KEY."""
    from tapeseal.kms import MAX_BLOB_SIZE

    opened = _open(key, region, endpoint_url)
    found = opened.public_key(key)
    if found.algorithm is None:
        raise ValueError(
            f"{key}: a key of kind {found.specification} for {found.usage} does not sign here"
        )
    opened.verify(
        found.key,
        data.read(file, _MAX_MESSAGE),
        data.read(signature, MAX_BLOB_SIZE),
        found.algorithm,
    )
    if as_json:
        output.as_json({"key": found.key, "algorithm": found.algorithm, "valid": True})
    else:
        output.line(f"{file}: signed by {found.key} ({found.algorithm})")
    return failures.OK


@kms.command()
@_key
@data.out
@options.as_json
def public_key(
    key: str, out: str, region: str | None, endpoint_url: str | None, as_json: bool
) -> None:
    """Print the public half of an asymmetric KEY in PEM."""
    data.check_new(out)
    found = _open(key, region, endpoint_url).public_key(key)
    if out != "-" or not as_json:
        data.write(out, found.pem)
    if as_json:
        output.as_json(
            {
                "key": found.key,
                "specification": found.specification,
                "usage": found.usage,
                "algorithm": found.algorithm,
                "public_key": found.pem.decode(),
                "output": out,
            }
        )


@kms.command()
@_key
@options.as_json
def rotate(key: str, region: str | None, endpoint_url: str | None, as_json: bool) -> None:
    """Have KMS make new material for a symmetric KEY now; what the old one encrypted still opens."""
    opened = _open(key, region, endpoint_url)
    opened.rotate(key)
    rotation = opened.rotation(key)
    if as_json:
        output.as_json({"key": key, **_rotation(rotation)})
    else:
        output.line(f"{key}: rotation asked for")


@kms.command()
@_key
@click.option(
    "--enable",
    "period_days",
    metavar="DAYS",
    type=click.IntRange(90, 2560),
    help="Have KMS rotate it every so many days.",
)
@click.option("--disable", is_flag=True, help="Have KMS rotate it no more by itself.")
@options.as_json
def rotation(
    key: str,
    period_days: int | None,
    disable: bool,
    region: str | None,
    endpoint_url: str | None,
    as_json: bool,
) -> None:
    """Say how a symmetric KEY is rotated and when it was, or change that."""
    if disable and period_days is not None:
        raise click.UsageError("give either --enable or --disable", click.get_current_context())
    opened = _open(key, region, endpoint_url)
    if period_days is not None:
        opened.enable_rotation(key, period_days=period_days)
    elif disable:
        opened.disable_rotation(key)
    found, past = opened.rotation(key), opened.rotations(key)
    if as_json:
        rotations = [{"date": _stamp(date), "type": kind} for date, kind in past]
        output.as_json({"key": key, **_rotation(found), "rotations": rotations})
        return
    output.line(f"{key}: {_rotation_text(found)}")
    for date, kind in past:
        output.line(f"  {_day(date)}  {kind.lower().replace('_', ' ')}")


@kms.command()
@_service
@click.option(
    "--jobs",
    metavar="N",
    type=click.IntRange(1, 64),
    default=8,
    show_default=True,
    help="So many keys at once.",
)
@options.as_json
def keys(region: str | None, endpoint_url: str | None, jobs: int, as_json: bool) -> int:
    """List all keys of the account in a region, with their rotation dates.

    Exit code 3 where policies hide something about some of them.
    """
    hidden = count = 0
    for each in _open("", region, endpoint_url).inventory(threads=jobs):
        count += 1
        hidden += each.problem is not None
        if as_json:
            output.as_json(_key_report(each))
        else:
            output.line(_key_line(each))
    if not as_json:
        failures.say(output.counted(count, "keys"))
    if hidden:
        failures.say(f"of {output.counted(hidden, 'keys')} not all could be seen", "error")
        return failures.UNAVAILABLE
    return failures.OK


def _key_report(each: "KeyInfo") -> dict[str, Any]:
    return {
        "key": each.key,
        "aliases": each.aliases,
        "state": each.state,
        "specification": each.specification,
        "usage": each.usage,
        "manager": each.manager,
        "description": each.description,
        "created": _stamp(each.created),
        "deletion": _stamp(each.deletion),
        "rotation": None if each.rotation is None else _rotation(each.rotation),
        "rotated": _stamp(each.rotated),
        "problem": each.problem,
    }


def _key_line(each: "KeyInfo") -> str:
    name = ", ".join(each.aliases) or each.key.rpartition("/")[2]
    if each.problem is not None:
        return f"{name}: {each.problem}"
    parts = [each.state, each.specification, f"made {_day(each.created)}"]
    if each.deletion is not None:
        parts.append(f"to be deleted {_day(each.deletion)}")
    if each.rotated is not None:
        parts.append(f"rotated {_day(each.rotated)}")
    if each.rotation is not None:
        parts.append(_rotation_text(each.rotation))
    return f"{name}: {', '.join(parts)}"


def _rotation(found: "KeyRotation") -> dict[str, Any]:
    return {
        "enabled": found.enabled,
        "period_days": found.period_days,
        "next": _stamp(found.next),
        "on_demand_since": _stamp(found.on_demand_since),
    }


def _rotation_text(found: "KeyRotation") -> str:
    text = "no automatic rotation"
    if found.enabled:
        text = f"rotated every {found.period_days or 365} days, next {_day(found.next)}"
    return text + (", one on demand is going on" if found.on_demand_since is not None else "")


def _stamp(date: datetime.datetime | None) -> str | None:
    return None if date is None else date.astimezone(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _day(date: datetime.datetime | None) -> str:
    return (
        "at an unknown time" if date is None else date.astimezone(datetime.UTC).date().isoformat()
    )
