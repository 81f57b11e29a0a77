"""A made-up audit log of a trading system over some months, for reports: python tests/audit_sample.py FOLDER [DAYS]."""

import json
import os
import random
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from tapeseal.audit_log import chain
from tapeseal.audit_log.log import create_log, head_path, read_header
from tapeseal.keyrings.local import LocalKeyring, create_key_file

END = datetime(2026, 11, 27, 11, 0, tzinfo=UTC)

DAY_KEY = "key.generate aws-kms:arn:aws:kms:us-east-1:428571936040:key/5f2a-day"

SERVICES = {
    "recorder-eq": ("md-1", "recorder", ("kv.read secret/feeds/nasdaq-itch", DAY_KEY), 46),
    "recorder-fut": ("md-2", "recorder", ("kv.read secret/feeds/cme-mdp3", DAY_KEY), 44),
    "oms": (
        "trade-1",
        "oms",
        (
            "kv.read secret/exchanges/cme/ilink",
            "kv.read secret/exchanges/nasdaq/ouch",
            "lease.issue database/creds/oms",
        ),
        61,
    ),
    "risk-engine": (
        "trade-2",
        "riskd",
        (
            "lease.issue database/creds/risk",
            "kv.read secret/clearing/ocg",
            "transit.verify transit/limits",
        ),
        33,
    ),
    "crypto-gateway": (
        "trade-3",
        "gateway",
        (
            "kv.read secret/api-keys/binance",
            "kv.read secret/api-keys/kraken",
            "kv.read secret/api-keys/coinbase",
        ),
        52,
    ),
    "archiver": (
        "store-1",
        "tapeseal",
        ("key.unwrap vault-transit:transit/archive", "statement.sign vault-transit:transit/day"),
        9,
    ),
}
"""By identity: host, program, what it does, and how often on a usual day."""

PEOPLE = {
    "m.keller": (
        ("key.unwrap vault-transit:transit/archive", "kv.read secret/feeds/nasdaq-itch"),
        3.0,
    ),
    "j.osei": (
        (
            "kv.read secret/exchanges/cme/ilink",
            "kv.write secret/exchanges/cme/ilink",
            "pki.issue pki/trading",
        ),
        2.0,
    ),
    "a.lindqvist": (("ssh.sign ssh/ops", "kv.list secret/exchanges"), 4.0),
    "s.banerjee": (("transit.rotate_key transit/archive", "kms.rotate alias/hft-master"), 0.05),
}

SECRETS = {
    "binance": ("api-key", "digital-assets", 90, [88, 4]),
    "kraken": ("api-key", "digital-assets", 90, [86]),
    "coinbase": ("api-key", "digital-assets", 90, [97]),
    "cme-ilink": ("api-key", "execution", 90, [71]),
    "nasdaq-ouch": ("api-key", "execution", 90, [30]),
    "oms-database": ("database-users", "execution", 60, [58]),
    "risk-database": ("database-static-role", "risk", 60, [14]),
    "archiver-approle": ("service-account", "data", 30, [44, 12]),
    "gateway-tls": ("tls-certificate", "platform", 365, [61]),
    "ops-ssh-ca": ("ssh-key", "platform", 180, []),
    "archive-key": ("transit-key", "data", 90, [20]),
}

STEPS = ("claim", "generate", "store", "deploy", "verify", "adopt", "revoke", "monitor", "clean")

HOSTILE = 'secret/feeds/"><script>alert(1)</script>\u202etxt.exe'


def entries(days: int, seed: int = 7) -> list[dict[str, Any]]:
    """Return entries in the order of time, without number and MAC."""
    made = _Maker(seed)
    dice = made.dice
    start = (END - timedelta(days=days)).replace(hour=0)
    for number in range(days + 1):
        day = start + timedelta(days=number)
        for name in SERVICES:
            made.service(name, day, refused=number > days - 3)
        if day.weekday() < 5:
            for name, (what, usual) in PEOPLE.items():
                for _ in range(int(usual * dice.uniform(0.3, 1.8) + dice.random())):
                    when = day + timedelta(hours=dice.uniform(8, 17.5))
                    user = "root" if name == "s.banerjee" else name
                    login = {"login": name} if user == "root" else {}
                    made.add(
                        when, user, "ops-1", "tapeseal", dice.choice(what), version=12, **login
                    )
    for secret, (_, _, _, ages) in SECRETS.items():
        for turn, age in enumerate(ages):
            when = END - timedelta(days=age, hours=6)
            for minute, step in enumerate(STEPS):
                made.add(
                    when + timedelta(minutes=minute),
                    "svc",
                    "ops-1",
                    "tapeseal",
                    f"rotation.{step} {secret}",
                    identity="rotation",
                    version=turn + 4,
                    rotation=f"{secret}-{turn}",
                )
    # What nobody has used for long, what is unlike before, and what somebody tries.
    old = END - timedelta(days=min(days, 128))
    for subject, who in (
        ("secret/feeds/lse-millennium", "recorder-eq"),
        ("database/creds/backtest", "research"),
        ("secret/exchanges/bats/boe", "oms"),
        ("transit/limits-2024", "risk-engine"),
    ):
        when = old + timedelta(hours=dice.uniform(8, 16), days=dice.uniform(0, 20))
        made.add(when, "svc", "trade-1", "oms", f"kv.read {subject}", identity=who)
    night = (END - timedelta(days=2)).replace(hour=2, minute=47)
    for number in range(74):
        when = night + timedelta(seconds=number * 0.7)
        made.add(
            when, "j.osei", "ops-1", "tapeseal", "kv.read secret/exchanges/cme/ilink", version=6
        )
    for number in range(9):
        when = night + timedelta(minutes=2, seconds=number * 11)
        what = "kv.read secret/clearing/ocg"
        made.add(when, "j.osei", "ops-1", "tapeseal", what, result="AccessDeniedError")
    when = END - timedelta(hours=3)
    made.add(when, "m.keller", "ops-1", "tapeseal", f"kv.read {HOSTILE}", result="InvalidPathError")
    found = sorted(made.found, key=lambda each: each["time"])
    return [each for each in found if each["time"] <= f"{END:%Y-%m-%dT%H:%M:%S}"]


class _Maker:
    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.found: list[dict[str, Any]] = []

    def service(self, name: str, day: datetime, *, refused: bool) -> None:
        """Add a day of a service; refused: with one of its secrets it is."""
        host, program, what, usual = SERVICES[name]
        dice, is_weekend, always = self.dice, day.weekday() > 4, name == "crypto-gateway"
        busy = usual if not is_weekend else 0.55 * usual if always else 0
        for _ in range(round(busy * dice.uniform(0.8, 1.2))):
            hour = dice.uniform(0, 24) if always else min(max(dice.gauss(13, 3), 6.5), 20.9)
            chosen = dice.choice(what)
            result = "done"
            if refused and "kraken" in chosen and dice.random() < 0.5:
                result = "AccessDeniedError"
            elif dice.random() < 0.004:
                result = "ServiceUnavailableError"
            version: dict[str, Any] = {}
            if not chosen.startswith("lease"):
                version = {
                    "version": 12 if chosen.startswith("key") else 3 + (END - day).days // -40 + 4
                }
            self.add(
                day + timedelta(hours=hour), "svc", host, program, chosen, identity=name, result=result, **version
            )  # fmt: skip

    def add(
        self, when: datetime, user: str, host: str, program: str, what: str, **more: Any
    ) -> None:
        """Add one entry; `what` is action and subject."""
        action, subject = what.split(" ", 1)
        stamp = f"{when:%Y-%m-%dT%H:%M:%S}.{self.dice.randrange(10**9):09d}Z"
        entry = {"time": stamp, "host": host, "pid": self.dice.randrange(900, 30000), "user": user}
        entry |= {name: more.pop(name) for name in ("login", "identity") if name in more}
        entry |= {"program": program, "action": action, "subject": subject}
        if "version" in more:
            entry["version"] = more.pop("version")
        result = more.pop("result", "done")
        entry |= {"result": result, "seconds": round(self.dice.expovariate(200), 6)}
        if more:
            entry["details"] = more
        self.found.append(entry)


def write_sample(folder: Path, days: int = 150) -> tuple[Path, str]:
    """Write a log, its key file and a plan into a folder; return the log's path and the key file's."""
    key_file = str(folder / "audit.key")
    create_key_file(key_file)
    keyring = LocalKeyring(key_file)
    path = folder / "audit.log"
    create_log(path, keyring=keyring)
    with open(path, "rb") as file:
        header = read_header(file.fileno())
    key = chain.unlock(header, keyring)
    mac, sequence, size = header.mac, 0, header.size
    with open(path, "ab") as file:
        for entry in entries(days):
            sequence += 1
            body = json.dumps({"sequence": sequence, **entry}, separators=(",", ":")).encode()[:-1]
            mac = key.entry(mac, body)
            size += file.write(chain.build_line(body, mac))
    head = chain.Head(1, sequence, size, mac)
    Path(head_path(path)).write_bytes(chain.build_head(header.log_id, head, key))
    plan = [
        f'[secret.{name}]\nkind = "exec"\ntier = "application"\nowner = "{owner}"\nschedule = "{every}d"\n'
        f"[secret.{name}.options]\n"
        + "".join(f'{each} = ["true"]\n' for each in ("generate", "live", "discard", "revoke"))
        for name, (_, owner, every, _) in SECRETS.items()
    ]
    (folder / "plan.toml").write_text("\n".join(plan))
    return path, key_file


if __name__ == "__main__":
    place = Path(sys.argv[1])
    place.mkdir(parents=True, exist_ok=True)
    made, _ = write_sample(place, int(sys.argv[2]) if len(sys.argv) > 2 else 150)
    print(made, os.path.getsize(made))
