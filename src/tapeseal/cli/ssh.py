"""tapeseal vault ssh: certificates for SSH keys of users and hosts."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tapeseal.cli import failures, options, output
from tapeseal.cli.pki import made_reload, parse_roles, read_roles, reload_options, report_done

if TYPE_CHECKING:
    from tapeseal.vault.ssh import SignedKey

_mount = click.option(
    "--mount", metavar="PATH", default="ssh", show_default=True, help="The path of the engine."
)


def _parse_options(
    ctx: click.Context, param: click.Parameter, texts: tuple[str, ...]
) -> dict[str, str] | None:
    """Read NAME or NAME=VALUE texts; None where there are none."""
    return {name: value for name, _, value in (text.partition("=") for text in texts)} or None


def _public_line(file: str) -> str:
    """Read a public key or a certificate."""
    from tapeseal.vault.ssh import checked_line

    try:
        return checked_line(Path(file).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None


@click.group()
def ssh() -> None:
    """Certificates for SSH keys of users and hosts, in the place of authorized_keys and known_hosts."""


@ssh.command()
@_mount
@click.option(
    "--users",
    metavar="ROLE=USER,...",
    multiple=True,
    callback=parse_roles,
    help="A role for certificates of these users, 8 hours long. Can be given several times.",
)
@click.option(
    "--hosts",
    metavar="ROLE=DOMAIN,...",
    multiple=True,
    callback=parse_roles,
    help="A role for certificates of hosts in these domains, 365 days long. Can be given several times.",
)
@click.option(
    "--roles",
    metavar="F",
    callback=read_roles,
    help="A file of TOML with further roles: a table each, its keys the parameters of Vault's API.",
)
@options.as_json
def setup(
    mount: str,
    users: dict[str, list[str]],
    hosts: dict[str, list[str]],
    roles: dict[str, dict[str, Any]],
    as_json: bool,
) -> None:
    """Make an engine an SSH certificate authority.

    \b
      tapeseal vault ssh setup --mount ssh-users --users operators=ops
      tapeseal vault ssh setup --mount ssh-hosts --hosts recorders=example.com

    What is there already stays. One engine for users and one for hosts: whoever trusts the CA of one must not trust
    what the other signs.
    """
    from tapeseal.vault import VaultSession
    from tapeseal.vault.ssh import Ssh, host_role, user_role

    made: dict[str, dict[str, Any]] = {name: user_role(each) for name, each in users.items()}
    made |= {name: host_role(each) for name, each in hosts.items()}
    with VaultSession() as session:
        report_done(mount, Ssh(session, mount).set_up({**made, **roles}), as_json)


@ssh.command()
@_mount
@click.option(
    "--known-hosts",
    "patterns",
    metavar="PATTERN",
    multiple=True,
    help="Print it as a line of known_hosts for these hosts, such as '*.example.com'.",
)
@click.option("--out", metavar="F", type=click.Path(), help="Write it to a file.")
@options.as_json
def ca(mount: str, patterns: tuple[str, ...], out: str | None, as_json: bool) -> None:
    """Print the public key of the CA: the contents of the file that TrustedUserCAKeys names.

    \b
      tapeseal vault ssh ca --mount ssh-users --out /etc/ssh/trusted_user_ca_keys
      tapeseal vault ssh ca --mount ssh-hosts --known-hosts '*.example.com' >> ~/.ssh/known_hosts
    """
    from tapeseal.files import new_file, sync_directory, write_all
    from tapeseal.vault import VaultSession
    from tapeseal.vault.ssh import Ssh, known_hosts_line

    with VaultSession() as session:
        key = Ssh(session, mount).ca_public_key()
    text = known_hosts_line(key, patterns) if patterns else f"{key}\n"
    if out is not None:
        with new_file(out, 0o644, replace=True) as fd:
            write_all(fd, text.encode())
            os.fsync(fd)
        sync_directory(out)
    if as_json:
        output.as_json({"mount": mount, "ca_public_key": key, "file": out})
    elif out is None:
        click.echo(text, nl=False)


@ssh.command()
@click.argument("key", metavar="KEY.pub", type=click.Path())
@click.option("--role", metavar="ROLE", required=True, help="A role of the engine.")
@click.option(
    "--principal",
    "principals",
    metavar="USER",
    multiple=True,
    required=True,
    help="A user that it logs in as. Can be given several times.",
)
@click.option(
    "--new", is_flag=True, help="Make the key pair first, KEY and KEY.pub, under no passphrase."
)
@click.option(
    "--hours",
    metavar="N",
    type=click.FloatRange(0, min_open=True),
    default=8,
    show_default=True,
    help="How long it is valid.",
)
@click.option("--key-id", metavar="ID", help="What names it in logs and in `revoke`.")
@click.option(
    "--extension",
    "extensions",
    metavar="NAME",
    multiple=True,
    callback=_parse_options,
    help="What it allows, such as permit-pty; without, what the role says.",
)
@click.option(
    "--critical-option",
    "critical_options",
    metavar="NAME=VALUE",
    multiple=True,
    callback=_parse_options,
    help="What limits it, such as source-address=10.0.0.0/8.",
)
@_mount
@options.as_json
def sign(
    key: str,
    role: str,
    principals: tuple[str, ...],
    new: bool,
    hours: float,
    key_id: str | None,
    extensions: dict[str, str] | None,
    critical_options: dict[str, str] | None,
    mount: str,
    as_json: bool,
) -> None:
    """Get a certificate for a user's public key into KEY-cert.pub, where ssh finds it.

    \b
      tapeseal vault ssh sign ~/.ssh/id_ed25519.pub --role operators --principal ops
    """
    from tapeseal.vault import VaultSession
    from tapeseal.vault.private_keys import make_ssh_key_pair
    from tapeseal.vault.ssh import Ssh, certificate_path, write_certificate, write_key_pair

    certificate_path(key)
    if new:
        pair = make_ssh_key_pair(Path(key).stem)
        with pair.private:
            write_key_pair(key.removesuffix(".pub"), pair)
    with VaultSession() as session:
        signed = Ssh(session, mount).sign(
            role,
            Path(key).read_text(encoding="utf-8"),
            principals=principals,
            seconds=hours * 3600,
            key_id=key_id,
            extensions=extensions,
            critical_options=critical_options,
        )
    _report(str(write_certificate(key, signed)), "signed", signed, as_json)


def _report(path: str, state: str, signed: "SignedKey", as_json: bool) -> None:
    for warning in signed.warnings:
        failures.say(f"{path}: {warning}", "warning")
    if as_json:
        output.as_json(
            {"certificate": path, "state": state, "serial": signed.serial, "key_id": signed.key_id,
             "principals": signed.principals, "valid_before": signed.valid_before.isoformat(),
             "critical_options": signed.critical_options, "extensions": signed.extensions,
             "warnings": signed.warnings}
        )  # fmt: skip
        return
    what = "new certificate" if state == "signed" else "not due"
    output.line(
        f"{path}: {what}, {signed.serial}, of {', '.join(signed.principals)}, "
        f"until {signed.valid_before:%Y-%m-%d %H:%M} UTC"
    )


@ssh.command()
@click.option("--role", metavar="ROLE", required=True, help="A role of the engine.")
@click.option(
    "--name",
    "names",
    metavar="HOST",
    multiple=True,
    required=True,
    help="A name under which clients reach this host. Can be given several times.",
)
@click.option(
    "--directory",
    metavar="D",
    type=click.Path(),
    default="/etc/ssh",
    show_default=True,
    help="Where sshd has its ssh_host_*_key.pub.",
)
@click.option(
    "--days",
    metavar="N",
    type=click.FloatRange(0, min_open=True),
    default=365,
    show_default=True,
    help="How long they are valid.",
)
@click.option("--force", is_flag=True, help="Sign those too that are not due.")
@_mount
@reload_options
@options.as_json
def host(
    role: str,
    names: tuple[str, ...],
    directory: str,
    days: float,
    force: bool,
    mount: str,
    reload_command: str | None,
    pid_file: str | None,
    signal_name: str,
    as_json: bool,
) -> None:
    """Get certificates for the keys of this host, those that are due: to be run daily.

    \b
      tapeseal vault ssh host --mount ssh-hosts --role recorders --name a.example.com \\
          --reload 'systemctl reload ssh'

    The lines that sshd_config needs stand at the end of the output. A certificate is due 30 days before its end.
    """
    from tapeseal.vault import VaultSession
    from tapeseal.vault.ssh import Ssh, sign_host_keys, sshd_lines

    hook = made_reload(reload_command, pid_file, signal_name)
    with VaultSession() as session:
        found = sign_host_keys(
            Ssh(session, mount),
            role,
            names,
            directory=directory,
            seconds=days * 86400,
            force=force,
            reload=hook,
        )
    for each in found:
        _report(each.certificate, each.state, each.signed, as_json)
    if not as_json:
        click.echo(sshd_lines([each.certificate for each in found]), nl=False)


@ssh.command()
@click.argument("krl", metavar="KRL", type=click.Path())
@click.argument("files", metavar="[FILE.pub]...", nargs=-1, type=click.Path())
@click.option("--serial", "serials", metavar="N", multiple=True, type=int, help="A serial number.")
@click.option(
    "--key-id",
    "key_ids",
    metavar="ID",
    multiple=True,
    help="All certificates with this key id, known or not.",
)
@click.option(
    "--ca",
    "ca_file",
    metavar="F",
    type=click.Path(),
    help="The public key of the CA that --serial and --key-id are about; without, Vault is asked.",
)
@_mount
@options.as_json
def revoke(
    krl: str,
    files: tuple[str, ...],
    serials: tuple[int, ...],
    key_ids: tuple[str, ...],
    ca_file: str | None,
    mount: str,
    as_json: bool,
) -> None:
    """Add to the list KRL of revoked keys, made where it is not there: keys and certificates in FILE.pub.

    \b
      tapeseal vault ssh revoke /etc/ssh/revoked_keys id_ed25519-cert.pub
      tapeseal vault ssh revoke /etc/ssh/revoked_keys --key-id rotation-7 --ca trusted_user_ca_keys

    sshd reads it at each login (RevokedKeys). Vault knows of no such list: it has to be brought to every host.
    """
    from tapeseal.vault.ssh import Krl, Ssh

    authority = None
    if ca_file is not None:
        authority = _public_line(ca_file)
    elif serials or key_ids:
        from tapeseal.vault import VaultSession

        with VaultSession() as session:
            authority = Ssh(session, mount).ca_public_key()
    version = Krl(krl).revoke(
        ca_public_key=authority,
        serials=serials,
        key_ids=key_ids,
        public_keys=[_public_line(file) for file in files],
    )
    count = len(files) + len(serials) + len(key_ids)
    if as_json:
        output.as_json({"file": krl, "version": version, "added": count})
    else:
        output.line(f"{krl}: version {version}, {count} added")
