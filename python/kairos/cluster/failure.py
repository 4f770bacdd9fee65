"""Errors of a cluster: a process ended, or the cluster did not become ready."""

import os
import signal
from pathlib import Path

TAIL_LINES = 20
_TAIL_BYTES = 64 * 1024
_PORT_TAKEN = ("address already in use", "is already in use", "errno 98")


class ClusterError(RuntimeError):
    """The cluster cannot serve; the message names the process and the reason."""


class ServerDiedError(ClusterError):
    """A process of the cluster ended by itself.

    Attributes:
        name: the process, such as "prefill-0" or "router".
        exit_code: negative for a signal; None when its supervisor was killed before it reported.
        log: file with the output of the process.
        tail: last lines of the log.
    """

    def __init__(self, name: str, exit_code: int | None, log: Path, while_: str) -> None:
        self.name = name
        self.exit_code = exit_code
        self.log = log
        self.tail = log_tail(log)
        lines = "".join(f"\n    {line}" for line in self.tail)
        super().__init__(
            f"{name} died {while_}: {describe_exit(exit_code)}; last lines of {log}:{lines}"
        )

    @property
    def port_taken(self) -> bool:
        """Return whether the last lines name a port that another process holds."""
        text = "\n".join(self.tail).lower()
        return any(sign in text for sign in _PORT_TAKEN)


def describe_exit(exit_code: int | None) -> str:
    """Return an exit code in words: "exit code 3", "exit code -9 (SIGKILL)"."""
    if exit_code is None:
        return "its supervisor was killed, exit code unknown"
    if exit_code >= 0:
        return f"exit code {exit_code}"
    try:
        return f"exit code {exit_code} ({signal.Signals(-exit_code).name})"
    except ValueError:
        return f"exit code {exit_code}"


def log_tail(log: Path, lines: int = TAIL_LINES) -> list[str]:
    """Return the last non-empty lines of a log file; none when it cannot be read."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    return [line for line in text.splitlines() if line.strip()][-lines:]
