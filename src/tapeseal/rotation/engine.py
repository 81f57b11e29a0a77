"""The engine: takes rotations through their steps, journaled, and back where they fail.

    claim      nobody else rotates the secret; what is in use is noted
    generate   the new credential is made, and kept in the claim
    store      it is put where consumers read it
    deploy     it is put where the targets take it from
    verify     the targets accept it
    adopt      every consumer has been seen on it
    revoke     the old credential is ended
    monitor    the new one is accepted, the old one refused
    clean      the claim is deleted

Up to `adopt` old and new credential are alive together, and a failure goes back: the old credential is deployed again
(restore), accepted again (recheck), and only then the new one is ended (discard).
"""

import concurrent.futures
import contextlib
import json
import logging
import random
import secrets as random_secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from tapeseal import audit
from tapeseal.errors import (
    AuditError,
    IrreversibleError,
    RotationError,
    ServiceUnavailableError,
    TapesealError,
    VaultRefusedError,
    VerificationError,
)
from tapeseal.rotation import consumers, journal, paths
from tapeseal.rotation.checks import make_check
from tapeseal.rotation.claims import Claim
from tapeseal.rotation.journal import Journal, Known, Record, Request, utc
from tapeseal.rotation.kinds import Credential, Live, Rotation, Services, make_kind
from tapeseal.rotation.plan import TIERS, Plan, PlannedSecret
from tapeseal.rotation.redaction import without
from tapeseal.rotation.schedule import HORIZON, Calendars, due
from tapeseal.rotation.targets import make_target

_Result = TypeVar("_Result")

logger = logging.getLogger("tapeseal.rotation")

STEPS: Final = (
    "claim", "generate", "store", "deploy", "verify", "adopt", "revoke", "monitor", "clean",
)  # fmt: skip
BACK: Final = ("restore", "recheck", "discard", "clean")

# What changes something that a consumer may feel waits for the window; what looks, and what goes back, does not.
_CHANGING: Final = {"claim", "generate", "store", "deploy", "revoke"}
# A failure of these goes back. Before, nothing was done; from `revoke` on there is no way back.
_REVERSIBLE: Final = {"generate", "store", "deploy", "verify"}

# What leaves a rotation as it is, to be gone on with: a step of which there is no audit entry counts as not done.
_LATER: Final = (ServiceUnavailableError, AuditError)

_NAMED: Final = "named"
"""The fact of a rotation by which settings the plan named the secret when it began."""
_AGAIN: Final = "again"
"""The fact of a rotation that it was open in an emergency, and is followed by another one."""

_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0
_FIRST_RETRY, _LONGEST_RETRY = timedelta(hours=1), timedelta(days=1)
_NEWS_EVERY = timedelta(days=1)
"""How often the service of a secret is asked what is in use."""
_NEWS_AFTER_FAILURE = timedelta(minutes=5)


@dataclass(frozen=True)
class Outcome:
    """What became of one secret in a run."""

    secret: str
    state: str
    """As the journal's, or "held": not begun, for its window is closed or its pair is busy; "failed": not begun."""
    record: Record | None = None
    held: datetime | None = None
    """Not before that; None: unknown."""
    error: str = ""

    @property
    def alarm(self) -> bool:
        """Whether somebody should look at it."""
        return bool(self.error or (self.record is not None and self.record.alarm))


class Engine:
    """Works on the rotations of a plan. A context manager: inside, no other runner works with this journal.

    Args:
        plan: the plan.
        journal: its journal.
        services: its services.
        calendars: the sessions of markets.
        now: the present in UTC.
        observe: called after each try of a step with the secret, the step, its seconds, and whether it went well.

    Raises:
        BlockingIOError: on entering, another runner has the journal.
    """

    def __init__(
        self,
        plan: Plan,
        journal: Journal,
        services: Services,
        *,
        calendars: Calendars | None = None,
        now: Callable[[], datetime] | None = None,
        observe: Callable[[PlannedSecret, str, float, bool], None] | None = None,
    ) -> None:
        self.plan = plan
        self.journal = journal
        self.services = services
        self.now = now or (lambda: datetime.now(UTC))
        self.calendars = calendars or Calendars(journal, self.now)
        self.observe = observe
        self.stop = threading.Event()
        """Set it, and each rotation ends with the step that it is at, to be taken up by the next run."""
        self.is_urgent = False
        """Whether it is at an emergency."""
        self._unknown_until: dict[str, datetime] = {}
        self._begin_lock = threading.Lock()
        self._pair_locks = {name: threading.Lock() for name in plan.pairs}
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        self._stack.enter_context(self.journal.running())
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.close()

    # What users call

    def run_due(self) -> Iterator[Outcome]:
        """Do what others asked for, go on with what is open, and begin what is due and may begin.

        Yields:
            What became of each of these secrets, as they end.
        """
        yield from self._answer_requests()
        open_records = self.journal.records(open_only=True)
        for name, record in open_records.items():
            if name not in self.plan.secrets:
                yield Outcome(
                    name,
                    record.state,
                    record,
                    error=f"a rotation of it is open ({record.step}), but it is not in the plan any more: put it back",
                )
        yield from self.refresh()
        yield from self._each(dict.fromkeys([*self.unfinished(), *self.due_now()]), self._go_on)

    def rotate(self, names: Iterable[str], *, reason: str = "") -> Iterator[Outcome]:
        """Rotate secrets now, if their windows are open; where a rotation is open, go on with it instead.

        Args:
            names: in the plan.
            reason: makes it an emergency: windows and offsets do not count, consumers are not waited for, and a secret
                whose rotation was open is rotated once more after it.

        Yields:
            What became of each, as they end.

        Raises:
            ValueError: the plan has no such secret.
        """
        names = self._check(names)
        if reason:
            yield from self._each(names, lambda secret: self._at_once(secret, reason))
        else:
            yield from self._each(names, self._go_on)

    def rollback(self, name: str) -> Outcome:
        """Go back to the old credential of an open rotation.

        Raises:
            ValueError: the plan has no such secret.
            RotationError: there is no open rotation, or its old credential is revoked.
        """
        self._check([name])
        record = self.journal.last(name)
        if record is None or not record.open:
            raise RotationError(
                f"{name}: no rotation is open, and the old secret of one that is finished is revoked: rotate it again"
            )
        if record.state != journal.ROLLING_BACK:
            if "revoke" in self.journal.begun(record.id):
                raise RotationError(
                    f"{name}: the old secret is revoked, or about to be, so there is no way back: rotate it again"
                )
            record.state, record.step, record.held = journal.ROLLING_BACK, "restore", None
            record.facts.pop(_AGAIN, None)
            record.error = journal.BY_COMMAND
            self.journal.write(record, "command", step="restore", now=self._seconds())
        return self._work(self.plan.secrets[name], record)

    def take_over(self, name: str) -> Outcome:
        """Go on with a rotation whose journal is lost, from its claim in Vault.

        Raises:
            ValueError: the plan has no such secret.
            RotationError: there is no claim, or this journal has an open rotation of it.
        """
        self._check([name])
        secret = self.plan.secrets[name]
        if name in self.journal.records(open_only=True):
            raise RotationError(f"{name}: this journal has an open rotation of it: run that")
        with contextlib.closing(self.claim(name, "")) as claim:
            claim.take_over()
            begun = ["claim", "generate"]
            if claim.new is not None:
                begun += ["store", "deploy", "verify", "adopt"]
            if claim.old is not None:
                begun.append("revoke")
            # From the store on each step may be done twice, so the first that may not be done is the next.
            step = "revoke" if claim.old is not None else "store"
            record = Record(
                claim.rotation,
                name,
                secret.kind,
                step if claim.new is not None else "generate",
                facts=dict(claim.facts),
                started=self._seconds(),
                made=None if claim.since is None else claim.since.timestamp(),
            )
        self.journal.begin(record)
        for each in begun:
            self.journal.write(record, "begin", step=each, now=self._seconds(), detail="taken over")
        return self._go_on(secret)

    def refresh(self, names: Iterable[str] | None = None) -> list[Outcome]:
        """Ask the services what is in use, and note it.

        Args:
            names: in the plan; None: those that nobody has looked at for a day, and that did not fail just now.

        Returns:
            The secrets of which it could not be learnt.
        """
        now, known = self.now(), self.journal.known()
        if names is None:
            names = [
                name
                for name in self.plan.secrets
                # What was seen in the future was seen by a clock that has been put right since.
                if (seen := known.get(name, Known()).seen) is None
                or not timedelta() <= now - seen < _NEWS_EVERY
                if now >= self._unknown_until.get(name, now)
            ]
        else:
            names = self._check(names)
        failed: list[Outcome] = []
        found: dict[str, Known] = {}

        def one(secret: PlannedSecret) -> None:
            before = known.get(secret.name, Known())
            try:
                found[secret.name] = _seen(
                    before, make_kind(secret.kind).live(secret, self.services), now
                )
            except Exception as error:
                text = describe(error)
                logger.error("%s: what is in use could not be learnt: %s", secret.name, text)
                self._unknown_until[secret.name] = now + _NEWS_AFTER_FAILURE
                failed.append(Outcome(secret.name, "failed", error=text))

        for _ in self._map([self.plan.secrets[name] for name in names], one):
            pass
        if found:
            self.journal.note(found, known)
        return failed

    def unfinished(self) -> list[str]:
        """Return the secrets whose rotations are open, or are to be followed by another one."""
        records = self.journal.records()
        return [
            name
            for name in self.plan.secrets
            if (record := records.get(name)) is not None and (record.open or _is_due_again(record))
        ]

    def due_now(self) -> list[str]:
        """Return the secrets that are due and may begin by now, those of the root tier first."""
        now, known = self.now(), self.journal.known()
        open_names = self.journal.records(open_only=True).keys()
        found = []
        for name, secret in self.plan.secrets.items():
            each = known.get(name)
            if name in open_names or each is None or each.seen is None:
                continue  # What could not be asked is not rotated on a guess.
            when = due(each.made, each.expires, secret.schedule, secret.before, now=now)
            if when > now or (each.retry is not None and now < each.retry <= now + _LONGEST_RETRY):
                continue
            if self.calendars.is_open(secret.window, now, secret.deadline):
                found.append((TIERS.index(secret.tier), when, name))
        return [name for _, _, name in sorted(found)]

    def calls(self, name: str) -> list[str]:
        """Name every call that a rotation of a secret makes; those of its kind, the revoke too, stand together."""
        secret = self.plan.secrets[name]
        path = f"{self.plan.staging}/{name}"
        claim = f"claim: POST {paths.api_path(path, 'data')}"
        found = [claim]
        found += [f"{secret.kind}: {call}" for call in make_kind(secret.kind).calls(secret)]
        found.append(f"{claim} with the new credential, as soon as it is made")
        for settings in secret.deploy:
            target = make_target(settings, secret)
            found += [f"deploy to {settings['type']}: {call}" for call in target.calls()]
        for settings in secret.verify:
            check = make_check(settings, secret)
            found += [f"verify by {settings['type']}: {call}" for call in check.calls()]
        found += [
            f"adopt: GET {paths.api_path(f'{self.plan.consumers}/{name}/{consumer}', 'data')}"
            for consumer in secret.consumers
        ]
        return [*found, f"clean: DELETE {paths.api_path(path, 'metadata')}"]

    # One secret

    def claim(self, name: str, rotation: str) -> Claim:
        """Return the claim of a rotation."""
        return Claim(self.services.vault, f"{self.plan.staging}/{name}", rotation)

    def _seconds(self) -> float:
        return self.now().timestamp()

    def _check(self, names: Iterable[str]) -> list[str]:
        found = list(dict.fromkeys(names))
        for name in found:
            if name not in self.plan.secrets:
                raise ValueError(f"there is no secret {name!r} in {self.plan.path}")
        return found

    def _answer_requests(self) -> Iterator[Outcome]:
        requests = self.journal.requests(self._seconds())
        reasons: dict[str, list[Request]] = {}
        for request in requests:
            if request.action == journal.EMERGENCY and request.secret in self.plan.secrets:
                reasons.setdefault(request.reason, []).append(request)
        self.is_urgent = True
        try:
            for reason, group in reasons.items():
                yield from self.rotate([each.secret for each in group], reason=reason)
                self._answered(group)
        finally:
            self.is_urgent = False
        # Emergencies that are left, of secrets that this plan has not, cut short whatever comes before them.
        for request in sorted(
            self.journal.requests(self._seconds()),
            key=lambda each: each.action != journal.EMERGENCY,
        ):
            if self.stop.is_set():
                return
            try:
                if request.action == journal.ROLLBACK:
                    yield self.rollback(request.secret)
                else:
                    yield from self.rotate([request.secret], reason=request.reason)
            except (RotationError, VaultRefusedError, ValueError) as error:
                logger.error("%s", error)
                yield Outcome(request.secret, "failed", error=str(error))
            self._answered([request])

    def _answered(self, requests: Iterable[Request]) -> None:
        """Take requests off the list, unless they were cut short."""
        for each in requests:
            if not self.stop.is_set():
                self.journal.answer(each)

    def _each(
        self, names: Iterable[str], work: Callable[[PlannedSecret], Outcome]
    ) -> Iterator[Outcome]:
        def one(secret: PlannedSecret) -> Outcome | None:
            with contextlib.ExitStack() as stack:
                # Members of a pair never change at the same time, in an emergency neither.
                for name, lock in sorted(self._pair_locks.items()):
                    if secret.name in self.plan.pairs[name].members:
                        stack.enter_context(lock)
                return None if self.stop.is_set() else work(secret)

        for outcome in self._map([self.plan.secrets[name] for name in names], one):
            if outcome is not None:
                yield outcome

    def _map(
        self, secrets: Sequence[PlannedSecret], work: Callable[[PlannedSecret], _Result]
    ) -> Iterator[_Result]:
        """Yield what the work gives for each secret, several at once; what has begun comes to the end of a step."""
        threads = max(1, min(self.plan.parallel, len(secrets)))
        with concurrent.futures.ThreadPoolExecutor(threads, "tapeseal-rotation") as pool:
            futures = [pool.submit(work, secret) for secret in secrets]
            try:
                for future in concurrent.futures.as_completed(futures):
                    if not future.cancelled():
                        yield future.result()
                    if self.stop.is_set():
                        for each in futures:
                            each.cancel()
            except BaseException:
                # An interrupt, or a journal that cannot be written to any more.
                self.stop.set()
                for each in futures:
                    each.cancel()
                raise

    def _go_on(self, secret: PlannedSecret) -> Outcome:
        record = self.journal.last(secret.name)
        if record is not None and record.open:
            outcome = self._work(secret, record)
            if not _is_due_again(record):
                return outcome
        reason = record.reason if record is not None and _is_due_again(record) else ""
        begun = self._begin(secret, reason)
        return begun if isinstance(begun, Outcome) else self._work(secret, begun)

    def _at_once(self, secret: PlannedSecret, reason: str) -> Outcome:
        record = self.journal.last(secret.name)
        if record is not None and record.open:
            # Whoever has the old credential may have the new one too: it is rotated once more. That is noted, for
            # this rotation may not end in this run.
            record.emergency, record.reason, record.held = True, reason, None
            record.facts[_AGAIN] = 1
            self.journal.write(record, "emergency", step=record.step, now=self._seconds())
            return self._go_on(secret)
        begun = self._begin(secret, reason)
        return begun if isinstance(begun, Outcome) else self._work(secret, begun)

    def _begin(self, secret: PlannedSecret, reason: str = "") -> Record | Outcome:
        with self._begin_lock:
            now = self.now()
            if not reason:
                held = self.held(secret, now)
                if held is not None:
                    return held
            record = Record(
                random_secrets.token_hex(8),
                secret.name,
                secret.kind,
                STEPS[0],
                emergency=bool(reason),
                reason=reason,
                facts={_NAMED: json.dumps(_names(secret))},
                started=now.timestamp(),
            )
            self.journal.begin(record)
            return record

    def held(self, secret: PlannedSecret, now: datetime) -> Outcome | None:
        """Return why a rotation may not begin now; None: it may."""
        opening = self.calendars.opening(secret.window, now, secret.deadline)
        if opening != now:
            return Outcome(secret.name, "held", held=opening)
        for pair in self.plan.pairs_of(secret.name):
            for other in pair.members:
                last = None if other == secret.name else self.journal.last(other)
                if last is None:
                    continue
                until = datetime.fromtimestamp(last.updated, UTC) + pair.offset
                if last.open or until > now:
                    return Outcome(secret.name, "held", held=None if last.open else until)
        return None

    def _work(self, secret: PlannedSecret, record: Record) -> Outcome:
        if record.kind != secret.kind:
            text = (
                f"a rotation of it as {record.kind} is open, and the plan says {secret.kind} now: put that back"
                " until the rotation is over"
            )
            return Outcome(secret.name, record.state, record, error=text)
        named = json.loads(str(record.facts.get(_NAMED, "{}")))
        if changed := [
            name for name, value in _names(secret).items() if named.get(name, value) != value
        ]:
            # The versions that it has noted would be those of something else.
            text = (
                f"a rotation of it is open, and the plan has another {' and '.join(changed)} now: put that back until"
                " the rotation is over"
            )
            return Outcome(secret.name, record.state, record, error=text)
        with contextlib.closing(_Work(self, secret, record)) as work:
            work.run()
        return Outcome(secret.name, record.state, record, held=utc(record.held), error=record.error)


class _Work:
    """One rotation while a run works on it."""

    def __init__(self, engine: Engine, secret: PlannedSecret, record: Record) -> None:
        self.engine = engine
        self.secret = secret
        self.record = record
        self.rotation = Rotation(record.id, secret, engine.services, record.facts)
        self.kind = make_kind(record.kind)
        self.targets = [make_target(settings, secret) for settings in secret.deploy]
        self.checks = [make_check(settings, secret) for settings in secret.verify]
        self.claim: Claim | None = None
        self.made: Credential | None = None
        """What was generated and is not in the claim yet."""
        self.before: Credential | None = None
        """The old credential, for the way back."""
        self.begun = engine.journal.begun(record.id)
        self.is_adopted = False
        """Whether this run has seen the consumers on the new credential."""
        self.end = time.monotonic() + secret.deadline.total_seconds()

    def close(self) -> None:
        """Wipe the credentials."""
        if self.claim is not None:
            self.claim.close()
        for credential in (self.made, self.before):
            for each in (credential or {}).values():
                each.close()

    def run(self) -> None:
        """Take step after step until the rotation ends, must wait, or fails."""
        pauses = 0
        while self.record.open and not self.engine.stop.is_set():
            step = self.record.step
            if self._is_held(step):
                return
            if step == "revoke" and step not in self.begun and not self.is_adopted:
                # The plan may have another consumer since the last run.
                step = self.record.step = "adopt"
            if step not in self.begun:
                self._write("begin", step)
                self.begun.add(step)
            start = time.monotonic()
            try:
                done = self._try(step)
            except Exception as error:
                self._observe(step, start, False)
                if not self._failed(step, error, pauses):
                    return
                pauses += isinstance(error, _LATER)
                continue
            if not done:
                return
            self._observe(step, start, True)
            self.is_adopted |= step == "adopt"
            self._ended(step)
            pauses = 0

    def _try(self, step: str) -> bool:
        method: Callable[[], bool | None] = getattr(self, f"_{step}")
        if step in ("adopt", "monitor"):
            # They look again and again: that is no news until they are done.
            if method() is False:
                return False
            method = _nothing
        details = {"emergency": self.record.reason} if self.record.emergency else {}
        with audit.operation(
            f"rotation.{step}", self.secret.name, rotation=self.record.id, **details
        ) as entry:
            method()
            entry.version = self.record.facts.get("version")
        return True

    def _is_held(self, step: str) -> bool:
        """Whether the window is closed for a step, which is noted once."""
        record = self.record
        if step not in _CHANGING or record.emergency or record.state == journal.ROLLING_BACK:
            return False
        now = self.engine.now()
        left = timedelta(seconds=max(self.end - time.monotonic(), 0.0))
        opening = self.engine.calendars.opening(self.secret.window, now, left)
        held = None
        if opening != now:
            held = (opening or now + HORIZON).timestamp()
        if held != record.held:
            record.held = held
            self._write("go on" if held is None else "held", step)
        return held is not None

    def _ended(self, step: str) -> None:
        record = self.record
        steps = BACK if record.state == journal.ROLLING_BACK else STEPS
        known = None
        if step == "clean":
            known = self._known(record.state == journal.RUNNING)
            rolled_back = record.state == journal.ROLLING_BACK
            record.state = journal.ROLLED_BACK if rolled_back else journal.FINISHED
            if not rolled_back:
                record.alarm = ""
        else:
            record.step = steps[steps.index(step) + 1]
            if record.state in (journal.WAITING, journal.MONITORING):
                record.state = journal.RUNNING
        if record.state != journal.ROLLING_BACK and record.state != journal.ROLLED_BACK:
            record.error = ""
        logger.info("%s: %s is done (rotation %s)", self.secret.name, step, record.id)
        self._write("end", step, known=known)

    def _failed(self, step: str, error: Exception, pauses: int) -> bool:
        """Note a failure, and return whether there is something to go on with."""
        record = self.record
        text = self._describe(error)
        if isinstance(error, _LATER):
            pause = min(_FIRST_PAUSE * 2.0 ** min(pauses, 10), _LONGEST_PAUSE)
            pause *= random.uniform(0.5, 1.0)
            again = time.monotonic() + pause < self.end
            if not again or not pauses:
                record.error = record.error if self._is_back else text
                self._write("fail", step, text)
                logger.warning("%s: %s: %s", self.secret.name, step, text)
            return again and not self.engine.stop.wait(pause)
        logger.error("%s: %s failed: %s (rotation %s)", self.secret.name, step, text, record.id)
        if self._is_back:
            if not isinstance(error, IrreversibleError):
                self._alarm(f"it cannot be rolled back: {step}: {text}")
                self._write("fail", step, text)
                return False
            record.state, record.step = journal.RUNNING, "deploy"
            self._alarm(f"there is no way back, so the new credential stays: {text}")
        elif step == "claim":
            # Nothing was done yet.
            record.state, record.step, record.error = journal.ROLLING_BACK, "clean", text
        elif step in _REVERSIBLE and "forward" not in self.begun:
            record.state, record.step, record.error = journal.ROLLING_BACK, "restore", text
            record.held = None
        else:
            record.error = text
            self._alarm(f"{step}: {text}")
            self._write("fail", step, text)
            return False
        self._write("fail", step, text)
        if record.state == journal.RUNNING:
            self._write("begin", "forward")
            self.begun.add("forward")
        return True

    @property
    def _is_back(self) -> bool:
        return self.record.state == journal.ROLLING_BACK

    def _alarm(self, text: str) -> None:
        """Raise an alarm, once."""
        if text == self.record.alarm:
            return
        self.record.alarm = text
        logger.error("%s: %s (rotation %s)", self.secret.name, text, self.record.id)
        try:
            with audit.operation(
                "rotation.alarm", self.secret.name, rotation=self.record.id, alarm=text
            ):
                pass
        except AuditError as error:
            logger.error("%s: %s", self.secret.name, error)

    def _write(self, event: str, step: str, detail: str = "", known: Known | None = None) -> None:
        self.engine.journal.write(
            self.record, event, step=step, now=self.engine._seconds(), detail=detail, known=known
        )

    def _observe(self, step: str, start: float, well: bool) -> None:
        if self.engine.observe is not None:
            self.engine.observe(self.secret, step, time.monotonic() - start, well)

    def _describe(self, error: Exception) -> str:
        credentials = [self.made, self.before]
        if self.claim is not None:
            credentials += [self.claim.new, self.claim.old]
        return describe(error, *credentials)

    def _known(self, well: bool) -> Known:
        """Return what is now known of the secret."""
        now = self.engine.now()
        known = self.engine.journal.known(self.secret.name).get(self.secret.name, Known())
        if not well:
            failures = known.failures + 1
            pause = min(_FIRST_RETRY * 2 ** min(failures - 1, 10), _LONGEST_RETRY)
            return replace(known, failures=failures, retry=now + pause)
        known = replace(known, succeeded=now, failures=0, retry=None)
        version = str(self.record.facts.get("version"))
        known = replace(known, version=version, made=utc(self.record.made))
        try:
            return _seen(known, self.kind.live(self.secret, self.engine.services), now)
        except Exception as error:
            logger.warning("%s: what is in use: %s", self.secret.name, self._describe(error))
            return replace(known, seen=now)

    def _claim_of(self) -> Claim:
        """Return the claim, as it is in Vault."""
        if self.claim is None:
            self.claim = self.engine.claim(self.secret.name, self.record.id)
        if not self.claim.known:
            self.claim.read()
        return self.claim

    def _new(self) -> Credential:
        """Return the new credential, empty where it is none to hand out."""
        claim = self._claim_of()
        if claim.new is None and self.record.facts.get("staged"):
            raise RotationError(self._gone())
        return claim.new or {}

    def _gone(self) -> str:
        return f"somebody deleted {self._claim_of().path}, which had the new credential"

    def _old(self) -> Credential:
        if self.before is None:
            self.before = self.kind.old(self.rotation)
        return self.before

    def _accepted(self, credential: Credential) -> None:
        """Have all targets accept a credential, which may take them a moment."""
        end = time.monotonic() + self.secret.settle.total_seconds()
        for check in self.checks:
            for pause in _pauses():
                try:
                    check.accepts(credential)
                    break
                except VerificationError:
                    if time.monotonic() + pause >= end:
                        raise
                    # A stop waits for it too: half of a verification is no failure of it.
                    time.sleep(pause)

    # Steps

    def _claim(self) -> None:
        live = self.kind.live(self.secret, self.engine.services)
        self.record.facts["old_version"] = None if live is None else live.version
        claim = self._claim_of()
        if not claim.known:
            claim.facts = self.record.facts
            claim.write()

    def _generate(self) -> None:
        claim = self._claim_of()
        if not claim.known:
            raise RotationError(self._gone())
        if claim.new is None:
            if self.made is None:
                self.made = self.kind.generate(self.rotation)
                journal.reached("generated")
            if self.made:
                self.record.facts["staged"] = 1
                claim.facts, claim.new = self.record.facts, dict(self.made)
                try:
                    claim.write()
                except BaseException:
                    claim.new = None
                    raise
            self.made = None  # The claim's from here on.
        else:
            self.record.facts.update(claim.facts)
        self.record.made = self.engine._seconds()

    def _store(self) -> None:
        self.kind.store(self.rotation, self._new())
        self.record.facts.setdefault("version", self.record.id)

    def _deploy(self) -> None:
        new = self._new()
        for target in self.targets:
            target.deploy(new, self.rotation)

    def _verify(self) -> None:
        self._accepted(self._new())
        self.record.adopted_by = self.engine._seconds() + self.secret.grace.total_seconds()

    def _adopt(self) -> bool:
        record, secret = self.record, self.secret
        missing: list[str] = []
        # Where there was nothing before nobody can be on it.
        first = record.facts.get("old_version") is None
        if secret.consumers and not first and not record.emergency:
            since = self._claim_of().since
            if since is None:
                raise RotationError(f"{self._gone()}; roll the rotation back")
            missing = consumers.missing(
                self.engine.services.vault,
                secret.name,
                secret.consumers,
                str(record.facts.get("version")),
                since,
                path=self.engine.plan.consumers,
            )
        before = record.waiting, record.alarm, record.state, record.error, record.adopted_by
        record.waiting, record.error = missing, ""
        if record.adopted_by is not None:
            # Not later, whatever the clock was then.
            record.adopted_by = min(
                record.adopted_by, self.engine._seconds() + secret.grace.total_seconds()
            )
        if missing:
            record.state = journal.WAITING
            if record.adopted_by is not None and self.engine._seconds() >= record.adopted_by:
                self._alarm(
                    f"not on the new version by now: {', '.join(missing)}; the old secret stays alive until they are"
                )
        else:
            record.alarm = ""
        after = record.waiting, record.alarm, record.state, record.error, record.adopted_by
        if after != before and missing:
            self._write("wait", "adopt", ", ".join(missing))
        return not missing

    def _revoke(self) -> None:
        if self.record.facts.get("old_version") is None:
            return
        claim = self._claim_of()
        if claim.old is None and claim.known:
            try:
                claim.old = dict(self.kind.old(self.rotation))
            except ServiceUnavailableError:
                raise
            except Exception as error:
                # It must go all the same; only, nobody will see that it is refused.
                text = f"the old credential is not at hand: {self._describe(error)}"
                logger.warning("%s: %s", self.secret.name, text)
                self._write("note", "revoke", text)
                claim.old = {}
            claim.facts = self.record.facts
            try:
                claim.write()
            except BaseException:
                _close(claim.old)
                claim.old = None
                raise
        self.kind.revoke(self.rotation)
        self.record.revoked = self.engine._seconds()

    def _monitor(self) -> bool:
        record = self.record
        end = time.monotonic() + self.secret.settle.total_seconds()
        for pause in _pauses():
            problem = self._look()
            if not problem or time.monotonic() + pause >= end:
                break
            time.sleep(pause)
        now = self.engine._seconds()
        before = record.state, record.alarm, record.error, record.revoked
        if record.revoked is not None:
            record.revoked = min(record.revoked, now)
        over = record.revoked is None or now >= record.revoked + self.secret.monitor.total_seconds()
        if not problem:
            record.alarm = ""
            if over or record.emergency:
                return True
        record.state, record.error = journal.MONITORING, problem
        if problem and over:
            self._alarm(problem)
        if (record.state, record.alarm, record.error, record.revoked) != before:
            self._write("wait", "monitor", problem)
        return False

    def _look(self) -> str:
        """Try both credentials; return what is not as it should be."""
        claim = self._claim_of()
        if not claim.known:
            # There is nothing to try, and no way back either.
            logger.warning("%s: %s: it is not tried", self.secret.name, self._gone())
            return ""
        new, old = self._new(), claim.old
        for check in self.checks:
            try:
                check.accepts(new)
            except VerificationError as error:
                return f"the new credential is not accepted any more: {self._describe(error)}"
            if old and not check.refuses(old):
                # Ended once more: it may have come back, or a part of the service may not know yet.
                self.kind.revoke(self.rotation)
                return "the old credential was revoked, and is still accepted"
        return ""

    def _clean(self) -> None:
        if self.claim is None:
            self.claim = self.engine.claim(self.secret.name, self.record.id)
        self.claim.delete()

    # Back

    def _restore(self) -> None:
        if "deploy" not in self.begun or self.record.facts.get("old_version") is None:
            return
        old = self._old()
        if not old and self.targets and self._new():
            raise IrreversibleError("the old credential is not to be had, to be deployed again")
        for target in self.targets:
            target.deploy(old, self.rotation)

    def _recheck(self) -> None:
        if "generate" in self.begun and self.record.facts.get("old_version") is not None:
            old = self._old()
            if old or not self._new():
                self._accepted(old)

    def _discard(self) -> None:
        if "generate" in self.begun:
            self.kind.discard(self.rotation)


def describe(error: Exception, *credentials: Credential | None) -> str:
    """Return what an error says, without what is in credentials.

    Of errors that are not ours only the kind and the place: their texts may hold anything.
    """
    if isinstance(error, OSError) and not isinstance(error, TapesealError):
        name = f"{error.filename}: " if isinstance(error.filename, str) else ""
        return without(f"{name}{error.strerror or type(error).__name__}", *credentials)
    if isinstance(error, TapesealError):
        return without(str(error), *credentials)
    place = ""
    trace = error.__traceback__
    while trace is not None:
        place = f" at {Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}"
        trace = trace.tb_next
    return f"{type(error).__name__}{place}"


def _names(secret: PlannedSecret) -> dict[str, Any]:
    """Return the settings that say which secret is meant."""
    return {
        name: value if isinstance(value, list) else str(value)
        for name, setting in make_kind(secret.kind).settings.items()
        if setting.names and (value := secret.options[name]) is not None
    }


def _is_due_again(record: Record) -> bool:
    return not record.open and bool(record.facts.get(_AGAIN))


def _nothing() -> None:
    pass


def _pauses() -> Iterator[float]:
    pause = _FIRST_PAUSE
    while True:
        yield pause
        pause = min(2 * pause, 1.0)


def _seen(before: Known, live: Live | None, now: datetime) -> Known:
    """Return what is known of a secret once its service was asked."""
    if live is None:
        return replace(before, version=None, made=None, expires=None, seen=now)
    # The journal knows when it made this version; a service may not, or not have it right.
    made = live.made or before.made
    if made is not None and before.made is not None and live.version == before.version:
        made = max(made, before.made)
    if made is not None and made > now:
        # By a clock that has been put right since.
        made = min(live.made or now, now)
    return replace(before, version=live.version, made=made, expires=live.expires, seen=now)


def _close(credential: Credential | None) -> None:
    for each in (credential or {}).values():
        each.close()
