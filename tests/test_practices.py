"""The pages that say which command and which test shows what: each of them is there."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from tapeseal.cli.app import cli

TESTS = Path(__file__).parent
DOCS = TESTS.parent / "docs"
PAGES = ["practices.md", "runbook.md", "leases.md"]


def read(page: str) -> str:
    """Return the text of a page, which tests of an installed wheel may lack."""
    if not DOCS.exists():
        pytest.skip("docs/ is not beside these tests")
    return (DOCS / page).read_text()


def commands(text: str) -> Iterator[list[str]]:
    """Yield the words of each of our commands, in blocks and in lines."""
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    for line in [*lines, *re.findall(r"`([^`\n]*)`", text)]:
        if line.startswith("tapeseal "):
            yield shlex.split(line, comments=True)


def problem(words: list[str]) -> str | None:
    """Say which command or option of a line is not there."""
    command: click.Command = cli
    rest = words[1:]
    while isinstance(command, click.Group) and rest:
        found = command.get_command(click.Context(command), rest[0])
        if found is None:
            return f"{words}: no command {rest[0]}"
        command, rest = found, rest[1:]
    options = {name for each in command.params for name in (*each.opts, *each.secondary_opts)}
    own = rest[: rest.index("--")] if "--" in rest else rest
    unknown = [word for word in own if re.match("--?[a-z]", word) and word not in options]
    return f"{words}: no option {unknown}" if unknown else None


@pytest.mark.parametrize("page", PAGES)
def test_commands_are_there(page: str) -> None:
    """Each command that a page names is one, with these options."""
    found = list(commands(read(page)))
    assert found
    assert [] == [text for words in found if (text := problem(words))]


def test_fifteen_practices_and_their_tests() -> None:
    """Each of the fifteen has a command, a test that is there and a page that is there."""
    rows = [line for line in read("practices.md").splitlines() if re.match(r"\| \d+ \|", line)]
    assert list(range(1, 16)) == [int(line.split("|")[1]) for line in rows]
    for line in rows:
        _, _, _, _, command, test, page, _ = line.split("|")
        assert "`tapeseal " in command
        assert ".md)" in page
        file = ""
        named = re.findall(r"`(test_\w+\.py)?(?:::(test_\w+))?`", test)
        assert named
        for name, function in named:
            file = name or file
            text = (TESTS / file).read_text()
            assert not function or f"def {function}(" in text, f"{file}::{function}"


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    """Each link between pages leads to one that is there."""
    links = re.findall(r"\]\(([\w./-]+\.(?:md|py))", read(page))
    assert [] == [link for link in links if not (DOCS / link).exists()]


def test_nothing_is_left_to_fill_in() -> None:
    """No page has a gap."""
    assert [] == [page for page in PAGES if "TODO" in read(page)]
