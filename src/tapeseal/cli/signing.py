"""tapeseal sign, verify-signature."""

import click

from tapeseal import signing
from tapeseal.cli import data, failures, options, output
from tapeseal.errors import SignatureError
from tapeseal.signature import algorithm_of
from tapeseal.signing import statement as statements

_MAX_PUBLIC_KEY = 1 << 16


@click.command()
@options.files
@click.option(
    "-k",
    "--key",
    metavar="SIGNER",
    required=True,
    help="What signs, such as aws-kms:alias/day?region=us-east-1 or vault-transit:transit/day.",
)
@click.option(
    "-o",
    "--output",
    "out",
    metavar="STATEMENT",
    required=True,
    type=click.Path(),
    help="The new file, or - for standard output.",
)
@click.option(
    "--unsealed",
    is_flag=True,
    help="Take tapes that are still open too, each up to its present end.",
)
@options.as_json
def sign(files: tuple[str, ...], key: str, out: str, unsealed: bool, as_json: bool) -> None:
    """Sign a statement over tapes, such as those of a whole trading day.

    It holds the name, the identity and a SHA-256 tree over the ciphertext of each FILE, so that whoever has the public
    key can check them without any data key. FILE may be a directory, which stands for all tapes in and below it, or a
    quoted pattern. A rewrap leaves the statement valid.

    \b
      tapeseal sign 2026-11-27/ -k vault-transit:transit/day -o 27.statement
      tapeseal vault transit public-key transit/day -o day.pem
      tapeseal verify-signature 27.statement 2026-11-27/ --public-key day.pem

    docs/signing.md has the format, and how to check it without this program.
    """
    data.check_new(out)
    signer = signing.signer(key)
    with output.Progress("hashing", enabled=not as_json) as bar:
        raw = signing.sign_statement(files, signer, unsealed=unsealed, progress=bar)
    made = signing.open_statement(raw, signer.public_key())
    data.write(out, raw)
    to_stderr = out == "-"
    if as_json:
        output.as_json({"statement": out, **_summary(made)}, err=to_stderr)
    else:
        output.line(f"{out}: {_described(made)}", err=to_stderr)


@click.command()
@click.argument("statement", type=click.Path())
@options.files
@click.option(
    "--public-key",
    metavar="PEM",
    required=True,
    type=click.Path(),
    help="The signer's public key or certificate in PEM, from a place that whoever may change the"
    " statement cannot change.",
)
@click.option(
    "--partial",
    is_flag=True,
    help="Let tapes of the statement be absent: check those that are there.",
)
@options.as_json
def verify_signature(
    statement: str, files: tuple[str, ...], public_key: str, partial: bool, as_json: bool
) -> int:
    """Check a signed statement, and that each FILE is as it says; needs no data key.

    Everything that is not is named: tapes that were changed, cut, renamed, are missing or were added. Exit code 1 where
    there is any. A tape that was signed open may have grown since. FILE as for `tapeseal sign`.
    """
    pem = data.read(public_key, _MAX_PUBLIC_KEY)
    raw = data.read(statement, statements.MAX_STATEMENT_SIZE)
    with output.Progress("hashing", enabled=not as_json) as bar:
        try:
            algorithm_of(pem)
        except ValueError as error:
            raise ValueError(f"{public_key}: {error}") from None
        try:
            found = signing.verify_statement(raw, files, pem, partial=partial, progress=bar)
        except SignatureError as error:
            raise SignatureError(f"{statement}: {error}") from None
    for each in found.findings:
        if as_json:
            output.as_json(
                {
                    "state": each.state,
                    "ok": each.ok,
                    "name": each.name,
                    "file": each.path,
                    "notes": each.notes,
                }
            )
        elif each.state != "same" or each.notes:
            where = each.path if each.path is not None else each.name
            output.line(f"{where}: {each.state}{': ' if each.notes else ''}{'; '.join(each.notes)}")
    wrong = sum(not each.ok for each in found.findings)
    if as_json:
        output.as_json(
            {"statement": statement, "ok": found.ok, "wrong": wrong, **_summary(found.statement)}
        )
    else:
        output.line(f"{statement}: {_described(found.statement)}")
        if found.ok:
            output.line(f"  {output.counted(len(found.findings), 'tapes')} checked: all as signed")
    if wrong:
        failures.say(f"{statement}: {output.counted(wrong, 'problems')}", "error")
        return failures.DAMAGED
    return failures.OK


def _summary(made: signing.Statement) -> dict[str, object]:
    return {
        "signed": made.created,
        "key": made.key,
        "algorithm": made.algorithm,
        "public_key": made.public_key,
        "tapes": len(made.tapes),
        "records": sum(tape.items for tape in made.tapes if tape.kind == "records"),
        "bytes": sum(tape.data.size for tape in made.tapes),
    }


def _described(made: signing.Statement) -> str:
    tapes = output.counted(len(made.tapes), "tapes")
    size = output.size(sum(tape.data.size for tape in made.tapes))
    return f"{tapes} of {size}, signed {made.created} by {made.key} ({made.algorithm})"
