"""tapeseal vault: its groups of commands."""

import click

from tapeseal.cli.groups import LazyGroup

_COMMANDS = {
    "credentials": (
        "leases",
        "Dynamic credentials of a database, for as long as a command runs.",
    ),
    "pki": ("pki", "Issue, renew and revoke certificates."),
    "ssh": ("ssh", "Sign SSH keys of users and hosts."),
    "transit": ("transit", "Encrypt, sign and compute HMACs with keys of Transit."),
    "init": ("vault_init", "Initialise a Vault, each unseal share encrypted to its custodian."),
    "unseal": ("vault_init", "Give a Vault a custodian's share."),
}


class _Vault(LazyGroup):
    commands_by_name = _COMMANDS


@click.group(cls=_Vault)
def vault() -> None:
    """Work with a Vault or an OpenBao, which the variables of its own command line name.

    VAULT_ADDR or BAO_ADDR, VAULT_TOKEN or BAO_TOKEN and so on, or ~/.vault-token.
    """
