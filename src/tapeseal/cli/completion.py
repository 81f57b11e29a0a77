"""tapeseal completion."""

import click
from click.shell_completion import get_completion_class


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the script that completes `tapeseal` in a shell.

    \b
    bash:  add to ~/.bashrc:  eval "$(tapeseal completion bash)"
    zsh:   add to ~/.zshrc:   eval "$(tapeseal completion zsh)"
    fish:  tapeseal completion fish > ~/.config/fish/completions/tapeseal.fish
    """
    from tapeseal.cli.app import cli

    completer = get_completion_class(shell)
    assert completer is not None
    click.echo(completer(cli, {}, "tapeseal", "_TAPESEAL_COMPLETE").source())
