"""Texts for logs, journals and messages, without what is in a credential."""

from collections.abc import Mapping
from typing import Final

from tapeseal.secret import Secret
from tapeseal.transport.foreign_text import plain

# A shorter part, such as a user's "app", is in many an innocent word.
_LEAST_LENGTH: Final = 6


def without(text: str, *credentials: Mapping[str, Secret] | None) -> str:
    """Return a text of somebody else on one line, without the parts of credentials that are in it.

    A Secret that is closed hides nothing.
    """
    data = text.encode(errors="replace")
    for credential in credentials:
        for secret in (credential or {}).values():
            if secret.closed or len(secret.buffer) < _LEAST_LENGTH:
                continue
            with secret.buffer, memoryview(secret.buffer) as view:
                while (at := data.find(view)) >= 0:
                    data = data[:at] + "…".encode() + data[at + len(view) :]
    return plain(data.decode(errors="replace"))
