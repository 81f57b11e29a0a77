"""Texts that look like secrets, in files that should hold none."""

import os
import re
import subprocess
from collections.abc import Iterator, Sequence
from typing import NamedTuple

# Those of detect-secrets that know a form; the rest of them takes every long random-looking word for a secret.
_DETECTORS = (
    *("AWSKeyDetector", "AzureStorageKeyDetector", "BasicAuthDetector", "GitHubTokenDetector"),
    *(
        "GitLabTokenDetector",
        "JwtTokenDetector",
        "KeywordDetector",
        "NpmDetector",
        "OpenAIDetector",
    ),
    *("PrivateKeyDetector", "PypiTokenDetector", "SlackDetector", "StripeDetector"),
)
# What its detector of keywords takes for a value, and is none.
_FILTERS = (
    *("is_indirect_reference", "is_likely_id_string", "is_not_alphanumeric_string"),
    *("is_potential_uuid", "is_sequential_string", "is_templated_secret"),
)
_RULES = (
    ("Vault token", re.compile(rb"\b(?:hv[sbr]\.[A-Za-z0-9_-]{24,}|[sbr]\.[A-Za-z0-9]{24}\b)")),
    ("Vault unseal key", re.compile(rb"(?i)unseal[ _-]?key[^\n]{0,12}[:=]\s*[A-Za-z0-9+/]{43,}")),
    ("tapeseal key file", re.compile(rb"^tapeseal-keys v[0-9]", re.MULTILINE)),
    ("password in a URL", re.compile(rb"\b[a-z][a-z0-9+.-]*://[^\s:/@'\"]+:[^\s:/@'\"$<{]{6,}@")),
)
_ALLOWED = re.compile(rb"pragma: allowlist secret|tapeseal: no secret")
# In Python a type may stand in quotes behind a name such as "password" and a colon.
_TYPE = re.compile(r"[A-Z][A-Za-z.]*(\[[A-Za-z., ]+\])?( \| None)?")
_MAX_SIZE = 1 << 24


class Finding(NamedTuple):
    """Something that looks like a secret; what it is, stays where it is."""

    path: str
    line: int
    kind: str


def scan_files(paths: Sequence[str]) -> Iterator[Finding]:
    """Yield what looks like a secret in files, in their order; files that are not text or too large are passed over."""
    from detect_secrets.core.secrets_collection import SecretsCollection
    from detect_secrets.settings import transient_settings

    settings = {
        "plugins_used": [{"name": name} for name in _DETECTORS],
        "filters_used": [{"path": f"detect_secrets.filters.heuristic.{name}"} for name in _FILTERS],
    }
    for path in paths:
        if not os.path.isfile(path) or os.path.getsize(path) > _MAX_SIZE:
            continue
        with open(path, "rb") as file:
            text = file.read()
        if b"\0" in text[:8192]:
            continue
        lines = text.split(b"\n")
        found = {
            Finding(path, text.count(b"\n", 0, match.start()) + 1, kind)
            for kind, rule in _RULES
            for match in rule.finditer(text)
        }
        with transient_settings(settings):
            known = SecretsCollection()
            known.scan_file(path)
            found |= {
                Finding(path, each.line_number, each.type)
                for _, each in known
                if not _is_type(path, lines[each.line_number - 1], each.secret_value)
            }
        yield from sorted(each for each in found if not _ALLOWED.search(lines[each.line - 1]))


def _is_type(path: str, line: bytes, value: str | None) -> bool:
    """Whether a value is the annotation of a name in Python."""
    if not path.endswith((".py", ".pyi")) or not value or not _TYPE.fullmatch(value):
        return False
    return (
        re.search(rb"\b\w+: \"%b\"(?! = (?!None\b))" % re.escape(value.encode()), line) is not None
    )


def tracked_files(paths: Sequence[str]) -> Iterator[str]:
    """Yield the files that are meant: of a folder those that git tracks, or all of them where there is no git."""
    for path in paths:
        if not os.path.isdir(path):
            if not os.path.lexists(path):
                raise FileNotFoundError(2, "there is no such file", path)
            yield path
            continue
        listed = subprocess.run(
            ["git", "-C", path, "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            capture_output=True,
            check=False,
        )
        if listed.returncode == 0:
            names = [os.fsdecode(name) for name in listed.stdout.split(b"\0") if name]
            yield from (os.path.join(path, name) for name in sorted(names))
        else:
            for folder, _, entries in os.walk(path):
                yield from (os.path.join(folder, entry) for entry in sorted(entries))
