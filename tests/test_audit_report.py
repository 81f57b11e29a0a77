"""Reports on an audit log: what they count, what they call overdue, unused and unlike before, and the page."""

import base64
import hashlib
import html.parser
import json
import os
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

import audit_sample
from tapeseal.audit_log.check import verify_log
from tapeseal.audit_log.page import build_page
from tapeseal.audit_log.report import Report, ReportBuilder, Settings, read_lines
from tapeseal.keyrings.local import LocalKeyring
from tapeseal.rotation.plan import PlannedSecret

NOW = datetime(2026, 11, 27, 12, tzinfo=UTC)


def line(
    when: str | datetime,
    action: str = "kv.read",
    subject: str = "secret/a",
    user: str = "alice",
    **more: Any,
) -> bytes:
    """Return the line of an entry, without number and MAC, which a report does not look at."""
    if isinstance(when, datetime):
        when = f"{when:%Y-%m-%dT%H:%M:%S}"
    entry = {
        "time": f"{when}.000000000Z",
        "host": "h",
        "pid": 1,
        "user": user,
        "program": "p",
        "action": action,
        "subject": subject,
        "result": "done",
        "seconds": 0.0,
        **more,
    }
    return json.dumps(entry).encode()


def report_of(
    lines: list[bytes], plan: dict[str, PlannedSecret] | None = None, **settings: Any
) -> Report:
    """Return the report of some lines, made at NOW."""
    builder = ReportBuilder(Settings(**{"until": NOW, **settings}), plan)
    for each in lines:
        builder.add(each)
    return builder.report()


def ago(days: float) -> datetime:
    """Return a time so many days before NOW."""
    return NOW - timedelta(days=days)


def rotation(secret: str, days: float, *steps: str, number: int = 1) -> list[bytes]:
    """Return the entries of a rotation."""
    return [
        line(
            ago(days) + timedelta(minutes=minute),
            f"rotation.{step}",
            secret,
            version=number,
            details={"rotation": f"{secret}-{number}"},
        )
        for minute, step in enumerate(steps)
    ]


PLAN = {
    name: PlannedSecret(name, "exec", owner="desk", schedule=timedelta(days=90))
    for name in ("late", "soon", "fine", "never", "rolled back")
}


def test_who_used_what() -> None:
    """Uses are counted by who and what, with the last versions, the failures, and when."""
    found = report_of(
        [
            *(line(ago(5 - number / 100), version=number) for number in range(6)),
            line(ago(2), result="AccessDeniedError"),
            line(
                ago(1),
                user="svc",
                identity="oms",
                action="lease.issue",
                subject="database/creds/oms",
            ),
            line(ago(1), user="root", login="bob", action="tape.read", subject="/a.tape"),
            line(ago(1), action="audit.open", subject="audit.log"),
        ]
    )
    assert (9, 1, 2) == (found.entries, found.failed, found.subjects)
    assert ["alice", "bob as root", "oms (svc)"] == [each.who for each in found.people]
    use = found.uses[0]
    assert ("alice", "secret/a", 7, 1) == (use.who, use.subject, use.count, use.failed)
    assert ["2", "3", "4", "5"] == use.versions
    assert ("2026-11-22", "2026-11-25") == (use.first[:10], use.last[:10])
    assert [("kv", 7, 1), ("lease", 1, 0), ("tape", 1, 0)] == found.actions


def test_period() -> None:
    """Only what is in the period counts; the last use of a secret is known from before it."""
    lines = [line(ago(30)), line(ago(5)), line(ago(3)), line(NOW + timedelta(days=1))]
    found = report_of(lines, since=ago(10), until=ago(4))
    assert (1, "2026-11-17", "2026-11-23") == (found.entries, found.since[:10], found.until[:10])
    assert 3 == report_of(lines).entries


def test_clocks_hide_nothing() -> None:
    """What stands behind an entry of the period is in it whatever its clock said, and so is what is still to come."""
    lines = [
        line(ago(30), subject="before"),
        line(ago(1)),
        line("1970-01-01T00:00:00", subject="put back"),
        line("8999-12-31T23:59:59", subject="put forward"),
    ]
    builder = ReportBuilder(Settings(since=datetime.now(UTC) - timedelta(days=1)))
    for each in (lines[3], lines[0], line(datetime.now(UTC)), lines[2]):
        builder.add(each)
    found = builder.report()
    assert {"put forward", "secret/a", "put back"} == {each.subject for each in found.uses}
    # With all the days between them they would be millions.
    assert 3 == len(found.days)
    assert "put back" in build_page(found)
    assert 2 == report_of(lines, since=ago(10)).entries


def test_overdue() -> None:
    """Ages come from the last rotation that went through; one that was rolled back, or never got its claim, is none."""
    whole = ("claim", "generate", "store", "deploy", "verify", "revoke", "clean")
    lines = [
        *rotation("late", 200, *whole, number=1),
        *rotation("late", 97, *whole, number=2),
        line(
            ago(1), "rotation.claim", "late", result="ClaimedError", details={"rotation": "late-3"}
        ),
        *rotation("late", 1, "clean", number=3),
        *rotation("soon", 80, *whole[:5], "restore", *whole[3:]),
        *rotation("fine", 2, *whole),
        *rotation("rolled back", 100, *whole, number=1),
        *rotation("rolled back", 1, "claim", "generate", "restore", "discard", "clean", number=2),
    ]
    found = report_of(lines, PLAN).overdue
    assert [
        ("rolled back", "overdue", "1", 10),
        ("late", "overdue", "2", 7),
        ("never", "never", None, None),
        ("soon", "soon", "1", -10),
        ("fine", "fine", "1", -88),
    ] == [
        (each.name, each.state, each.version, None if each.days is None else round(each.days))
        for each in found
    ]


def test_unused() -> None:
    """Secrets that nobody used for so long are listed, the longest first; a failed try is no use, a tape no secret."""
    lines = [
        line(ago(200), subject="secret/oldest"),
        line(ago(100), subject="secret/old"),
        line(ago(1), subject="secret/old", result="AccessDeniedError"),
        line(ago(200), "tape.read", "/old.tape"),
        line(ago(80), subject="secret/used"),
    ]
    assert ["secret/oldest", "secret/old"] == [each.subject for each in report_of(lines).unused]
    assert 3 == len(report_of(lines, unused_days=70).unused)


def test_new_pairs() -> None:
    """Who uses what for the first time, in a log that reaches back further, is new."""
    lines = [line(ago(30)), line(ago(2)), line(ago(2), user="eve"), line(ago(1), user="eve")]
    (found,) = [each for each in report_of(lines).patterns if each.kind == "new"]
    assert ("eve", "secret/a", 2) == (found.who, found.subject, found.count)
    assert [] == report_of(lines[1:]).patterns


def test_bursts() -> None:
    """Many times more in a minute than is usual is a burst; as much as always is none."""
    usual = [line(ago(3) + timedelta(minutes=number), user="bot") for number in range(100)]
    burst = [line(ago(2) + timedelta(seconds=number // 2)) for number in range(60)]
    quiet = [line(ago(20) + timedelta(hours=number)) for number in range(30)]
    busy = [
        line(ago(3) + timedelta(minutes=number // 60), user="busy") for number in range(60 * 60)
    ]
    found = [
        each for each in report_of(quiet + usual + busy + burst).patterns if each.kind == "burst"
    ]
    assert [("alice", 60)] == [(each.who, each.count) for each in found]


def test_off_hours() -> None:
    """Somebody at an hour at which they seldom work is unlike before; who always works then is not."""
    day = [
        line(f"2026-11-{number:02d}T14:00:00")
        for number in range(2, 27)
        if number % 7 not in (0, 1)
    ]
    night = [line("2026-11-26T02:30:00")]
    bot = [line(f"2026-11-{number:02d}T02:30:00", user="bot") for number in range(1, 27)]
    found = [each for each in report_of(day + night + bot).patterns if each.kind == "off-hours"]
    assert ["alice"] == [each.who for each in found]
    assert "1 from 02:00 to 03:00" in found[0].text
    assert [] == [
        each
        for each in report_of(day + night + bot, zone=ZoneInfo("Asia/Tokyo")).patterns
        if each.kind == "off-hours" and each.who == "bot"
    ]


def test_days_and_hours_are_local() -> None:
    """Days and hours are those of the zone that was asked for."""
    found = report_of([line("2026-11-26T23:30:00")], zone=ZoneInfo("Europe/Zurich"))
    assert [("2026-11-27", 1, 0)] == [(each.day, each.done, each.failed) for each in found.days]
    assert 1 == found.hours[4][0]


@pytest.mark.parametrize(
    "bad",
    [
        b"",
        b"no json",
        b"[]",
        b'{"time":1}',
        b"\xff\xfe",
        line("yesterday"),
        line(ago(1), subject="x")[:-5],
        line(ago(1), version=[1]),
        line(ago(1), details=[]),
        line(ago(1), details="a"),
        line(ago(1), identity=5),
        line(ago(1), login={}),
        b'{"user":"a",' + line(ago(1))[1:],
        line(ago(1), subject="x" * 70_000),
        line("2026-02-30T00:00:00"),
        line("2026-11-27T25:61:00"),
        line("0001-01-01T00:00:00"),
        line("9999-12-31T23:59:59"),
        line("\u0662\u0660\u0662\u0666-11-27T11:00:00"),
        line(ago(1)).replace(b'"h"', '"\x9b2J"'.encode()),
        line(ago(1)).replace(b'"h",', b'"h",\r'),
        b"\xef\xbb\xbf" + line(ago(1)),
    ],
)
def test_lines_that_are_no_entries(bad: bytes) -> None:
    """A line that is no entry is counted, and nothing else."""
    found = report_of([bad, line(ago(1))], zone=ZoneInfo("America/New_York"))
    assert (1, 1) == (found.unreadable, found.entries)


def test_nothing() -> None:
    """A log without entries has a report too, and a page."""
    found = report_of([])
    assert (0, [], []) == (found.entries, found.uses, found.days)
    assert "There were none." in build_page(found)


# The page


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """The report of a made-up log of some weeks."""
    folder = tmp_path_factory.mktemp("sample")
    path, key_file = audit_sample.write_sample(folder, days=30)
    plan = {
        name: PlannedSecret(name, kind, owner=owner, schedule=timedelta(days=every))
        for name, (kind, owner, every, _) in audit_sample.SECRETS.items()
    }
    builder = ReportBuilder(Settings(until=audit_sample.END, unused_days=10), plan)
    found = verify_log(path, keyring=LocalKeyring(key_file), each=builder.add)
    assert found.entries == sum(1 for _ in read_lines(path))
    return builder.report(log_id=found.log_id, verified=found.ok)


class Page(html.parser.HTMLParser):
    """Takes a page apart."""

    VOID = ("meta", "input", "rect", "line", "path", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert [] == self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert tag == self.open.pop()

    def handle_data(self, data: str) -> None:
        self.text += data


def test_page_tells_all(sample: Report) -> None:
    """The page shows numbers, what needs a look, and the tables; it is well-formed."""
    page = Page(build_page(sample))
    for text in (
        f"{sample.entries:,}",
        "every entry is authentic",
        "Needs a look",
        "coinbase",
        "74 in a minute",
        "secret/feeds/lse-millennium",
        "AccessDeniedError",
        "crypto-gateway",
    ):
        assert text in page.text
    assert {"uses", "failures", "rotations", "unused", "parts", "patterns"} == {
        attributes["id"] for tag, attributes in page.tags if tag == "table"
    }


def test_page_loads_nothing(sample: Report) -> None:
    """Nothing is loaded from anywhere: no link, no address, no handler, and a policy that forbids all that."""
    text = build_page(sample)
    page = Page(text)
    assert set() == {tag for tag, _ in page.tags} & {
        "link",
        "img",
        "iframe",
        "object",
        "base",
        "form",
        "a",
    }
    names = {name for _, attributes in page.tags for name in attributes}
    assert set() == {
        name for name in names if name in ("src", "href", "style") or name.startswith("on")
    }
    assert re.search(r"https?://|url\(|@import", text) is None
    policy = next(a["content"] for t, a in page.tags if t == "meta" and "http-equiv" in a)
    style, script = (
        base64.b64encode(hashlib.sha256(part.encode()).digest()).decode()
        for part in (
            text.partition("<style>")[2].partition("</style>")[0],
            text.partition("<script>")[2].partition("</script>")[0],
        )
    )
    assert (
        f"default-src 'none'; style-src 'sha256-{style}'; script-src 'sha256-{script}'; base-uri 'none'; "
        "form-action 'none'"
    ) == policy


@pytest.mark.parametrize(
    "nasty",
    [
        '"><script>alert(1)</script><img src=x onerror=y>\u202e\x00\n</style>{}&lt;',
        "<script>alert(1)</script>'-alert(2)-'</title></style><!--",
        "\ud800<script>alert(1)</script>\u2028\u2066\x9b2J\x1b]0;\x07",
        "&#60;b&#62;<script>alert(1)</script>javascript:alert(1) (a) (",
    ],
)
def test_hostile_text_stays_text(sample: Report, nasty: str) -> None:
    """Whatever stands in an entry is shown as text: no markup, no script, nothing that turns a line around."""
    lines = [
        line(ago(number), subject=nasty, user=nasty, host=nasty, program=nasty, result=nasty, version=nasty,
             identity=nasty, login=nasty, action=f"kv.{nasty}", details={nasty: nasty})
        for number in (20, 1)
    ]  # fmt: skip
    plan = {nasty: PlannedSecret(nasty, nasty, owner=nasty, tier=nasty)}
    builder = ReportBuilder(Settings(until=NOW, unused_days=0), plan)
    for each in lines:
        builder.add(each)
    text = build_page(builder.report(log_id=nasty, verified=False, problems=[nasty]), nasty)
    page = Page(text)
    assert 1 == sum(tag == "script" for tag, _ in page.tags)
    assert 0 == sum(tag == "img" for tag, _ in page.tags)
    harmless = Page(build_page(sample)).tags
    assert {tag for tag, _ in page.tags} <= {tag for tag, _ in harmless}
    names, known = ({name for _, named in tags for name in named} for tags in (page.tags, harmless))
    assert names <= known
    assert text.encode().decode().replace("\n", "").isprintable()
    assert "<script>alert(1)</script>" in page.text


@pytest.mark.parametrize(
    ("verified", "said"),
    [(None, "not verified: no key was given"), (False, "the log does not verify: 2 problems")],
)
def test_page_says_what_was_not_verified(verified: bool | None, said: str) -> None:
    """A page of a log that was not verified, or does not, says so at its top."""
    builder = ReportBuilder(Settings(until=NOW))
    builder.add(line(ago(1)))
    made = builder.report(verified=verified, problems=["a", "b"] if verified is False else [])
    assert said in build_page(made)


def test_large_tables_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a table with very many rows the first are shown, and it says how many there are."""
    monkeypatch.setattr("tapeseal.audit_log.page.MAX_ROWS", 10)
    text = build_page(report_of([line(ago(1), subject=f"secret/{n}") for n in range(25)]))
    assert "and 15 more" in text


def test_json(sample: Report) -> None:
    """The report as JSON holds what the page shows."""
    found = json.loads(json.dumps(sample.as_json()))
    assert sample.entries == found["entries"]
    assert {"who", "subject", "count", "failed", "actions", "versions"} <= found["uses"][0].keys()


def test_read_lines_needs_no_key(tmp_path: Path) -> None:
    """The lines of all files of a log are read in their order, without any key."""
    for name, text in (("l.000002", b"h2\nb\n"), ("l.000001", b"h1\na\n"), ("l", b"h3\nc\nd")):
        (tmp_path / name).write_bytes(text)
    (tmp_path / "l.head").write_bytes(b"x")
    os.mkfifo(tmp_path / "l.000003")
    assert [b"a", b"b", b"c", b"d"] == list(read_lines(tmp_path / "l"))
