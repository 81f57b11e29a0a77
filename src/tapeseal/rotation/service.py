"""The daemon: rotates what is due for as long as it runs, and serves metrics for Prometheus."""

import contextlib
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Final, Self

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server
from prometheus_client.core import GaugeMetricFamily

from tapeseal.files import StrPath
from tapeseal.rotation.engine import Engine, Outcome, describe
from tapeseal.rotation.journal import EMERGENCY, Journal, Request
from tapeseal.rotation.plan import Plan, PlannedSecret, check_windows, read_plan
from tapeseal.rotation.schedule import Calendars
from tapeseal.rotation.services import PlanServices
from tapeseal.rotation.status import statuses

logger = logging.getLogger("tapeseal.rotation")

EVERY: Final = 15.0
"""Seconds between two looks at what is due."""
REQUESTS_EVERY: Final = 0.25
"""Seconds between two looks at what others ask for."""

_LABELS: Final = ("secret", "kind", "tier", "owner")
_GAUGES: Final = {
    "age_seconds": "How old the secret in use is.",
    "due_timestamp_seconds": "When it is due, in Unix time.",
    "overdue": "1: it is due, and a window for it has gone by.",
    "waiting_consumers": "How many consumers were not yet seen on the new version.",
    "alarm": "1: somebody must look at it; the status says why.",
    "last_success_timestamp_seconds": "When its last rotation ended well, in Unix time.",
    "failures": "How many rotations in a row were rolled back.",
}


class Metrics:
    """What Prometheus reads: gauges of each secret from the journal, and how the steps went."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.source: Engine | None = None
        self._steps = Histogram(
            "tapeseal_rotation_step_seconds",
            "How long the steps took that went well.",
            ["step"],
            buckets=(0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300),
            registry=self.registry,
        )
        self._failures = Counter(
            "tapeseal_rotation_step_failures",
            "Tries of steps that failed.",
            ["step"],
            registry=self.registry,
        )
        self.last_run = Gauge(
            "tapeseal_rotation_last_run_timestamp_seconds",
            "When the daemon last looked at what is due, in Unix time.",
            registry=self.registry,
        )
        self.registry.register(self)

    def observe(self, secret: PlannedSecret, step: str, seconds: float, well: bool) -> None:
        """Count a try of a step."""
        if well:
            self._steps.labels(step).observe(seconds)
        else:
            self._failures.labels(step).inc()

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield the gauges, as a collector of prometheus_client does."""
        families = {
            name: GaugeMetricFamily(f"tapeseal_rotation_{name}", text, labels=_LABELS)
            for name, text in _GAUGES.items()
        }
        engine = self.source
        if engine is not None:
            now = engine.now()
            for each in statuses(engine.plan, engine.journal, engine.calendars, now):
                secret, known = each.secret, each.known
                labels = (secret.name, secret.kind, secret.tier, secret.owner)
                waiting = each.record.waiting if each.record and each.record.open else ()
                values: dict[str, float | None] = {
                    "age_seconds": (now - known.made).total_seconds() if known.made else None,
                    "due_timestamp_seconds": each.due.timestamp() if each.due else None,
                    "overdue": each.state == "overdue",
                    "waiting_consumers": len(waiting),
                    "alarm": bool(each.alarm),
                    "last_success_timestamp_seconds": known.succeeded.timestamp()
                    if known.succeeded
                    else None,
                    "failures": known.failures,
                }
                for name, value in values.items():
                    if value is not None:
                        families[name].add_metric(labels, float(value))
        yield from families.values()


class Daemon:
    """Works through a plan until it is stopped. A context manager.

    Args:
        path: the plan.
        services: instead of those that the environment names; they stay their owner's.
        metrics: HOST:PORT instead of the plan's.

    Raises:
        PlanError: the plan is none.
        BlockingIOError: on entering, another runner has the journal.
        OSError: on entering, the address of the metrics cannot be had.
    """

    def __init__(
        self, path: StrPath, *, services: PlanServices | None = None, metrics: str | None = None
    ) -> None:
        self._path = path
        self._services = services or PlanServices()
        self._own = services is None
        self._stack = contextlib.ExitStack()
        self._stop = threading.Event()
        self._reload = threading.Event()
        self.metrics = Metrics()
        plan = read_plan(path)
        self._journal = Journal(plan.state)
        self._address = metrics or plan.metrics
        try:
            self._use(self._make(plan))
        except BaseException:
            self._journal.close()
            raise

    def _make(self, plan: Plan) -> Engine:
        calendars = Calendars(self._journal)
        check_windows(plan, calendars)
        return Engine(
            plan, self._journal, self._services, calendars=calendars, observe=self.metrics.observe
        )

    def _use(self, engine: Engine) -> None:
        self._engine = engine
        self.metrics.source = engine

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            stack.callback(self._journal.close)
            if self._own:
                stack.callback(self._services.close)
            stack.enter_context(self._journal.running())
            host, _, port = self._address.rpartition(":")
            server, thread = start_http_server(
                int(port), host.strip("[]"), registry=self.metrics.registry
            )
            self.port = server.server_port
            stack.callback(thread.join)
            stack.callback(server.server_close)
            stack.callback(server.shutdown)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.close()

    def stop(self) -> None:
        """Have it end once each rotation is at the end of its step; for a signal handler."""
        self._stop.set()
        self._engine.stop.set()

    def reload(self) -> None:
        """Have it read the plan again, once it is idle; for a signal handler."""
        self._reload.set()

    def run(self) -> None:
        """Work until stop()."""
        logger.info("at %d secrets of %s", len(self._engine.plan.secrets), self._path)
        notify("READY=1")
        watcher = threading.Thread(target=self._watch, name="tapeseal-rotation-requests")
        watcher.start()
        try:
            while not self._stop.is_set():
                self._run_once()
                end = time.monotonic() + EVERY
                while time.monotonic() < end and not self._stop.wait(REQUESTS_EVERY):
                    if self._reload.is_set() or self._requests():
                        break
        finally:
            self.stop()
            watcher.join()
            notify("STOPPING=1")

    def _run_once(self) -> None:
        if self._reload.is_set():
            self._reload.clear()
            self._read_again()
        self._engine.stop.clear()
        if self._stop.is_set():
            return
        try:
            for outcome in self._engine.run_due():
                _log(outcome)
        except OSError as error:
            # A full disk is no reason to go: what was begun waits in the journal.
            logger.error("the run was broken off: %s", error)
        self.metrics.last_run.set_to_current_time()

    def _read_again(self) -> None:
        try:
            engine = self._make(read_plan(self._path))
        except Exception as error:
            # Whatever it is, such as a package that a market needs: the secrets of the old plan are still there.
            text = error if isinstance(error, OSError | ValueError) else describe(error)
            logger.error("the plan stays as it was: %s", text)
            return
        if engine.plan.state != self._engine.plan.state:
            logger.error("the plan stays as it was: another state file needs a new start")
            return
        self._use(engine)
        logger.info("read the plan again: %d secrets", len(engine.plan.secrets))

    def _requests(self) -> list[Request]:
        return self._journal.requests(self._engine.now().timestamp())

    def _watch(self) -> None:
        """Cut a run short where somebody reports a compromise: what it is at waits until after."""
        while not self._stop.wait(REQUESTS_EVERY):
            with contextlib.suppress(OSError):
                urgent = any(each.action == EMERGENCY for each in self._requests())
                if urgent and not self._engine.is_urgent:
                    self._engine.stop.set()


def _log(outcome: Outcome) -> None:
    if outcome.state == "held":
        return
    level = logging.ERROR if outcome.alarm else logging.INFO
    logger.log(
        level,
        "%s: %s%s",
        outcome.secret,
        outcome.state,
        f": {outcome.error}" if outcome.error else "",
    )


def notify(state: str) -> None:
    """Tell systemd, where it started this process and wants to know."""
    address: Any = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.connect(address)
        sock.sendall(state.encode())
