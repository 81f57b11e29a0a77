"""Secret: what it shows, what it refuses, and what becomes of a reader when it is closed."""

import copy
import dataclasses
import json
import pickle
import pprint
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest

pytest.importorskip("hvac")

from tapeseal.secret import Secret
from tapeseal.vault.lease import Credential

CANARY = "canary-of-secret-5d1b-88e0"


@pytest.fixture
def secret() -> Secret:
    """A secret of a text."""
    return Secret.take(bytearray(CANARY.encode()))


@pytest.mark.parametrize(
    "show",
    [
        repr,
        str,
        "{:>40}".format,
        pprint.pformat,
        lambda secret: f"{secret!r} {secret.buffer} {secret.__getstate__()}",
        lambda secret: json.dumps({"key": secret}, default=str),
        lambda secret: repr(Credential("user", secret, None)),
    ],
)
def test_what_shows_it_shows_nothing(secret: Secret, show: Callable[[Secret], str]) -> None:
    """Whatever makes a text of it has no part of the value."""
    assert CANARY[:8] not in show(secret)


@pytest.mark.parametrize(
    "take",
    [
        pickle.dumps,
        json.dumps,
        copy.copy,
        copy.deepcopy,
        vars,
        hash,
        list,
        lambda secret: bytes(secret.buffer),
        lambda secret: pickle.dumps(secret.buffer),
        lambda secret: copy.deepcopy(secret.buffer),
        lambda secret: dataclasses.asdict(Credential("user", secret, None)),
    ],
)
def test_what_takes_it_out_is_refused(secret: Secret, take: Callable[[Secret], Any]) -> None:
    """What would have a copy of the value somewhere else is an error, without the value."""
    with pytest.raises((TypeError, BufferError)) as caught:
        take(secret)
    assert CANARY[:8] not in repr(caught.value)


@pytest.mark.parametrize("read", [Secret.expose, Secret.copy])
def test_closed_while_it_is_read(secret: Secret, read: Callable[[Secret], Any]) -> None:
    """A reader that another thread wipes the secret under gets an error, never zeros."""

    def trace(frame: FrameType, event: str, value: Any) -> Any:
        if frame.f_code is not read.__code__:
            return None
        if event == "line" and "view" in frame.f_locals:
            secret.close()
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        with pytest.raises(ValueError, match="closed"):
            read(secret)
    finally:
        sys.settrace(before)
    assert secret.closed
