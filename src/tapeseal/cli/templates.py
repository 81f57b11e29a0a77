"""tapeseal init."""

from typing import Any

import click

from tapeseal.cli import output


def _node(ctx: click.Context, param: click.Parameter, texts: tuple[str, ...]) -> list[object]:
    from tapeseal.templates import Node

    try:
        return [Node.parse(text) for text in texts]
    except ValueError as error:
        raise click.BadParameter(str(error), ctx, param) from None


@click.command()
@click.argument("directory", type=click.Path(file_okay=False))
@click.option("--name", metavar="NAME", help="Of the cluster.  [trading]")
@click.option(
    "--node",
    "nodes",
    metavar="HOST[:PORT]",
    multiple=True,
    callback=_node,
    help="A server; give it 1, 3 or 5 times.  [vault1.example, vault2.example, vault3.example]",
)
@click.option("--server", type=click.Choice(["openbao", "vault"]), help="Whose.  [openbao]")
@click.option(
    "--storage",
    type=click.Choice(["raft", "consul"]),
    help="Where it keeps its data; consul is for HashiCorp's server alone, and untried.  [raft]",
)
@click.option(
    "--environment",
    "environments",
    metavar="NAME",
    multiple=True,
    help="With secrets, keys and roles of its own; can be given several times.  [prod, staging]",
)
@click.option("--domain", metavar="DOMAIN", help="Of names in certificates.  [example]")
@click.option("--key-arn", metavar="ARN", help="The KMS key that wraps data keys.")
@click.option(
    "--cidr",
    "cidrs",
    metavar="NETWORK",
    multiple=True,
    help="A network that secret ids can be used from; can be given several times.  [any]",
)
@click.option("--configuration-directory", metavar="DIR", help="Of the servers.")
@click.option("--data-directory", metavar="DIR", help="Of the servers.")
@click.option("--log-directory", metavar="DIR", help="Of the servers' audit logs.")
@click.option("--json", "as_json", is_flag=True, help="Report as JSON.")
def init(directory: str, as_json: bool, **given: Any) -> None:
    """Write the configuration of a new set-up into DIRECTORY, for you to read and change.

    Servers (raft over TLS 1.3, audited), policies for trading, risk, rotation and administrators,
    the script that loads them, IAM policies, a rotation plan, systemd units, a Kubernetes CronJob.
    Nothing in it is secret, and no existing file is replaced. Its README.md has the order of steps.

    \b
      tapeseal init set-up/ --name hft --node v1.hft.example \\
          --node v2.hft.example --node v3.hft.example
    """
    from tapeseal.templates import SetUp, write_set_up

    written = write_set_up(
        directory, SetUp(**{name: value for name, value in given.items() if value})
    )
    if as_json:
        output.as_json({"directory": directory, "files": [str(path) for path in written]})
    else:
        for path in written:
            output.line(str(path))
