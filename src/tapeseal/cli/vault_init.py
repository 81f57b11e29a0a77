"""tapeseal vault init, unseal."""

from typing import TYPE_CHECKING

import click

from tapeseal.cli import options, output

if TYPE_CHECKING:
    from tapeseal.custody import SealStatus
    from tapeseal.keyrings.public_key import PublicKeyKeyring


def public_keys(texts: tuple[str, ...]) -> "dict[str, PublicKeyKeyring]":
    """Read the public keys of custodians, NAME=FILE each."""
    from tapeseal.keyrings.public_key import PublicKeyKeyring

    found: dict[str, PublicKeyKeyring] = {}
    for text in texts:
        name, equals, path = text.partition("=")
        if not name or not equals or not path:
            raise click.UsageError(f"{text!r} is not NAME=FILE")
        if name in found:
            raise click.UsageError(f"the custodian {name} is given twice")
        found[name] = PublicKeyKeyring(path)
    return found


custodians = click.option(
    "--custodian",
    "custodians",
    metavar="NAME=FILE",
    multiple=True,
    required=True,
    help="A custodian and the file of their public key, or of a certificate; given once for each.",
)
threshold = click.option(
    "--threshold",
    metavar="M",
    type=click.IntRange(2),
    required=True,
    help="How many custodians it takes.",
)


@click.command()
@click.argument("directory", type=click.Path(file_okay=False))
@custodians
@threshold
@options.as_json
def init(directory: str, custodians: tuple[str, ...], threshold: int, as_json: bool) -> None:
    """Initialise a Vault, each unseal share encrypted to its custodian, into DIRECTORY.

    \b
      tapeseal vault init shares/ --threshold 2 \\
          --custodian alice=alice.pub --custodian bob=bob.pub \\
          --custodian carol=carol.pub

    NAME.share is for each custodian; root.glass is a break-glass package with the root token, for the same quorum.
    No share is shown, nor on the disk in the clear. Where a Vault unseals by itself they are recovery shares.
    """
    from tapeseal.custody import initialise
    from tapeseal.vault.session import VaultSession

    with VaultSession() as session:
        made = initialise(session, public_keys(custodians), threshold, directory)
    if as_json:
        output.as_json(
            {
                "shares": {name: str(path) for name, path in made.shares.items()},
                "root": str(made.root),
                "threshold": threshold,
                "kind": "recovery" if made.recovery else "unseal",
            }
        )
        return
    for name, path in made.shares.items():
        output.line(f"{path}: for {name} alone")
    output.line(f"{made.root}: the root token, for {threshold} custodians together")
    if not made.recovery:
        output.line(
            f"Now {threshold} custodians, on each node: tapeseal vault unseal NAME.share -k public-key:NAME.key"
        )


@click.command()
@click.argument("share", type=click.Path(dir_okay=False))
@click.option(
    "-k",
    "--keyring",
    metavar="KEYRING",
    required=True,
    help="The custodian's own: public-key:alice.key.",
)
@options.as_json
def unseal(share: str, keyring: str, as_json: bool) -> None:
    """Give a Vault a custodian's SHARE; when enough of them were given, it serves.

    \b
      export VAULT_ADDR=https://vault1.example:8200
      tapeseal vault unseal alice.share -k public-key:alice.key

    Each node of a cluster is unsealed by itself.
    """
    import tapeseal
    from tapeseal.custody import unseal as give
    from tapeseal.vault.session import VaultSession

    with VaultSession() as session:
        status = give(session, share, tapeseal.keyring(keyring))
        _report(session.addresses[0], status, as_json)


def _report(address: str, status: "SealStatus", as_json: bool) -> None:
    if as_json:
        output.as_json({"address": address, **status._asdict()})
    elif status.sealed and status.progress == 0:
        output.line(
            f"{address}: sealed yet: it has all shares and has not joined its cluster; is the first node unsealed?"
        )
    elif status.sealed:
        output.line(f"{address}: sealed yet, {status.progress} of {status.threshold} shares given")
    else:
        output.line(f"{address}: unsealed")
