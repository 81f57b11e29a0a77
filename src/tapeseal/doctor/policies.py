"""What a policy of Vault grants beyond what anybody needs."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

_TOKEN = re.compile(
    r"""(?P<comment>\#[^\n]*|//[^\n]*|/\*.*?\*/)|(?P<string>"(?:[^"\\\n]|\\.)*")"""
    r"""|(?P<word>[A-Za-z_][A-Za-z0-9_-]*)|(?P<number>-?[0-9][0-9.]*)|(?P<sign>[{}\[\]=,:])|(?P<space>\s+)""",
    re.DOTALL,
)
# What the older `policy = "write"` stands for.
_OLD: Final[Mapping[str, tuple[str, ...]]] = {
    "deny": ("deny",),
    "read": ("read", "list"),
    "write": ("create", "read", "update", "delete", "list"),
    "sudo": ("create", "read", "update", "delete", "list", "sudo"),
}
WRITES: Final = frozenset({"create", "update", "patch", "delete"})

_ANY = "ANY"
_POWERS: Final = (
    (f"sys/policies/acl/{_ANY}", "writes policies, and so gives itself everything"),
    (f"sys/policy/{_ANY}", "writes policies, and so gives itself everything"),
    (f"sys/auth/{_ANY}", "mounts and tunes auth methods, by which anybody logs in"),
    (f"sys/audit/{_ANY}", "switches audit devices off"),
    *(
        (f"auth/{_ANY}/{kind}/{_ANY}", "makes logins with policies of its choice")
        for kind in ("role", "users", "groups", "certs")
    ),
)
_SECRET_ID: Final = f"auth/{_ANY}/role/{_ANY}/secret-id"


@dataclass
class Rule:
    """What a policy grants on a path."""

    path: str
    capabilities: frozenset[str] = frozenset()
    settings: frozenset[str] = field(default_factory=frozenset)
    """The names of what else stands there, such as min_wrapping_ttl."""


def parse(text: str) -> list[Rule]:
    """Read a policy in HCL or JSON.

    Raises:
        ValueError: it is neither.
    """
    if text.lstrip().startswith("{"):
        return _from_json(text)
    tokens = list(_tokens(text))
    rules = []
    at = 0
    while at < len(tokens):
        # A rule is: path "…" { … }. What else stands there, such as a name, is passed over.
        if tokens[at : at + 1] == ["path"] and tokens[at + 2 : at + 3] == ["{"]:
            stop = _end(tokens, at + 2)
            rules.append(_rule(json.loads(tokens[at + 1]), tokens[at + 3 : stop]))
            at = stop
        at += 1
    return rules


def _tokens(text: str) -> Iterator[str]:
    at = 0
    while at < len(text):
        found = _TOKEN.match(text, at)
        if found is None:
            raise ValueError("it is no policy in HCL")
        at = found.end()
        if found.lastgroup not in ("comment", "space"):
            yield found[0]


def _end(tokens: list[str], start: int) -> int:
    depth = 0
    for at in range(start, len(tokens)):
        depth += {"{": 1, "}": -1}.get(tokens[at], 0)
        if depth == 0:
            return at
    raise ValueError("a rule of it does not end")


def _rule(path: str, tokens: list[str]) -> Rule:
    rule = Rule(path)
    names = set()
    depth = 0
    for at, token in enumerate(tokens):
        depth += {"{": 1, "}": -1}.get(token, 0)
        if depth == 0 and tokens[at + 1 : at + 2] in (["="], ["{"]):
            name = token.strip('"')
            names.add(name)
            values = tokens[at + 2 :]
            if name == "capabilities" and values[:1] == ["["]:
                listed = values[1 : values.index("]")]
                rule.capabilities = frozenset(
                    each.strip('"').lower() for each in listed if each != ","
                )
            elif name == "policy" and values:
                rule.capabilities = frozenset(_OLD.get(values[0].strip('"'), ()))
    rule.settings = frozenset(names - {"capabilities", "policy"})
    return rule


def _from_json(text: str) -> list[Rule]:
    document = json.loads(text)
    paths = document.get("path", {}) if isinstance(document, dict) else None
    if not isinstance(paths, dict) or not all(isinstance(each, dict) for each in paths.values()):
        raise ValueError("it is no policy in JSON")
    rules = []
    for path, content in paths.items():
        granted = content.get("capabilities") or _OLD.get(str(content.get("policy")), ())
        settings = frozenset(content.keys() - {"capabilities", "policy"})
        rules.append(Rule(path, frozenset(str(name).lower() for name in granted), settings))
    return rules


def covers(pattern: str, path: str) -> bool:
    """Whether a rule's path, with `+` for a segment and `*` at its end, matches a path."""
    expression = "/".join(
        "[^/]+" if each == "+" else re.escape(each) for each in pattern.removesuffix("*").split("/")
    )
    return re.fullmatch(expression + (".*" if pattern.endswith("*") else ""), path) is not None


def excesses(rule: Rule) -> Iterator[tuple[str, str]]:
    """Yield (severity, what is wrong) of a rule that grants more than anybody needs."""
    granted = rule.capabilities - {"deny"}
    if not granted or "deny" in rule.capabilities:
        return
    path = rule.path.lstrip("/")
    head = path.partition("/")[0]
    shown = ", ".join(sorted(granted))
    if head in ("*", "+"):
        yield "serious", f'"{rule.path}" grants {shown} on every mount'
        return
    if head.endswith("*"):
        yield "serious", f'"{rule.path}" grants {shown} on every mount of such a name'
        return
    powers = [
        what
        for target, what in _POWERS
        if granted & WRITES and covers(path, _on_mount(target, path))
    ]
    if powers:
        yield "serious", f'"{rule.path}" with {shown}: whoever has it {powers[0]}'
    elif (
        granted & WRITES
        and covers(path, _on_mount(_SECRET_ID, path))
        and "min_wrapping_ttl" not in rule.settings
    ):
        yield (
            "warning",
            f'"{rule.path}" with {shown}: whoever has it logs in as every role, for it makes unwrapped secret ids',
        )
    elif "sudo" in granted and granted & WRITES and not path.startswith("sys/leases/"):
        yield "warning", f'"{rule.path}" has sudo with {shown}'


def _on_mount(target: str, path: str) -> str:
    """Return a path of _POWERS below the auth method that a rule names."""
    parts = path.split("/")
    if len(parts) > 1 and parts[0] == "auth" and parts[1].strip("+*") == parts[1]:
        return target.replace(f"auth/{_ANY}/", f"auth/{parts[1]}/")
    return target
