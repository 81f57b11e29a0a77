"""Where entries go besides the file: syslog (RFC 5424) and OpenTelemetry. What they do never holds the file up."""

import calendar
import collections
import contextlib
import errno
import json
import logging
import random
import socket
import threading
import time
from collections.abc import Iterable
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

from tapeseal import audit

logger = logging.getLogger("tapeseal.audit")

MAX_WAITING: Final = 10_000
"""Entries that wait for a sink; those that come after are not sent to it, and counted."""

_FIRST_PAUSE, _LONGEST_PAUSE = 0.25, 30.0
_TIMEOUT = 5.0
# RFC 5424, 6.1: what every receiver takes.
_SHORTEST = 480
# RFC 5424, 6.2.1: facility 10, messages of security, with the severities notice and warning.
_DONE, _FAILED = 10 * 8 + 5, 10 * 8 + 4


class Sink(Protocol):
    """Takes entries; one thread calls it. Its str() names it in messages, so it holds no secret."""

    def send(self, line: bytes) -> None:
        """Take one entry, its line in the log without the newline; an exception has it sent again later."""

    def close(self) -> None:
        """Give up what is open."""


class SyslogSink:
    """Sends each entry as a syslog message (RFC 5424), the line of the log its text.

    Args:
        address: "/dev/log" or another socket of this machine; "udp://HOST:PORT"; "tcp://HOST:PORT", with the length
            before each message (RFC 6587, 3.4.1).

    Raises:
        ValueError: the address is none of these.
    """

    def __init__(self, address: str = "/dev/log") -> None:
        self._address = address
        self._target: Any = address
        self._kind = socket.SOCK_DGRAM
        self._family = socket.AF_UNIX
        if not address.startswith("/"):
            parts = urlsplit(address)
            try:
                port = parts.port
            except ValueError:
                port = None
            if parts.scheme not in ("udp", "tcp") or not parts.hostname or not port or parts.path:
                raise ValueError(
                    f"{address!r} is no address of a syslog: /PATH, udp://HOST:PORT or tcp://HOST:PORT"
                )
            self._target = (parts.hostname, port)
            self._family = socket.AF_INET
            if parts.scheme == "tcp":
                self._kind = socket.SOCK_STREAM
        self._socket: socket.socket | None = None

    def send(self, line: bytes) -> None:
        """Send one message; errors are OSErrors."""
        entry = json.loads(line)
        priority = _DONE if entry["result"] == "done" else _FAILED
        header = f"<{priority}>1 {entry['time']} {_name(entry['host'], 255)} tapeseal {entry['pid']} audit - "
        # RFC 5424, 6.2.3.1: at most six digits of a second.
        header = header.replace(entry["time"], f"{entry['time'][:26]}Z", 1)
        message = header.encode() + line
        if self._kind == socket.SOCK_STREAM:
            message = b"%d %b" % (len(message), message)
        try:
            if self._socket is None:
                self._socket = self._connect()
            _send(self._socket, message)
        except OSError:
            self.close()
            raise

    def _connect(self) -> socket.socket:
        if self._family == socket.AF_UNIX:
            made = socket.socket(self._family, self._kind)
            made.settimeout(_TIMEOUT)
            try:
                made.connect(self._target)
            except OSError:
                made.close()
                raise
            return made
        if self._kind == socket.SOCK_STREAM:
            return socket.create_connection(self._target, _TIMEOUT)
        error: OSError | None = None
        host, port = self._target
        for family, kind, protocol, _, target in socket.getaddrinfo(
            host, port, type=socket.SOCK_DGRAM
        ):
            made = socket.socket(family, kind, protocol)
            made.settimeout(_TIMEOUT)
            try:
                made.connect(target)
                return made
            except OSError as problem:
                made.close()
                error = problem
        raise error or OSError("no address")

    def close(self) -> None:
        """Close the socket; the next message opens one again."""
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.close()
            self._socket = None

    def __str__(self) -> str:
        return f"syslog:{self._address}"


def _send(connected: socket.socket, message: bytes) -> None:
    """Send a message; of one that is too long for any datagram here its start, lest all others wait behind it."""
    while True:
        try:
            connected.sendall(message)
            return
        except OSError as error:
            if error.errno != errno.EMSGSIZE or len(message) <= _SHORTEST:
                raise
        message = message[: len(message) // 2]


def _name(text: str, most: int) -> str:
    """Return a field of a syslog header: printable ASCII without blanks."""
    return "".join(each if "!" <= each <= "~" else "?" for each in text)[:most] or "-"


class OpenTelemetrySink:
    """Emits each entry as a log record of OpenTelemetry, through the process's logger provider or a given one.

    The body is the action, and the members of the entry are attributes under "tapeseal.". How they get to a
    collector, in batches and when, is the provider's.

    Raises:
        ModuleNotFoundError: OpenTelemetry is not installed.
    """

    def __init__(self, provider: Any = None) -> None:
        try:
            from opentelemetry import _logs
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "the OpenTelemetry sink needs its API: pip install 'tapeseal[otel]'",
                name=error.name,
            ) from None
        self._logs = _logs
        self._logger = _logs.get_logger("tapeseal.audit", logger_provider=provider)

    def send(self, line: bytes) -> None:
        """Emit one record."""
        entry = json.loads(line)
        failed = entry["result"] != "done"
        severity = self._logs.SeverityNumber.WARN if failed else self._logs.SeverityNumber.INFO
        attributes: dict[str, Any] = {}
        for name, value in entry.items():
            if name == "details":
                for detail, of_detail in value.items():
                    if of_detail is not None:
                        attributes[f"tapeseal.details.{detail}"] = of_detail
            elif name not in ("time", "mac"):
                attributes[f"tapeseal.{name}"] = value
        self._logger.emit(
            self._logs.LogRecord(
                timestamp=_nanoseconds(entry["time"]),
                observed_timestamp=time.time_ns(),
                severity_number=severity,
                severity_text=severity.name,
                body=f"{entry['action']} {entry['subject']}: {entry['result']}",
                attributes=attributes,
                event_name=f"tapeseal.audit.{entry['action']}",
            )
        )

    def close(self) -> None:
        """Do nothing: the provider is not ours."""

    def __str__(self) -> str:
        return "opentelemetry"


def _nanoseconds(text: str) -> int:
    seconds = calendar.timegm(time.strptime(text[:19], "%Y-%m-%dT%H:%M:%S"))
    return seconds * 1_000_000_000 + int(text[20:29])


def sink(text: str) -> Sink:
    """Make the sink that a text names: "syslog", "syslog:ADDRESS" as SyslogSink takes it, or "otel".

    Raises:
        ValueError: it names none.
    """
    name, colon, address = text.partition(":")
    if name == "syslog":
        return SyslogSink(address) if colon else SyslogSink()
    if text == "otel":
        return OpenTelemetrySink()
    raise ValueError(f"{text!r} is no sink of an audit log: syslog, syslog:ADDRESS or otel")


class SinkThread:
    """Feeds one sink from a queue, and tries again what it did not take; the thread starts with the first entry."""

    def __init__(self, sink: Sink) -> None:
        self.sink = sink
        self.failures = 0
        """How often it raised."""
        self.dropped = 0
        """Entries that were not sent, for too many waited."""
        self._waiting: collections.deque[bytes] = collections.deque()
        self._changed = threading.Condition()
        self._closing_until: float | None = None
        self._thread: threading.Thread | None = None

    def put(self, lines: Iterable[bytes]) -> None:
        """Queue entries' lines; never waits for the sink."""
        with self._changed:
            for line in lines:
                if len(self._waiting) >= MAX_WAITING:
                    self.dropped += 1
                else:
                    self._waiting.append(line.rstrip(b"\n"))
            if self._thread is None:
                name = f"tapeseal audit {self.sink}"
                self._thread = threading.Thread(target=self._run, name=name, daemon=True)
                self._thread.start()
            self._changed.notify()

    def close(self, seconds: float) -> None:
        """Wait so long for what is queued, then end."""
        with self._changed:
            self._closing_until = time.monotonic() + seconds
            thread = self._thread
            self._changed.notify()
        if thread is not None:
            thread.join(seconds + _TIMEOUT)
        self.sink.close()

    def _run(self) -> None:
        tries, dropped = 0, 0
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closing_until is not None)
                if not self._waiting:
                    return
                line = self._waiting[0]
            try:
                self.sink.send(line)
            except Exception as error:
                self.failures += 1
                tries += 1
                if tries == 1:
                    dropped = self.dropped
                    logger.warning("the sink %s fails: %s", self.sink, type(error).__name__)
                    self._note("audit.sink_failed", type(error).__name__)
                pause = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2.0 ** min(tries - 1, 10))
                if not self._pause(pause * random.uniform(0.5, 1.0)):
                    return
                continue
            with self._changed:
                self._waiting.popleft()
            if tries:
                logger.warning(
                    "the sink %s works again; %d entries were not sent to it",
                    self.sink,
                    self.dropped - dropped,
                )
                self._note("audit.sink_works", None, dropped=self.dropped - dropped)
            tries = 0

    def _note(self, action: str, result: str | None, **details: int) -> None:
        # An entry of its own, where the log that it is the sink of is the process's.
        with (
            contextlib.suppress(Exception),
            audit.operation(action, str(self.sink), **details) as entry,
        ):
            entry.result = result

    def _pause(self, seconds: float) -> bool:
        """Wait before the next try; False where there is to be none."""
        with self._changed:
            self._changed.wait_for(lambda: self._closing_until is not None, seconds)
            if self._closing_until is None:
                return True
        seconds = min(seconds, 0.1)
        time.sleep(seconds)
        return time.monotonic() + seconds < self._closing_until
