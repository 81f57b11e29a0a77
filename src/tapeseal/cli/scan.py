"""tapeseal secrets scan."""

import click

from tapeseal.cli import failures, options, output
from tapeseal.doctor.scan import scan_files, tracked_files


@click.command()
@click.argument("paths", metavar="PATH...", nargs=-1, required=True)
@options.as_json
def scan(paths: tuple[str, ...], as_json: bool) -> int:
    """Search files, and folders as git knows them, for secrets that do not belong there.

    \b
      tapeseal secrets scan .
      tapeseal secrets scan /etc/recorder/config.toml

    Says where something stands that looks like a key, a token or a password, never what it is; then the exit code is
    1. What is none is marked in its line with a comment: tapeseal: no secret. `tapeseal init` writes a hook
    for pre-commit that runs this.
    """
    count = 0
    for each in scan_files(list(tracked_files(paths))):
        count += 1
        if as_json:
            output.as_json(each._asdict())
        else:
            output.line(f"{each.path}:{each.line}: {each.kind}")
    if count and not as_json:
        output.line(
            f"{output.counted(count, 'finding')}. Whatever was committed is to be rotated, not only removed."
        )
    return failures.DAMAGED if count else failures.OK
