"""One process of the cluster, under its supervisor."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

_SUPERVISOR = Path(__file__).with_name("supervise.py")
_KILL_LIMIT_S = 60.0  # the supervisor's own limits, with room
_POLL_S = 0.02


class SupervisedProcess:
    """A command that ends, with everything it started, when this process ends or says so.

    Attributes:
        name: what messages call it.
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
        self._exit_code: int | None = None
        self._ended = False
        with log.open("wb") as output:
            # Own session: Ctrl-C in the terminal reaches the launcher only, and whatever a killed
            # supervisor leaves behind can be told by its session id.
            self._supervisor = subprocess.Popen(
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
        try:
            self.pid = self._read_pid()
        except BaseException:
            self.request_stop()
            self.wait_gone()
            raise

    @property
    def supervisor_pid(self) -> int:
        """Pid of the supervisor; also the session id of every process below it."""
        return self._supervisor.pid

    def fileno(self) -> int:
        """Readable when `poll` has news."""
        assert self._supervisor.stdout is not None
        return self._supervisor.stdout.fileno()

    def poll(self) -> tuple[bool, int | None]:
        """Reads the supervisor's report; blocks until there is one.

        Returns:
            Whether the process has ended, and its exit code (None: unknown).
        """
        chunk = os.read(self.fileno(), 4096)
        self._report += chunk
        for line in self._report.split(b"\n"):
            if line.startswith(b"exited "):
                self._exit_code = int(line.split()[1])
                self._ended = True
        self._ended = self._ended or not chunk
        return self._ended, self._exit_code

    def request_stop(self) -> None:
        """Tells the supervisor to stop the process; returns at once."""
        assert self._supervisor.stdin is not None
        self._supervisor.stdin.close()

    def wait_gone(self) -> None:
        """Returns when no process is left, after `request_stop` or the death of the supervisor.

        Raises:
            RuntimeError: processes that SIGKILL does not end, named by pid.
        """
        try:
            self._supervisor.wait(self._grace_s + _KILL_LIMIT_S)
        except subprocess.TimeoutExpired:
            self._supervisor.kill()
            self._supervisor.wait()
        self.kill_session()
        assert self._supervisor.stdout is not None
        self._supervisor.stdout.close()

    def kill_session(self) -> None:
        """Kills what a killed supervisor left behind.

        Raises:
            RuntimeError: processes that SIGKILL does not end, named by pid.
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


def session_members(session: int) -> list[int]:
    """Pids of a session, zombies included."""
    members = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(ProcessLookupError):
            if entry.name.isdigit() and os.getsid(int(entry.name)) == session:
                members.append(int(entry.name))
    return members


def is_zombie(pid: int) -> bool:
    """Whether a process has ended, collected by its parent or not."""
    try:
        stat = Path("/proc", str(pid), "stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True
    return stat.rpartition(")")[2].split()[0] == "Z"
