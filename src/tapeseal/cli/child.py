"""Running another command as if it had been called instead of this one."""

import contextlib
import errno
import os
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from types import FrameType
from typing import NamedTuple, NoReturn

from tapeseal.secret import Secret

_PASSED_ON = (
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
)
_OF_THE_TERMINAL = (signal.SIGINT, signal.SIGQUIT)
# Python ignores these, and what is ignored stays so over execve.
_IGNORED_BY_PYTHON = (signal.SIGPIPE, signal.SIGXFSZ)
_LAST_SECONDS = 10.0


class Child(NamedTuple):
    """A command that can be run.

    Attributes:
        program: the path of its program.
        arguments: the command as it was given.
    """

    program: str
    arguments: Sequence[str]

    @classmethod
    def find(cls, arguments: Sequence[str]) -> "Child":
        """Find the program of a command, before anything is made for it.

        Raises:
            FileNotFoundError: there is none.
        """
        program = shutil.which(arguments[0])
        if program is None:
            raise FileNotFoundError(errno.ENOENT, "there is no such command", arguments[0])
        return cls(program, arguments)

    def run(self, environment: Mapping[str, str], seconds: float | None = None) -> int:
        """Run it to its end and return its exit code, 128 + N where signal N has ended it.

        Signals that would end this process go to the command. It is of the same process group, so that those of the
        terminal, as for Ctrl-C, reach it by themselves. What this process was started to ignore, as by nohup, the
        command ignores too.

        Args:
            environment: its variables.
            seconds: how long it may run: then it gets SIGTERM, and SIGKILL ten seconds later.
        """
        process: subprocess.Popen[bytes] | None = None
        early: list[int] = []
        at_terminal = _is_in_foreground()

        def pass_on(number: int, frame: FrameType | None) -> None:
            if at_terminal and number in _OF_THE_TERMINAL:
                return
            if process is None:
                early.append(number)
            else:
                process.send_signal(number)

        before = {
            number: signal.signal(number, pass_on)
            for number in _PASSED_ON
            if signal.getsignal(number) is not signal.SIG_IGN
        }
        try:
            process = subprocess.Popen(
                self.arguments, executable=self.program, env=dict(environment)
            )
            for number in early:
                process.send_signal(number)
            try:
                code = process.wait(seconds)
            except subprocess.TimeoutExpired:
                process.terminate()
                try:
                    code = process.wait(_LAST_SECONDS)
                except subprocess.TimeoutExpired:
                    process.kill()
                    code = process.wait()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        return 128 - code if code < 0 else code

    def take_place(self, environment: Mapping[str, str]) -> NoReturn:
        """Run it in the place of this process.

        Args:
            environment: its variables.

        Raises:
            OSError: it cannot be run.
        """
        before = {number: signal.signal(number, signal.SIG_DFL) for number in _IGNORED_BY_PYTHON}
        try:
            os.execve(self.program, list(self.arguments), dict(environment))
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def as_variable(value: Secret) -> str:
    """Return a value for an environment, where it stands in UTF-8 whatever the locale says."""
    with value.buffer as buffer, memoryview(buffer) as view:
        return os.fsdecode(bytes(view))


def _is_in_foreground() -> bool:
    with contextlib.suppress(OSError):
        terminal = os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY)
        try:
            return os.tcgetpgrp(terminal) == os.getpgrp()
        finally:
            os.close(terminal)
    return False
