"""tapeseal keygen."""

from collections.abc import Callable
from functools import partial

import click

from tapeseal._core import SecretBuffer
from tapeseal.cli import options, output
from tapeseal.keyrings import local, passphrase


@click.command()
@click.argument("file", type=click.Path())
@click.option(
    "--add",
    is_flag=True,
    help="Add a key to FILE and make it the current one; the old ones still open.",
)
@click.option(
    "--passphrase", "ask", is_flag=True, help="Put the key under a passphrase: ask for it."
)
@click.option("--passphrase-file", metavar="F", help="Read the passphrase from a file.")
@click.option(
    "--passphrase-fd", metavar="N", type=click.IntRange(0), help="Read it from a file descriptor."
)
@click.option(
    "--passphrase-env",
    metavar="NAME",
    help="Take it from an environment variable, which other programs may be able to see.",
)
@options.as_json
def keygen(
    file: str,
    add: bool,
    ask: bool,
    passphrase_file: str | None,
    passphrase_fd: int | None,
    passphrase_env: str | None,
    as_json: bool,
) -> None:
    """Make a key file, for its owner alone, or add a key to one.

    \b
      tapeseal keygen my.key
      tapeseal encrypt day.npy -k local:my.key

    Whoever has the file can decrypt; without it nobody can. An existing file is never
    overwritten. A key file under a passphrase asks for it when it is used, or takes it from
    local:FILE?passphrase_file=F (or passphrase_fd=N, passphrase_env=NAME).
    """
    sources: list[Callable[[], SecretBuffer]] = []
    if ask:
        prompt = f"{'Passphrase' if add else 'New passphrase'} of {file}: "
        sources.append(partial(passphrase.passphrase_from_terminal, prompt, confirm=not add))
    if passphrase_file is not None:
        sources.append(partial(passphrase.passphrase_from_file, passphrase_file))
    if passphrase_fd is not None:
        sources.append(partial(passphrase.passphrase_from_fd, passphrase_fd))
    if passphrase_env is not None:
        sources.append(partial(passphrase.passphrase_from_env, passphrase_env))
    if len(sources) > 1:
        raise click.UsageError("only one of the --passphrase options can be given")
    source = sources[0] if sources else None
    if add and source is not None:
        # Taken now and not when needed: add_key() then refuses it for a file that is under none.
        key_id = local.add_key(file, source())
    else:
        key_id = (local.add_key if add else local.create_key_file)(file, source)
    uri = key_uri(file)
    if as_json:
        output.as_json({"file": file, "key": key_id, "keyring": uri, "added": add})
    else:
        output.line(f"{file}: {'added' if add else 'made'} key {key_id}; use it with -k {uri}")


def key_uri(path: str) -> str:
    """Return the keyring URI of a key file."""
    return "local:" + path.replace("%", "%25").replace("?", "%3F")
