"""A reserve of data keys: recording goes on while the service that wraps them is away (docs/reserve.md)."""

import hashlib
import logging
import math
import random
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, NoReturn

from tapeseal import audit
from tapeseal._core import check_process, process_epoch
from tapeseal.closing import Closing
from tapeseal.datakey import DataKey, Keyring
from tapeseal.errors import (
    ContextMismatchError,
    ForkError,
    LimitError,
    ReserveExhaustedError,
    TapesealError,
)
from tapeseal.layout import Recipient, build_recipients, check_context

_log = logging.getLogger(__name__)

# The present rate is that of so many seconds, looked at once in so many.
RATE_SECONDS = 60.0
TICK_SECONDS = 1.0
# After a failure the service is asked again after a time that doubles between these, less a random half.
MIN_RETRY_SECONDS = 0.5
MAX_RETRY_SECONDS = 30.0
# A service that takes longer to answer counts as away.
SLOW_SECONDS = 3.0
# Unwrapped keys that are kept, each in a locked page of its own, and keys whose use is remembered.
MAX_UNWRAPPED = 256
MAX_REMEMBERED = 4096
# Rows are given allowances for about so many bytes at a time.
MORE_SIZE = 1 << 20


@dataclass(frozen=True)
class OutageBudget:
    """How far a reserve gets without its service: until the first of the limits of all its keys is reached."""

    seconds: float
    """How long it can go on at the present rate."""
    bytes: int
    """How many bytes its keys may still encrypt, as long as they last."""
    bytes_per_second: float
    """The present rate: the mean of the last minute."""


class _Allowance:
    """What may still be encrypted under one data key, of all tapes that share it."""

    def __init__(self, reserve: "DataKeyReserve", expires: float) -> None:
        self.spent: str | None = None
        self.expires = expires
        self.messages = reserve.max_messages
        self.bytes = reserve.max_bytes
        self._reserve = reserve
        self._epoch = reserve._epoch
        self._lock = reserve._lock
        self._clock = reserve.clock

    def take(self, messages: int, size: int) -> None:
        check_process(self._epoch)
        with self._lock:
            self._take(messages, size)

    def take_more(self, messages: int, size: int) -> int:
        check_process(self._epoch)
        with self._lock:
            # At the end no key is given up for the sake of what nobody asked for.
            room = min(MORE_SIZE // size, self.messages // 8, self.bytes // 8 // size)
            messages = max(messages, room)
            self._take(messages, messages * size)
            return messages

    def give_back(self, size: int) -> None:
        check_process(self._epoch)
        with self._lock:
            self.bytes += size
            self._reserve._used_bytes -= size

    def _take(self, messages: int, size: int) -> None:
        if (
            messages > self.messages
            or size > self.bytes
            or self.spent
            or self._clock() >= self.expires
        ):
            self._refuse(messages, size)
        self.messages -= messages
        self.bytes -= size
        self._reserve._used_messages += messages
        self._reserve._used_bytes += size

    def _refuse(self, messages: int, size: int) -> NoReturn:
        reserve = self._reserve
        if messages > reserve.max_messages or size > reserve.max_bytes:
            raise ValueError(
                f"{messages} messages of {size} bytes at once, where the reserve allows a data key "
                f"max_messages={reserve.max_messages} and max_bytes={reserve.max_bytes}; a frame counts as a full one"
            )
        self.check_age(self._clock())
        if not self.spent:
            done = (
                f"{reserve.max_messages} messages"
                if messages > self.messages
                else f"{reserve.max_bytes} bytes"
            )
            reserve._spend(self, f"has encrypted its {done}")
        raise LimitError(self.spent)

    def check_age(self, now: float) -> None:
        if not self.spent and now >= self.expires:
            self._reserve._spend(self, f"is {self._reserve.max_age_seconds:g} seconds old")


class _Ready(NamedTuple):
    """A data key to be given out."""

    data_key: DataKey
    recipients: list[Recipient]
    allowance: _Allowance
    refresh_at: float
    """From when on another one is wanted in its place."""


@dataclass
class _Unwrapped:
    """An unwrapped data key that is kept."""

    data_key: DataKey
    expires: float
    uses: int


class _Flight:
    """A call to unwrap for which other threads wait."""

    def __init__(self) -> None:
        self.done = threading.Event()
        self.error: Exception | None = None


class DataKeyReserve(Closing):
    """A keyring that keeps data keys of another one ready, and asks that one for them in the background alone.

    One data key serves many tapes, each of which derives keys of its own from it, up to the limits below. A tape that
    meets them raises LimitError before it takes a record too many; Recorder goes on in a new tape. Once the first key
    is there, generate() never waits: where no key is left, it fails until the service gives one again.

    Its threads run until close(), which also wipes the keys that no tape has open. Threads may share it; a fork may
    not.

    Args:
        keyring: makes, wraps and unwraps the data keys.
        encryption_context: of all tapes that the reserve is for; None: none.
        ready: data keys that are kept besides the one in use.
        max_age_seconds: how long after it was made a data key may encrypt; it is replaced in the second quarter of
            that time, so that half of it remains when the service goes away.
        max_bytes: plaintext that may be encrypted under one data key; a frame that is begun counts as a full one
            until it is flushed.
        max_messages: frames and rows that may be encrypted under one data key.
        unwrap_max_age_seconds: how long an unwrapped data key is kept.
        unwrap_max_uses: how often an unwrapped data key is given out.

    Raises:
        ValueError: a limit that is not above 0, or an encryption context that the format does not allow.
    """

    clock: Callable[[], float] = staticmethod(time.monotonic)

    def __init__(
        self,
        keyring: Keyring,
        encryption_context: Mapping[str, str] | None = None,
        *,
        ready: int = 2,
        max_age_seconds: float = 3600,
        max_bytes: int = 1 << 40,
        max_messages: int = 1 << 32,
        unwrap_max_age_seconds: float = 3600,
        unwrap_max_uses: int = 1000,
    ) -> None:
        self._closed = True
        limits = {
            "ready": ready,
            "max_age_seconds": max_age_seconds,
            "max_bytes": max_bytes,
            "max_messages": max_messages,
            "unwrap_max_age_seconds": unwrap_max_age_seconds,
            "unwrap_max_uses": unwrap_max_uses,
        }
        for name, limit in limits.items():
            if not limit > 0:
                raise ValueError(f"{name} must be above 0")
        self.encryption_context = dict(encryption_context or {})
        """The one that the reserve is for."""
        check_context(self.encryption_context)
        self.keyring = keyring
        self.ready = ready
        self.max_age_seconds = max_age_seconds
        self.max_bytes = max_bytes
        self.max_messages = max_messages
        self.unwrap_max_age_seconds = unwrap_max_age_seconds
        self.unwrap_max_uses = unwrap_max_uses

        # Guards all below. Nobody holds it while a service is asked.
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._epoch = process_epoch()
        # In the order of their age; the first is in use.
        self._keys: list[_Ready] = []
        self._unwrapped: OrderedDict[bytes, _Unwrapped] = OrderedDict()
        self._flights: dict[bytes, _Flight] = {}
        # By what names the wrapped key, so that no key starts anew by being unwrapped.
        self._allowances: OrderedDict[bytes, _Allowance] = OrderedDict()
        self._used_messages = 0
        self._used_bytes = 0
        # (time, messages, bytes) of the last RATE_SECONDS.
        self._samples: deque[tuple[float, int, int]] = deque()
        self._started = False
        # Of the service: since when it is being asked, since when it was asked in vain, and how often.
        self._asked_at: float | None = None
        self._failing_since = 0.0
        self._failures = 0
        self._error: Exception | None = None
        self._retry_at = 0.0
        # The last budget in the log; infinite: the service is not away.
        self._logged_seconds = math.inf
        self._is_exhausted = False
        self._counts = {"generated": 0, "generate_failures": 0, "unwrapped": 0, "unwrap_hits": 0}

        self._closed = False
        self._threads = [
            threading.Thread(target=run, name=f"tapeseal reserve {run.__name__}", daemon=True)
            for run in (self._watch, self._refill)
        ]
        for thread in self._threads:
            thread.start()

    def generate(self, encryption_context: Mapping[str, str]) -> tuple[DataKey, list[Recipient]]:
        """Give out the data key in use; only before there was a first one, wait for it.

        Raises:
            ReserveExhaustedError: the last key is used up or too old, and the service gave no other so far.
            ContextMismatchError: the encryption context is not the reserve's.
            ForkError: this process is a fork of the one that made the reserve.
            ValueError: the reserve is closed.
            Others as the keyring's generate(), for the first key.
        """
        self._check_context(encryption_context)
        with self._locked():
            # The keyring has a deadline of its own, so this ends.
            self._changed.wait_for(lambda: self._started or self._error or self._closed)
            self._check_open()
            now = self.clock()
            self._retire(now)
            if self._keys:
                first = self._keys[0]
                self._is_exhausted = False
                return first.data_key.share(), list(first.recipients)
            error = _again(self._error) if self._error is not None else None
            if error is None or self._started:
                error = self._exhausted(now)
            is_news, self._is_exhausted = not self._is_exhausted, True
        try:
            if is_news:
                # Once, for whoever records asks again with every record.
                with audit.operation("reserve.exhausted", repr(self.keyring)):
                    raise error
            raise error
        finally:
            del error  # Whose traceback holds this frame.

    def wrap(self, data_key: DataKey, encryption_context: Mapping[str, str]) -> list[Recipient]:
        """Wrap an existing data key as the keyring does, which is asked at once; errors as there and in generate()."""
        self._check_context(encryption_context)
        with self._locked():
            self._check_open()
        return self.keyring.wrap(data_key, encryption_context)

    def pending(self) -> list[Recipient]:
        """Name the recipients of wrap(); errors as the keyring's pending()."""
        return self.keyring.pending()

    def unwrap(
        self, recipients: Sequence[Recipient], encryption_context: Mapping[str, str]
    ) -> DataKey:
        """Unwrap the data key; the keyring is asked unless the key is known.

        Whoever unwraps a key while another thread already asks for it waits for that one's answer.

        Raises:
            ContextMismatchError, ForkError, ValueError: as generate().
            Others as the keyring's unwrap().
        """
        self._check_context(encryption_context)
        name = _name(recipients)
        while True:
            with self._locked():
                self._check_open()
                kept = self._kept(name, self.clock())
                if kept is not None:
                    return kept
                flight = self._flights.get(name)
                if flight is None:
                    flight = self._flights[name] = _Flight()
                    break
            flight.done.wait()
            if flight.error is not None:
                raise _again(flight.error)
        try:
            asked_at = self.clock()
            data_key = self.keyring.unwrap(recipients, encryption_context)
            with self._changed:
                self._counts["unwrapped"] += 1
                if self._closed:
                    data_key.close()
                self._check_open()
                data_key.allowance = self._allowance(name, asked_at)
                shared = data_key.share()
                self._keep(name, data_key, asked_at, 1)
                return shared
        except Exception as error:
            flight.error = _again(error)
            raise
        finally:
            with self._changed:
                del self._flights[name]
            flight.done.set()
            del flight  # Which the error's traceback would keep alive, and the other way round.

    @property
    def outage_budget(self) -> OutageBudget:
        """How far the reserve would get if the service went away now."""
        with self._locked():
            return self._budget(self.clock())

    def stats(self) -> dict[str, float]:
        """Return plain numbers for metrics.

        ready_keys counts the one in use; generated, generate_failures, unwrapped and unwrap_hits count from the
        start, the first three of them calls to the keyring; failing_seconds is how long it has given no key, 0 where
        it gave the last one it was asked for; the others are those of outage_budget.
        """
        with self._locked():
            now = self.clock()
            budget = self._budget(now)
            return {
                "ready_keys": len(self._keys),
                "failing_seconds": now - self._failing_since if self._is_away(now) else 0.0,
                "outage_budget_seconds": budget.seconds,
                "outage_budget_bytes": budget.bytes,
                "bytes_per_second": budget.bytes_per_second,
                **self._counts,
            }

    def close(self) -> None:
        """Stop the threads and give up all keys; closing again does nothing.

        What has no tape open is wiped now, the rest when its last tape is closed: those tapes take no more records,
        but can be flushed and sealed. Waits for a call to the service that is under way.
        """
        try:
            check_process(self._epoch)
        except ForkError:
            # A fork has neither the threads nor the keys, and maybe a lock that nobody gives up.
            return
        with self._changed:
            self._closed = True
            for allowance in self._allowances.values():
                if not allowance.spent:
                    self._spend(allowance, "belongs to a reserve that was closed")
            for each in self._keys:
                each.data_key.close()
            self._keys.clear()
            for name in list(self._unwrapped):
                self._forget(name)
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def __repr__(self) -> str:
        return f"<DataKeyReserve of {self.keyring!r}>"

    def __reduce__(self) -> str:
        raise TypeError("a DataKeyReserve is neither pickled nor copied")

    # Threads

    def _watch(self) -> None:
        """Do whatever the time asks for; what asks the service, and may hang, is another thread's."""
        while True:
            with self._changed:
                if self._closed:
                    return
                now = self.clock()
                for allowance in self._allowances.values():
                    allowance.check_age(now)
                self._retire(now)
                for name in [name for name, kept in self._unwrapped.items() if now >= kept.expires]:
                    self._forget(name)
                if not self._samples or now - self._samples[-1][0] >= TICK_SECONDS:
                    self._samples.append((now, self._used_messages, self._used_bytes))
                while now - self._samples[0][0] > RATE_SECONDS:
                    self._samples.popleft()
                if self._is_due(now):
                    self._changed.notify_all()
                line = self._log_line(now)
                if line is None:
                    self._changed.wait(self._next_event(now))
            if line is not None:
                # Without the lock: a log may be slow.
                _log.log(*line)

    def _next_event(self, now: float) -> float:
        """Return for how many seconds nothing will have to be done."""
        events = [now + TICK_SECONDS, self._retry_at]
        events += [each.expires for each in self._allowances.values() if not each.spent]
        events += [each.refresh_at for each in self._keys]
        events += [each.expires for each in self._unwrapped.values()]
        return min(event - now for event in events if event > now)

    def _refill(self) -> None:
        """Ask the keyring for data keys, one after the other, whenever there are too few."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._is_due(self.clock()))
                if self._closed:
                    return
                self._asked_at = asked_at = self.clock()
                if not self._failures:
                    self._failing_since = asked_at
            data_key = None
            try:
                with audit.operation("reserve.refill", repr(self.keyring)):
                    data_key, recipients = self.keyring.generate(self.encryption_context)
                name = _name(recipients)
            except Exception as error:
                if data_key is not None:
                    data_key.close()
                with self._changed:
                    self._failed(_again(error))
            else:
                with self._changed:
                    self._add(name, data_key, recipients, asked_at)

    # Under the lock

    def _locked(self) -> threading.Condition:
        """Return the lock, in the process that made it: another thread may have held it at a fork."""
        check_process(self._epoch)
        return self._changed

    def _check_context(self, encryption_context: Mapping[str, str]) -> None:
        if dict(encryption_context) != self.encryption_context:
            raise ContextMismatchError(
                f"this reserve is for the encryption context {self.encryption_context!r:.400}, "
                f"not for {dict(encryption_context)!r:.400}: each needs a reserve of its own"
            )

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError("the reserve is closed")

    def _is_due(self, now: float) -> bool:
        return now >= self._retry_at and self._fresh(now) <= self.ready

    def _is_away(self, now: float) -> bool:
        slow = self._asked_at is not None and now - self._asked_at >= SLOW_SECONDS
        return self._failures > 0 or slow

    def _fresh(self, now: float) -> int:
        return sum(not each.allowance.spent and now < each.refresh_at for each in self._keys)

    def _retire(self, now: float) -> None:
        """Drop the keys that encrypt no more, and those that others have come for."""
        enough = self._fresh(now) > self.ready
        kept = []
        for each in self._keys:
            each.allowance.check_age(now)
            if each.allowance.spent or (enough and now >= each.refresh_at):
                each.data_key.close()
            else:
                kept.append(each)
        self._keys = kept

    def _spend(self, allowance: _Allowance, reason: str) -> None:
        allowance.spent = f"the data key {reason}: go on in a new tape, as Recorder does"
        self._changed.notify_all()

    def _allowance(self, name: bytes, now: float) -> _Allowance:
        """Return the allowance of a key, a new one where the key is not known."""
        allowance = self._allowances.get(name)
        if allowance is None:
            allowance = self._allowances[name] = _Allowance(self, now + self.max_age_seconds)
            if len(self._allowances) > MAX_REMEMBERED:
                in_use = [each.allowance for each in self._keys]
                oldest = next(key for key, each in self._allowances.items() if each not in in_use)
                forgotten = self._allowances.pop(oldest)
                if not forgotten.spent:
                    self._spend(forgotten, f"is followed by {MAX_REMEMBERED} others")
        return allowance

    def _add(
        self, name: bytes, data_key: DataKey, recipients: list[Recipient], asked_at: float
    ) -> None:
        self._counts["generated"] += 1
        self._started, self._asked_at, self._failures, self._error = True, None, 0, None
        if self._closed:
            data_key.close()
            return
        data_key.allowance = allowance = self._allowance(name, asked_at)
        # Not all at the same time, here and in other processes.
        refresh_at = asked_at + self.max_age_seconds * random.uniform(0.25, 0.5)
        self._keys.append(_Ready(data_key, list(recipients), allowance, refresh_at))
        self._keep(name, data_key.share(), asked_at, 0)
        self._changed.notify_all()

    def _failed(self, error: Exception) -> None:
        now = self.clock()
        self._asked_at, self._error = None, error
        self._counts["generate_failures"] += 1
        self._failures += 1
        pause = min(MAX_RETRY_SECONDS, MIN_RETRY_SECONDS * 2 ** min(self._failures - 1, 16))
        self._retry_at = now + pause * random.uniform(0.5, 1)
        self._changed.notify_all()

    def _kept(self, name: bytes, now: float) -> DataKey | None:
        """Give out an unwrapped key that is kept."""
        kept = self._unwrapped.get(name)
        if kept is None:
            return None
        if now >= kept.expires or kept.uses >= self.unwrap_max_uses:
            self._forget(name)
            return None
        kept.uses += 1
        self._unwrapped.move_to_end(name)
        self._counts["unwrap_hits"] += 1
        return kept.data_key.share()

    def _keep(self, name: bytes, data_key: DataKey, asked_at: float, uses: int) -> None:
        self._unwrapped[name] = _Unwrapped(data_key, asked_at + self.unwrap_max_age_seconds, uses)
        if len(self._unwrapped) > MAX_UNWRAPPED:
            self._forget(next(iter(self._unwrapped)))

    def _forget(self, name: bytes) -> None:
        self._unwrapped.pop(name).data_key.close()

    def _budget(self, now: float) -> OutageBudget:
        message_rate = byte_rate = 0.0
        if self._samples:
            then, messages, size = self._samples[0]
            passed = max(TICK_SECONDS, now - then)
            message_rate = max(0.0, (self._used_messages - messages) / passed)
            byte_rate = max(0.0, (self._used_bytes - size) / passed)
        seconds, left = 0.0, 0
        for each in self._keys:
            allowance = each.allowance
            if allowance.spent or now >= allowance.expires:
                continue
            left += allowance.bytes
            # The keys are used one after the other, each up to the first of its limits.
            lasts = min(
                allowance.bytes / byte_rate if byte_rate else math.inf,
                allowance.messages / message_rate if message_rate else math.inf,
            )
            seconds = max(seconds, min(seconds + lasts, allowance.expires - now))
        return OutageBudget(seconds, left, byte_rate)

    def _log_line(self, now: float) -> tuple[int, str] | None:
        """Return what the log is to say: that the budget is half of what it said last, or that the service is back."""
        if not self._is_away(now):
            if self._logged_seconds == math.inf:
                return None
            self._logged_seconds = math.inf
            return logging.INFO, "the service gives data keys again"
        budget = self._budget(now)
        if self._logged_seconds == 0 or budget.seconds > self._logged_seconds / 2:
            return None
        self._logged_seconds = budget.seconds
        return (
            logging.WARNING if budget.seconds else logging.ERROR,
            f"outage budget: {budget.seconds:.0f} seconds, {budget.bytes} bytes (at present "
            f"{budget.bytes_per_second:.0f} a second); no new data key for {now - self._failing_since:.0f} seconds: "
            f"{_described(self._error)}",
        )

    def _exhausted(self, now: float) -> ReserveExhaustedError:
        if not self._is_away(now):
            return ReserveExhaustedError(
                "the reserve has no data key left: they are used up faster than new ones come; "
                "raise max_bytes, max_messages or ready"
            )
        return ReserveExhaustedError(
            f"the reserve has no data key left, and the service gave none for {now - self._failing_since:.0f} "
            f"seconds ({_described(self._error)}); it is asked again and again, and what was appended is safe"
        )


def _name(recipients: Sequence[Recipient]) -> bytes:
    """Return what names a wrapped key: the reserve has but one encryption context."""
    return hashlib.sha256(build_recipients(recipients)).digest()


def _again(error: Exception) -> Exception:
    """Return the same error without its traceback, whose frames hold more than it does."""
    again = type(error).__new__(type(error), *error.args)
    again.__dict__.update(error.__dict__)
    return again


def _described(error: Exception | None) -> str:
    """Return an error as text; of one that is not ours only the kind, for nobody looked at what it says."""
    if error is None:
        return "no answer so far"
    kind = type(error).__name__
    return f"{kind}: {error}" if isinstance(error, TapesealError) else kind
