"""Parent process of one server: no process of the server outlives its launcher.

The launcher runs this file by path with `python -I -S`, so it must not import anything outside
the standard library. One supervisor takes a few MB.

    supervise.py LAUNCHER_PID GRACE_S COMMAND...

stdin is a pipe that only the launcher holds. Its end closes when the launcher requests the stop of
the server, and when the launcher dies for any reason, `kill -9` included. The supervisor writes
`started PID` and `exited CODE` (negative: signal number) to stdout. stderr is the log file that
the server writes to.

The supervisor is a child subreaper, so processes whose parent died become its own children and
cannot leave the tree. PR_SET_PDEATHSIG covers the reverse case, a killed supervisor, for the
server's main process; the launcher then ends the other processes of the session. One case is not
covered: launcher and supervisor are killed at the same time while the server's children are still
importing. Later, upstream's children have arranged to die with their parent.
"""

import contextlib
import ctypes
import os
import select
import signal
import sys
import time
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_LAUNCHER_CHECK_S = 1.0  # a forked copy of the launcher may hold the pipe open: check its pid too
_LEFTOVER_GRACE_S = 1.0  # in which the server's children end and unlink shared memory themselves
_KILL_LIMIT_S = 30.0  # a process in the kernel may take this long to die of SIGKILL
_POLL_S = 0.02
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Supervisor:
    """Starts the command, waits for its end or for the launcher's, and clears the tree.

    Args:
        launcher: pid of the launcher.
        grace_s: seconds between SIGTERM and SIGKILL.
        command: command line.
    """

    def __init__(self, launcher: int, grace_s: float, command: list[str]) -> None:
        self._launcher = launcher
        self._grace_s = grace_s
        self._command = command
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._stop = False
        self._server = 0
        self._exit_code: int | None = None

    def run(self) -> int:
        """Return 0 when no process of the tree is left, 1 when one could not be killed."""
        self._libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        wake = self._wake_on_signals()
        self._server = self._spawn()
        _report(f"started {self._server}")
        while self._exit_code is None and not self._stop_requested(wake):
            self._reap()
        if self._exit_code is not None:
            # The launcher is informed before the tree is cleared, which takes time.
            _report(f"exited {self._exit_code}")
        return 0 if self._clear_tree() else 1

    def _wake_on_signals(self) -> int:
        reader, writer = os.pipe()
        os.set_blocking(reader, False)
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for number in _STOP_SIGNALS:
            signal.signal(number, self._on_stop_signal)
        return reader

    def _on_stop_signal(self, *_: object) -> None:
        self._stop = True

    def _spawn(self) -> int:
        supervisor = os.getpid()
        # A signal between fork and exec must reach the server, not a copy of these handlers.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
        pid = os.fork()
        if pid:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            return pid
        try:
            for number in (*_STOP_SIGNALS, signal.SIGPIPE):
                signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            # Upstream may kill its whole group (SGLANG_KILLPG_ON_SCHEDULER_EXCEPTION).
            os.setpgid(0, 0)
            self._libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            if os.getppid() != supervisor:
                os._exit(1)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(2, 1)
            os.execvp(self._command[0], self._command)
        except OSError as error:
            os.write(2, f"cannot run {self._command[0]}: {error}\n".encode())
        os._exit(127)

    def _stop_requested(self, wake: int) -> bool:
        readable, _, _ = select.select([0, wake], [], [], _LAUNCHER_CHECK_S)
        if wake in readable:
            os.read(wake, 4096)
        if 0 in readable and not os.read(0, 4096):
            return True
        return self._stop or os.getppid() != self._launcher

    def _reap(self) -> bool:
        """Collect ended children. Return whether no descendant is left, zombies included."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return True
            if pid == 0:
                return False
            if pid == self._server:
                self._exit_code = os.waitstatus_to_exitcode(status)

    def _clear_tree(self) -> bool:
        self._signal_server(signal.SIGTERM)
        self._wait(self._grace_s, for_server=True)
        self._signal_server(signal.SIGKILL)
        if self._wait(min(self._grace_s, _LEFTOVER_GRACE_S)):
            return True
        deadline = time.monotonic() + _KILL_LIMIT_S
        while time.monotonic() < deadline:
            for pid in descendants(os.getpid()):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if self._wait(10 * _POLL_S):
                return True
        return False

    def _signal_server(self, number: signal.Signals) -> None:
        if self._exit_code is None:  # not reaped yet, so the pid is still the server's
            os.kill(self._server, number)

    def _wait(self, limit_s: float, for_server: bool = False) -> bool:
        """Return whether the tree, or with `for_server` its main process, ends within the limit."""
        deadline = time.monotonic() + limit_s
        while True:
            gone = self._reap()
            if gone or (for_server and self._exit_code is not None):
                return True
            if time.monotonic() >= deadline:
                return False
            time.sleep(_POLL_S)


def descendants(root: int) -> list[int]:
    """Return the pids below `root`, parents before children."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            stat = (entry / "stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        # The command name, in parentheses, may hold spaces and parentheses itself.
        parent = int(stat.rpartition(")")[2].split()[1])
        children.setdefault(parent, []).append(int(entry.name))
    found: list[int] = []
    frontier = [root]
    while frontier:
        below = children.get(frontier.pop(), [])
        found += below
        frontier += below
    return found


def _report(line: str) -> None:
    with contextlib.suppress(OSError):  # the launcher may be gone
        os.write(1, f"{line}\n".encode())


if __name__ == "__main__":
    sys.exit(Supervisor(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3:]).run())
