"""One process of the cluster, under its supervisor."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, NamedTuple

_SUPERVISOR = Path(__file__).with_name("supervise.py")
_KILL_LIMIT_S = 60.0  # the supervisor's own limits, with a margin
_POLL_S = 0.02


class ProcessStatus(NamedTuple):
    """State of a supervised process.

    Attributes:
        ended: whether it has ended.
        exit_code: negative for a signal; None while it runs, or when its supervisor was killed.
    """

    ended: bool
    exit_code: int | None


class _Supervisor(NamedTuple):
    """A running supervisor and its pipes.

    Attributes:
        process: the supervisor.
        stop: closing it stops the command.
        report: the supervisor writes `started PID` and `exited CODE` to it.
    """

    process: subprocess.Popen[bytes]
    stop: IO[bytes]
    report: IO[bytes]


class SupervisedProcess:
    """A command that ends, with every process it started, when this process ends or requests it.

    Args:
        name: for messages.
        argv: command line.
        env: complete environment.
        log: file that receives the output.
        stop_grace_s: seconds between SIGTERM and SIGKILL.

    Attributes:
        name: for messages.
        pid: the command's own process.
        log: file with its output.
    """

    def __init__(
        self,
        name: str,
        argv: Sequence[str],
        env: Mapping[str, str],
        log: Path,
        stop_grace_s: float,
    ) -> None:
        self.name = name
        self.log = log
        self._grace_s = stop_grace_s
        self._report = b""
        self._supervisor = _start_supervisor(argv, env, log, stop_grace_s)
        try:
            self.pid = self._read_pid()
        except BaseException:
            self.request_stop()
            self.wait_gone()
            raise

    @property
    def supervisor_pid(self) -> int:
        """Return the pid of the supervisor, the session id of every process below it."""
        return self._supervisor.process.pid

    def fileno(self) -> int:
        """Return a file descriptor that is readable when `poll` has news."""
        return self._supervisor.report.fileno()

    def poll(self) -> ProcessStatus:
        """Read the supervisor's report, and block until there is one."""
        chunk = os.read(self.fileno(), 4096)
        self._report += chunk
        for line in self._report.split(b"\n"):
            if line.startswith(b"exited "):
                return ProcessStatus(True, int(line.split()[1]))
        return ProcessStatus(not chunk, None)

    def request_stop(self) -> None:
        """Request the end of the process and return at once."""
        self._supervisor.stop.close()

    def wait_gone(self) -> None:
        """Return when no process is left, after `request_stop` or the supervisor's death.

        Raises:
            RuntimeError: processes survive SIGKILL; the message names their pids.
        """
        supervisor = self._supervisor.process
        try:
            supervisor.wait(self._grace_s + _KILL_LIMIT_S)
        except subprocess.TimeoutExpired:
            supervisor.kill()
            supervisor.wait()
        self.kill_session()
        self._supervisor.report.close()

    def kill_session(self) -> None:
        """Kill the processes that a killed supervisor left behind.

        Raises:
            RuntimeError: processes survive SIGKILL; the message names their pids.
        """
        deadline = time.monotonic() + _KILL_LIMIT_S
        while left := [pid for pid in session_members(self.supervisor_pid) if not is_zombie(pid)]:
            if time.monotonic() > deadline:
                raise RuntimeError(f"{self.name}: processes {left} survive SIGKILL")
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(_POLL_S)

    def _read_pid(self) -> int:
        line = b""
        while not line.endswith(b"\n"):
            byte = os.read(self.fileno(), 1)
            if not byte:
                raise RuntimeError(f"supervisor of {self.name} did not start: see {self.log}")
            line += byte
        return int(line.split()[1])


def _start_supervisor(
    argv: Sequence[str], env: Mapping[str, str], log: Path, stop_grace_s: float
) -> _Supervisor:
    with log.open("wb") as output:
        # In a session of its own, Ctrl-C in the terminal reaches the launcher only, and processes
        # that a killed supervisor leaves behind are found by their session id.
        process = subprocess.Popen(
            [
                *(sys.executable, "-I", "-S", str(_SUPERVISOR)),
                *(str(os.getpid()), str(stop_grace_s), *argv),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=output,
            env=dict(env),
            start_new_session=True,
            bufsize=0,
        )
    if process.stdin is None or process.stdout is None:  # both are pipes; this is for the types
        raise RuntimeError("no pipes to the supervisor")
    return _Supervisor(process, process.stdin, process.stdout)


def session_members(session: int) -> list[int]:
    """Return the pids of a session, zombies included."""
    members = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(ProcessLookupError):
            if entry.name.isdigit() and os.getsid(int(entry.name)) == session:
                members.append(int(entry.name))
    return members


def is_zombie(pid: int) -> bool:
    """Return whether a process has ended, collected by its parent or not."""
    try:
        stat = Path("/proc", str(pid), "stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True
    return stat.rpartition(")")[2].split()[0] == "Z"
