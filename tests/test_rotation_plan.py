"""Plans of rotations: what they may say, and all that is wrong with one at once."""

import os
from datetime import time, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

import rotation_world as world
from tapeseal.errors import PlanError
from tapeseal.rotation.compromise import Compromise
from tapeseal.rotation.plan import check_windows, read_plan
from tapeseal.rotation.schedule import Calendars
from tapeseal.rotation.settings import Setting, duration_text, parse_duration, read_settings

world.register()

PLAN = """
[rotation]
state = "state/rotation.db"
staging = "kv/rotation"
consumers = "kv/consumers"
parallel = 4
metrics = "127.0.0.1:9000"
tapes = ["archive/*.tape"]

[secret.binance]
kind = "accounts"
tier = "root"
owner = "execution desk"
schedule = "30d"
before = "1w"
grace = "2h30m"
settle = "0s"
monitor = "0s"
deadline = "90s"
consumers = ["recorder", "gateway"]
options = { service = "service", path = "secret/venues/binance" }
deploy = [{ type = "accounts" }]
verify = [{ type = "accounts" }]

[secret.binance.window]
markets = ["XNYS", "CMES"]
margin = "15m"
days = ["sat", "sun"]
hours = "20:00-06:00"
timezone = "America/New_York"

[secret.backup]
kind = "exec"
tier = "configuration"
owner = "execution desk"
options = { live = ["a"], generate = ["b"], discard = ["c"], revoke = ["/d/e", "--host", "db1.desk.example,10.1.2.3"] }

[pair.gateways]
members = ["binance", "backup"]
offset = "12h"
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A plan in a file."""
    (tmp_path / "rotation.toml").write_text(PLAN)
    return tmp_path / "rotation.toml"


def problems(path: Path, *changes: tuple[str, str]) -> list[str]:
    """Return what is said of the plan after changes."""
    text = PLAN
    for old, new in changes:
        assert old in text
        text = text.replace(old, new, 1)
    path.write_text(text)
    with pytest.raises(PlanError) as caught:
        read_plan(path)
    assert "\n  ".join([f"{path} is no plan:", *caught.value.problems]) == str(caught.value)
    return caught.value.problems


def test_plan(path: Path) -> None:
    """All of a plan is read, relative paths from its own directory."""
    plan = read_plan(path)
    here = path.parent
    assert (here / "state" / "rotation.db", "kv/rotation", "kv/consumers") == (
        plan.state,
        plan.staging,
        plan.consumers,
    )
    assert (4, "127.0.0.1:9000", [f"{here}/archive/*.tape"]) == (
        plan.parallel,
        plan.metrics,
        plan.tapes,
    )
    secret = plan.secrets["binance"]
    assert ("accounts", "root", "execution desk") == (secret.kind, secret.tier, secret.owner)
    assert timedelta(days=30) == secret.schedule
    assert timedelta(weeks=1) == secret.before
    assert timedelta(hours=2, minutes=30) == secret.grace
    assert timedelta(0) == secret.settle == secret.monitor
    assert ["recorder", "gateway"] == secret.consumers
    assert {"service": here / "service", "path": "secret/venues/binance"} == secret.options
    assert [{"type": "accounts"}] == secret.deploy == secret.verify
    window = secret.window
    assert ("XNYS", "CMES") == window.markets
    assert ("sat", "sun") == window.days
    assert (time(20), time(6)) == window.hours
    assert ZoneInfo("America/New_York") == window.zone
    assert ("binance", "backup") == plan.pairs["gateways"].members
    assert [plan.pairs["gateways"]] == plan.pairs_of("backup")


def test_defaults(path: Path) -> None:
    """What a plan leaves open: the schedule of the kind, a day of grace, any time."""
    secret = read_plan(path).secrets["backup"]
    assert timedelta(days=90) == secret.schedule
    assert timedelta(days=1) == secret.grace
    assert secret.window.always
    assert timedelta(minutes=1) == secret.options["timeout"]


def test_every_problem_is_named(path: Path) -> None:
    """One report has all that is wrong, each with its place."""
    found = problems(
        path,
        ("parallel = 4", 'parallel = 0\ncolour = "blue"'),
        ('tier = "root"', 'tier = "boot"'),
        ('schedule = "30d"', 'schedule = "0s"'),
        ('hours = "20:00-06:00"', 'hours = "8pm"'),
        ('path = "secret/venues/binance"', "path = 3"),
        ('deploy = [{ type = "accounts" }]', 'deploy = [{ type = "floppy" }]'),
        ('generate = ["b"], ', ""),
        ('members = ["binance", "backup"]', 'members = ["binance", "bakcup"]'),
    )
    expected = [
        "rotation: there is no setting 'colour'",
        "rotation: parallel is 1 or more, not 0",
        "secret.binance: tier is one of root, application, configuration, not 'boot'",
        "secret.binance: schedule is a duration",
        "secret.binance.options: path is a text, not a number",
        'secret.binance.window: hours are like "20:00-06:00"',
        "secret.binance.deploy[0]: type is one of file",
        "secret.backup.options: generate is missing: a list of texts",
        "pair.gateways: there is no secret 'bakcup' in the plan",
    ]
    assert [] == [text for text in expected if not any(each.startswith(text) for each in found)]
    assert len(expected) == len(found)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('tier = "root"\n', "", "secret.binance: tier is missing"),
        ('owner = "execution desk"\n', "", "secret.binance: owner is missing"),
        ('kind = "accounts"\n', "", "secret.binance: kind is missing"),
        ('kind = "accounts"', 'kind = "acounts"', "secret.binance: kind is one of"),
        ("[secret.binance]", '[secret."a/b"]', "secret.a/b: a name is letters"),
        ("[secret.binance]", "[secrets.binance]", "secrets: a plan has the tables"),
        ('["recorder", "gateway"]', '"recorder"', "secret.binance: consumers is a list of texts"),
        ('["recorder", "gateway"]', '["../x"]', "the consumer '../x' has no usable name"),
        ('staging = "kv/rotation"', 'staging = "kv"', "staging is the path of a KV secret"),
        ('metrics = "127.0.0.1:9000"', 'metrics = "9000"', "metrics is HOST:PORT"),
        ('days = ["sat", "sun"]', 'days = ["Sat"]', "days are mon, tue"),
        ('"America/New_York"', '"New York"', "there is no timezone 'New York'"),
        ('"America/New_York"', '"../../etc/passwd"', "there is no timezone"),
        ('members = ["binance", "backup"]', 'members = ["backup"]', "two members or more"),
        ('deploy = [{ type = "accounts" }]', "deploy = {}", "deploy is a list of tables"),
        ('deploy = [{ type = "accounts" }]', 'deploy = [{ a = "b" }]', "deploy[0]: type is missing"),
        ('{ type = "accounts" }]\nverify', '{ type = "accounts", x = 1 }]\nverify', "no setting 'x'"),
        ("options = { service", 'options = "x"\nx = { service', "secret.binance.options is a table"),
    ],
)  # fmt: skip
def test_problem(path: Path, old: str, new: str, said: str) -> None:
    """Each mistake has a text that says where it is and how it should be."""
    assert [each for each in problems(path, (old, new)) if said in each] != []


def test_home_of_nobody(path: Path) -> None:
    """A path in a home directory that there is not is a problem as any other, and is not shown."""
    assert {
        "rotation: state begins with ~ and the name of somebody who is not known here",
        "rotation: one of tapes begins with ~ and the name of somebody who is not known here",
    } == set(
        problems(
            path,
            ('state = "', 'state = "~hunter2/'),
            ('tapes = ["', 'tapes = ["~hunter2/'),
        )
    )


@pytest.mark.parametrize(
    "text", ["[rotation", "a = 1\na = 2", "\0", "x = 'unfinished", "x=" + 5000 * "["]
)
def test_no_toml(path: Path, text: str) -> None:
    """What is no TOML says where."""
    path.write_text(text)
    with pytest.raises(PlanError, match="is no TOML"):
        read_plan(path)
    path.write_bytes(b"\xff")
    with pytest.raises(PlanError, match="is no TOML"):
        read_plan(path)


def test_thousands_of_problems(path: Path) -> None:
    """A text names the first of many problems, and how many there are more."""
    path.write_text("".join(f"[secret.a{number}]\n" for number in range(100)))
    with pytest.raises(PlanError, match=r"and 280 more$") as caught:
        read_plan(path)
    assert 300 == len(caught.value.problems)


def test_problem_shows_no_value(path: Path) -> None:
    """A secret that somebody put into the plan in the wrong place is not printed."""
    found = problems(path, ("parallel = 4", 'parallel = "hunter2-hunter2"'))
    assert "hunter2" not in str(found)


@pytest.mark.parametrize(
    ("window", "said"),
    [
        ('markets = ["NOPE"]', "there is no market 'NOPE'"),
        ('markets = ["24/7"]', "never open"),
        ('hours = "10:00-10:01"', "never open for as long as the deadline, 5m"),
    ],
)
def test_window_that_never_opens(tmp_path: Path, window: str, said: str) -> None:
    """A window in which nothing could ever happen is no window."""
    path = world.write_plan(tmp_path / "rotation.toml", "db", more=f"window = {{ {window} }}")
    path.write_text(path.read_text().replace('deadline = "5s"', 'deadline = "5m"'))
    with pytest.raises(PlanError, match=said):
        check_windows(read_plan(path), Calendars())


@pytest.mark.parametrize(
    ("text", "duration"),
    [
        ("90d", timedelta(days=90)),
        ("1w2d3h4m5s", timedelta(weeks=1, days=2, hours=3, minutes=4, seconds=5)),
        ("0s", timedelta(0)),
        ("36h", timedelta(hours=36)),
    ],
)
def test_duration(text: str, duration: timedelta) -> None:
    """A duration is read, and written so that it reads as the same."""
    assert duration == parse_duration(text)
    assert duration == parse_duration(duration_text(duration))


@pytest.mark.parametrize(
    "text", ["", "90", "d", "1y", "-1d", "1d 2h", "1h1d", "1.5h", "1d1d", "٣d"]
)
def test_no_duration(text: str) -> None:
    """Anything else is refused."""
    with pytest.raises(ValueError):
        parse_duration(text)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        (Setting(str), ""),
        (Setting(int), True),
        (Setting(int), -1),
        (Setting(int), 1.5),
        (Setting(bool), 1),
        (Setting(list), []),
        (Setting(list), ["a", 1]),
        (Setting(dict), {"a": 1}),
        (Setting(timedelta), "0s"),
        (Setting(timedelta), 90),
        (Setting(Path), ""),
        (Setting(Path), "a\0b"),
    ],
)
def test_wrong_type(setting: Setting, value: object) -> None:
    """A value of another type is a problem, and is left out."""
    found: list[str] = []
    assert {} == read_settings({"x": value}, {"x": setting}, place="here", problems=found)
    assert 1 == len(found)
    assert found[0].startswith("here: x is ")


def test_home_in_a_path() -> None:
    """A path may begin with the home directory."""
    found: list[str] = []
    read = read_settings(
        {"x": "~/key", "y": "key"},
        {"x": Setting(Path), "y": Setting(Path)},
        place="here",
        directory="/plans",
        problems=found,
    )
    assert {"x": Path(os.path.expanduser("~/key")), "y": Path("/plans/key")} == read


@pytest.mark.parametrize(
    ("clue", "names"),
    [
        ("secret=bin*", ["binance"]),
        ("owner=execution desk", ["binance", "backup"]),
        ("consumer=gateway", ["binance"]),
        ("host=db1", ["backup"]),
        ("host=db", []),
        ("host=db1.desk.example", ["backup"]),
        ("host=10.1.2.3", ["backup"]),
        ("host=10", []),
        ("path=secret/venues/*", ["binance"]),
        ("key=secret/venues/binance", ["binance"]),
        ("key=nothing", []),
    ],
)
def test_what_a_compromise_touched(path: Path, clue: str, names: list[str]) -> None:
    """A clue finds the secrets whose settings it names."""
    assert names == Compromise.parse([clue]).secrets(read_plan(path))


def test_clue_that_is_none() -> None:
    """Another word is refused."""
    with pytest.raises(ValueError, match="says nothing of a compromise"):
        Compromise.parse(["colour=blue"])
