"""tapeseal vault pki: certificates of a PKI engine."""

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from tapeseal.cli import failures, options, output

if TYPE_CHECKING:
    from tapeseal.vault.certificate_directory import CertificateDirectory, Renewal
    from tapeseal.vault.reload import Reload

_Command = TypeVar("_Command", bound=Callable[..., Any])

_SERIAL = re.compile(r"[0-9A-Fa-f]{2}([:-]?[0-9A-Fa-f]{2})*")

_mount = click.option(
    "--mount", metavar="PATH", default="pki", show_default=True, help="The path of the engine."
)
_key_type = click.option(
    "--key-type",
    metavar="TYPE",
    default="ec-256",
    show_default=True,
    help="ec-256, ec-384, rsa-2048, rsa-3072 or rsa-4096.",
)


def reload_options(command: _Command) -> _Command:
    """Add --reload, --pid-file and --signal; made_reload() makes a hook of them."""
    for option in (
        click.option(
            "--signal",
            "signal_name",
            metavar="NAME",
            default="HUP",
            show_default=True,
            help="The signal for --pid-file.",
        ),
        click.option(
            "--pid-file",
            metavar="F",
            help="Send a signal to the process with the id in this file, once the new one is in place.",
        ),
        click.option(
            "--reload",
            "reload_command",
            metavar="COMMAND",
            help="Run this, without a shell, once the new one is in place.",
        ),
    ):
        command = option(command)
    return command


def made_reload(command: str | None, pid_file: str | None, signal_name: str) -> "Reload | None":
    """Return the hook that the options ask for."""
    from tapeseal.vault.reload import Reload

    if command is None and pid_file is None:
        return None
    return Reload(shlex.split(command or ""), pid_file or "", signal_name)


def parse_roles(
    ctx: click.Context, param: click.Parameter, texts: tuple[str, ...]
) -> dict[str, list[str]]:
    """Read ROLE=A,B texts."""
    roles = {}
    for text in texts:
        name, _, values = text.partition("=")
        roles[name] = [each for each in values.split(",") if each]
        if not name or not roles[name]:
            raise click.BadParameter(f"{text!r} is not ROLE=NAME,NAME", ctx, param)
    return roles


def read_roles(
    ctx: click.Context, param: click.Parameter, path: str | None
) -> dict[str, dict[str, Any]]:
    """Read roles from a file of TOML, a table each."""
    import tomllib

    if path is None:
        return {}
    try:
        roles = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise click.BadParameter(f"{path}: {error.strerror}", ctx, param) from None
    except ValueError as error:
        raise click.BadParameter(f"{path} is no TOML: {error}", ctx, param) from None
    if not all(isinstance(each, dict) for each in roles.values()):
        raise click.BadParameter(f"{path} holds something beside tables of roles", ctx, param)
    return roles


def report_done(what: str, done: list[str], as_json: bool) -> None:
    """Report what a set-up has done."""
    if as_json:
        output.as_json({"mount": what, "done": done})
        return
    for each in done or ["all is as it should be"]:
        output.line(each)


@click.group()
def pki() -> None:
    """Certificates of a PKI engine, and private keys that never leave this machine."""


@pki.command()
@click.argument("common_name", metavar="NAME")
@_mount
@click.option("--parent", metavar="PATH", help="The engine that signs it; without, NAME is a root.")
@click.option(
    "--issuer",
    metavar="NAME",
    default="ca",
    show_default=True,
    help="What the engine calls it. Another name makes another one beside, the new default.",
)
@_key_type
@click.option(
    "--days",
    metavar="N",
    type=click.FloatRange(0, min_open=True),
    help="How long it is valid: 3650 of a root, 1825 of another, if not given.",
)
@click.option(
    "--hosts",
    metavar="ROLE=DOMAIN,...",
    multiple=True,
    callback=parse_roles,
    help="A role for certificates of hosts in these domains. Can be given several times.",
)
@click.option(
    "--roles",
    metavar="F",
    callback=read_roles,
    help="A file of TOML with further roles: a table each, its keys the parameters of Vault's API.",
)
@click.option("--crl-url", metavar="URL", multiple=True, help="Where clients find the CRL.")
@click.option("--ca-url", metavar="URL", multiple=True, help="Where they find its certificate.")
@click.option("--ocsp-url", metavar="URL", multiple=True, help="Where they ask about revocation.")
@options.as_json
def setup(
    common_name: str,
    mount: str,
    parent: str | None,
    issuer: str,
    key_type: str,
    days: float | None,
    hosts: dict[str, list[str]],
    roles: dict[str, dict[str, Any]],
    crl_url: tuple[str, ...],
    ca_url: tuple[str, ...],
    ocsp_url: tuple[str, ...],
    as_json: bool,
) -> None:
    """Make an engine the certificate authority NAME: a root, or one that a root signs.

    \b
      tapeseal vault pki setup "Example Root" --mount pki-root
      tapeseal vault pki setup "Example Trading" --parent pki-root --hosts feeds=feeds.example.com

    What is there already stays, so the same command goes on where one was stopped.
    """
    from tapeseal.vault import VaultSession
    from tapeseal.vault.authority import host_role, set_up_authority
    from tapeseal.vault.pki import Pki

    urls = {
        "crl_distribution_points": crl_url,
        "issuing_certificates": ca_url,
        "ocsp_servers": ocsp_url,
    }
    with VaultSession() as session:
        done = set_up_authority(
            Pki(session, mount),
            common_name,
            parent=None if parent is None else Pki(session, parent),
            issuer=issuer,
            key_type=key_type,
            days=days,
            roles={**{name: host_role(domains) for name, domains in hosts.items()}, **roles},
            urls={name: each for name, each in urls.items() if each},
        )
    report_done(mount, done, as_json)


@pki.command()
@click.argument("directory", type=click.Path())
@click.option("--role", metavar="ROLE", required=True, help="A role of the engine.")
@click.option("--name", metavar="NAME", required=True, help="The common name: a DNS name.")
@click.option("--alt-name", metavar="NAME", multiple=True, help="A further DNS name.")
@click.option("--ip", metavar="ADDRESS", multiple=True, help="An IP address.")
@_mount
@_key_type
@click.option(
    "--days",
    metavar="N",
    type=click.FloatRange(0, min_open=True),
    default=365,
    show_default=True,
    help="How long it is valid.",
)
@click.option(
    "--renew-before",
    metavar="DAYS",
    type=click.FloatRange(0),
    default=30,
    show_default=True,
    help="It is due so long before its end, or when a third of its time is left, if that is later.",
)
@click.option(
    "--ca-file",
    metavar="F",
    default="",
    help="Roots in PEM that its chain must lead to; without, the one that Vault hands out counts.",
)
@reload_options
@options.as_json
def issue(
    directory: str,
    role: str,
    name: str,
    alt_name: tuple[str, ...],
    ip: tuple[str, ...],
    mount: str,
    key_type: str,
    days: float,
    renew_before: float,
    ca_file: str,
    reload_command: str | None,
    pid_file: str | None,
    signal_name: str,
    as_json: bool,
) -> int:
    """Get a certificate into DIRECTORY, and note there how it is to be renewed.

    \b
      tapeseal vault pki issue /etc/feed/tls --role feeds --name a.feeds.example.com \\
          --reload 'systemctl reload feed'

    Programs read DIRECTORY/current/privkey.pem and fullchain.pem. Given again, the command asks for nothing
    where the certificate is what it says and not due.
    """
    from tapeseal.vault.certificate_directory import CertificateDirectory, CertificateOrder

    order = CertificateOrder(
        role=role,
        common_name=name,
        alt_names=alt_name,
        ip_addresses=ip,
        mount=mount,
        days=days,
        renew_before_days=renew_before,
        key_type=key_type,
        ca_file=str(Path(ca_file).absolute()) if ca_file else "",
        reload=made_reload(reload_command, pid_file, signal_name),
    )
    return _renew([CertificateDirectory.create(directory, order)], force=False, as_json=as_json)


@pki.command()
@click.argument("directories", metavar="DIRECTORY...", nargs=-1, required=True, type=click.Path())
@click.option(
    "--due",
    is_flag=True,
    help="Renew what is at or below each DIRECTORY, and of that only what is due: for cron.",
)
@options.as_json
def renew(directories: tuple[str, ...], due: bool, as_json: bool) -> int:
    """Renew the certificate in each DIRECTORY that `issue` has made, with a new private key.

    \b
      17 4 * * *  tapeseal vault pki renew --due /etc/feed

    A run that was stopped is gone on with. The old certificate stays valid until it ends or is revoked:
    DIRECTORY/previous/cert.pem.
    """
    from tapeseal.vault.certificate_directory import CertificateDirectory, find_certificates

    codes: list[int] = []
    found: list[CertificateDirectory] = []

    def note(error: OSError) -> None:
        codes.append(failures.report(error, as_json=as_json))

    for directory in directories:
        before = len(codes)
        paths = find_certificates(directory, note) if due else [directory]
        if not paths and before == len(codes):
            note(FileNotFoundError(f"there is no certificate at or below {directory}"))
        for path in paths:
            try:
                found.append(CertificateDirectory(path))
            except (OSError, ValueError) as error:
                codes.append(failures.report(error, path, as_json=as_json))
    if found:
        codes.append(_renew(found, force=not due, as_json=as_json))
    return failures.worst(codes)


def _renew(directories: "list[CertificateDirectory]", *, force: bool, as_json: bool) -> int:
    from tapeseal.vault import VaultSession

    by_path = {str(each.path): each for each in directories}
    with VaultSession() as session:

        def one(path: str) -> None:
            _report(by_path[path].renew(session, force=force), as_json)

        return failures.each(by_path, one, as_json=as_json)


def _report(renewal: "Renewal", as_json: bool) -> None:
    for warning in renewal.warnings:
        failures.say(f"{renewal.path}: {warning}", "warning")
    if as_json:
        output.as_json(
            {"path": renewal.path, "state": renewal.state, "serial": renewal.serial,
             "not_after": renewal.not_after.isoformat(), "previous_serial": renewal.previous_serial,
             "warnings": renewal.warnings}
        )  # fmt: skip
        return
    what = {"renewed": "new certificate", "reloaded": "hook run", "current": "not due"}
    output.line(
        f"{renewal.path}: {what[renewal.state]}, {renewal.serial}, until {renewal.not_after:%Y-%m-%d %H:%M} UTC"
    )


@pki.command()
@click.argument("certificates", metavar="CERTIFICATE...", nargs=-1, required=True)
@_mount
@options.as_json
def revoke(certificates: tuple[str, ...], mount: str, as_json: bool) -> int:
    """Revoke each CERTIFICATE: a file in PEM, or a serial number as `list` or openssl shows it."""
    from cryptography import x509

    from tapeseal.vault import VaultSession
    from tapeseal.vault.pki import Pki

    with VaultSession() as session:
        engine = Pki(session, mount)

        def one(name: str) -> None:
            if Path(name).exists():
                done = engine.revoke(x509.load_pem_x509_certificate(Path(name).read_bytes()))
            elif _SERIAL.fullmatch(name):
                digits = name.replace(":", "").replace("-", "")
                done = engine.revoke(":".join(re.findall("..", digits)))
            else:
                raise click.UsageError(f"{name} is neither a file nor a serial number")
            if as_json:
                output.as_json(
                    {"certificate": name, "serial": done.serial, "revoked": done.time.isoformat(),
                     "in_crl": done.in_crl}
                )  # fmt: skip
            else:
                output.line(f"{done.serial}: revoked at {done.time:%Y-%m-%d %H:%M:%S} UTC")
            if not done.in_crl:
                failures.say(
                    f"{done.serial}: the CRL does not name it yet, or this token may not have it built",
                    "warning",
                )

        return failures.each(certificates, one, as_json=as_json)


@pki.command("list")
@_mount
@click.option("--name", metavar="NAME", help="Only those with this common name.")
@click.option(
    "--since",
    metavar="TIME",
    type=click.DateTime(["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%d %H:%M:%S"]),
    help="Only those made since then, in UTC: to find one whose answer was lost.",
)
@click.option("--all", "show_all", is_flag=True, help="Those too that have ended.")
@options.as_json
def list_certificates(
    mount: str, name: str | None, since: Any, show_all: bool, as_json: bool
) -> None:
    """List the certificates of an engine, the newest first."""
    import datetime

    from tapeseal.vault import VaultSession
    from tapeseal.vault.pki import Pki

    start = None if since is None else since.replace(tzinfo=datetime.UTC)
    now = datetime.datetime.now(datetime.UTC)
    with VaultSession() as session:
        found = Pki(session, mount).certificates(common_name=name, since=start)
    for each in found:
        if not show_all and each.not_after <= now:
            continue
        if as_json:
            output.as_json(
                {"serial": each.serial, "common_name": each.common_name, "names": each.names,
                 "not_before": each.not_before.isoformat(), "not_after": each.not_after.isoformat(),
                 "revoked": each.revoked}
            )  # fmt: skip
        else:
            state = ", revoked" if each.revoked else ""
            output.line(
                f"{each.serial}  {each.not_before:%Y-%m-%d %H:%M} to {each.not_after:%Y-%m-%d}  "
                f"{each.common_name}{state}"
            )


@pki.command()
@_mount
@click.option(
    "--issuer", metavar="NAME", default="default", show_default=True, help="Whose CRL it is."
)
@click.option(
    "--out", metavar="F", type=click.Path(), help="Write it there in PEM, unless that is newer."
)
@options.as_json
def crl(mount: str, issuer: str, out: str | None, as_json: bool) -> None:
    """Fetch a CRL, check its signature and its date, and say what it revokes."""
    from tapeseal.vault import VaultSession
    from tapeseal.vault.pki import Pki, write_crl

    with VaultSession() as session:
        found = Pki(session, mount).crl(issuer)
    if out is not None:
        write_crl(out, found)
    if as_json:
        output.as_json(
            {"number": found.number, "this_update": found.this_update.isoformat(),
             "next_update": found.next_update.isoformat(),
             "revoked": {serial: time.isoformat() for serial, time in found.revoked.items()}}
        )  # fmt: skip
        return
    output.line(
        f"CRL number {found.number}, good until {found.next_update:%Y-%m-%d %H:%M} UTC, "
        f"{output.counted(len(found.revoked), 'certificates')}"
    )
    for serial, time in found.revoked.items():
        output.line(f"  {serial}  {time:%Y-%m-%d %H:%M:%S} UTC")
