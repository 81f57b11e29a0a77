"""tapeseal secrets: its commands."""

import click

from tapeseal.cli.groups import LazyGroup

_COMMANDS = {
    "get": ("kv", "Print one value, or which members a secret has."),
    "put": ("kv", "Write a new version of a secret."),
    "patch": ("kv", "Write a new version in which some members are changed."),
    "list": ("kv", "List the secrets under a path."),
    "metadata": ("kv", "Say what is known of a secret without its values, or change that."),
    "delete": ("kv", "Delete versions; undelete takes it back."),
    "undelete": ("kv", "Take back the deletion of versions."),
    "destroy": ("kv", "Destroy the values of versions for good."),
    "forget": ("kv", "Destroy a secret with all its versions and metadata."),
    "run": ("injection", "Run a command with secrets in its environment or in files."),
    "render": ("injection", "Fill secrets into the template of a configuration file."),
    "scan": ("scan", "Search files for secrets that do not belong there."),
}


class _Secrets(LazyGroup):
    commands_by_name = _COMMANDS


@click.group(cls=_Secrets)
def secrets() -> None:
    """Secrets in KV version 2 of a Vault or an OpenBao.

    PATH is the mount and the path in it, secret/api-keys/binance; PATH#MEMBER is one of its values.
    Values are never given as arguments, which every user of the machine can read.
    """
