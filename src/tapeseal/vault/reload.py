"""How a program is told that files it uses are new."""

import errno
import os
import signal
import stat
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from tapeseal.errors import CertificateError

_SIGNALS = ("HUP", "USR1", "USR2", "TERM", "WINCH")
_TOKENS = ("VAULT_TOKEN", "BAO_TOKEN")
_MOST_SECONDS = 1e6


@dataclass(frozen=True)
class Reload:
    """How the program that uses a certificate is told of a new one: by a command, or by a signal.

    Raises:
        ValueError: it is not one of the two.
    """

    command: Sequence[str] = ()
    """A program and its arguments; it runs without a shell, and without the tokens in this process's environment."""
    pid_file: str = ""
    """A file with the process id to which the signal goes."""
    signal: str = "HUP"
    seconds: float = 60
    """How long the command may take."""

    def __post_init__(self) -> None:
        if bool(self.command) == bool(self.pid_file):
            raise ValueError("a reload hook is either a command or a pid file")
        if isinstance(self.command, str):
            raise ValueError("the command of a reload hook is a list: a program and its arguments")
        if not all(isinstance(each, str) and "\0" not in each for each in self.command):
            raise ValueError("the command of a reload hook is text")
        if not 0 < self.seconds < _MOST_SECONDS:
            raise ValueError("a reload hook has a positive number of seconds")
        if self.signal not in _SIGNALS:
            raise ValueError(f"the signal of a reload hook is one of {', '.join(_SIGNALS)}")

    def run(self) -> None:
        """Tell it.

        Raises:
            CertificateError: the command failed, or there is no such process.
        """
        problem = self._run_command() if self.command else self._send_signal()
        if problem:
            raise CertificateError(f"the new certificate is in place, but {problem}")

    def _run_command(self) -> str:
        environment = {name: value for name, value in os.environ.items() if name not in _TOKENS}
        try:
            process = subprocess.Popen(
                list(self.command),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=environment,
                start_new_session=True,
            )
        except OSError as error:
            return f"{self.command[0]} did not start: {error.strerror}"
        try:
            code = process.wait(self.seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return f"{self.command[0]} was not done within {self.seconds:g} s"
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise
        return f"{self.command[0]} failed with {code}" if code else ""

    def _send_signal(self) -> str:
        try:
            with open(self.pid_file, "rb") as file:
                # Who can write it says which process gets a signal from this user.
                check_owner(file.fileno(), self.pid_file)
                text = file.read(32).strip()
            pid = int(text)
            if pid < 2:
                raise ValueError
            os.kill(pid, getattr(signal, f"SIG{self.signal}"))
        except ValueError:
            return f"{self.pid_file} holds no process id"
        except OSError as error:
            return f"no signal could be sent by {self.pid_file}: {error.strerror}"
        return ""


def check_owner(fd: int, name: str) -> None:
    """Refuse an open file or directory that anybody but this user and root can change."""
    status = os.fstat(fd)
    if status.st_uid not in (os.geteuid(), 0) or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise PermissionError(
            errno.EPERM, "others can change it, and so what is run and what is asked for", name
        )
