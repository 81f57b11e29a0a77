"""What a service said, made fit for a message of ours."""

import re
from typing import Final

MAX_LENGTH: Final = 240

# What may be a key, a token or a password; an ARN, which may be as long, says whom a policy refused.
_SECRET_LIKE = re.compile(
    r"(arn:aws[a-z-]*:[a-z]+:[a-z0-9-]*:[0-9]*:[\w+=,.@/-]+)"
    r"|\b(?:hv)?[sbr]\.[A-Za-z0-9_-]{20,}"
    r"|[A-Za-z0-9+/=_-]{40,}"
    r"|(?<=//)[^/@\s]+(?=@)"
)


def plain(text: str) -> str:
    """Return text on one line, cut at MAX_LENGTH, without what could be a token, a key or a password."""
    text = _SECRET_LIKE.sub(lambda found: found[1] or "…", text[:4096])
    text = " ".join("".join(each if each.isprintable() else " " for each in text).split())
    return text if len(text) <= MAX_LENGTH else text[:MAX_LENGTH] + "…"
