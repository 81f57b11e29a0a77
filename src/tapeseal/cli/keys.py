"""tapeseal keygen."""

from collections.abc import Callable
from functools import partial

import click

from tapeseal._core import SecretBuffer
from tapeseal.cli import options, output
from tapeseal.keyrings import local, passphrase

_Source = Callable[[], SecretBuffer]


@click.command()
@click.argument("file", type=click.Path())
@click.option(
    "--add",
    is_flag=True,
    help="Add a key to FILE and make it the current one; the old ones still open.",
)
@click.option(
    "--public",
    is_flag=True,
    help="Make a key pair: FILE, which opens, and FILE.pub, which only encrypts.",
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
    public: bool,
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
    overwritten.

    With --public whoever has FILE.pub can encrypt, and only who has FILE can decrypt: keep that in
    a safe, and no key at all on the machine that records. The key is a post-quantum hybrid.

    \b
      tapeseal keygen --public escrow.key
      tapeseal encrypt day.npy -k public-key:escrow.key.pub

    A key file under a passphrase asks for it when it is used, or takes it from
    local:FILE?passphrase_file=F (or passphrase_fd=N, passphrase_env=NAME); public-key:FILE does so too.
    """
    if add and public:
        raise click.UsageError("a key pair is one key: --add is not for it")
    sources: list[_Source] = []
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
    if public:
        _key_pair(file, source, as_json)
        return
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


def _key_pair(file: str, source: _Source | None, as_json: bool) -> None:
    from tapeseal.keyrings import public_key  # Which takes a while, for `cryptography`.

    key_id = public_key.create_key_pair(file, source)
    opens, encrypts = (key_uri(path, public_key.PROVIDER) for path in (file, f"{file}.pub"))
    if as_json:
        output.as_json(
            {"file": file, "key": key_id, "keyring": opens, "public_file": f"{file}.pub",
             "public_keyring": encrypts, "added": False}
        )  # fmt: skip
    else:
        output.line(f"{file}: made key {key_id}; it opens with -k {opens}")
        output.line(f"{file}.pub: its public half; it encrypts with -k {encrypts}")


def key_uri(path: str, provider: str = "local") -> str:
    """Return the keyring URI of a key file."""
    return f"{provider}:" + path.replace("%", "%25").replace("?", "%3F")
