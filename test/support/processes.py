"""Search for processes by a mark in their environment, independent of their parents."""

import time
import uuid
from pathlib import Path

MARK = "KAIROS_TEST_MARK"


def new_mark() -> str:
    """Return a new value for the environment variable `MARK`."""
    return uuid.uuid4().hex


def marked(mark: str) -> dict[int, str]:
    """Return live processes with the mark, without zombies: command line by pid."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            if mark.encode() not in (entry / "environ").read_bytes():
                continue
            if (entry / "stat").read_text().rpartition(")")[2].split()[0] != "Z":
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ")
                found[int(entry.name)] = command.decode(errors="replace")
        except OSError:
            continue
    return found


def wait_none(mark: str, limit_s: float = 30.0) -> dict[int, str]:
    """Wait until no process has the mark; return those left at the limit."""
    deadline = time.monotonic() + limit_s
    while (left := marked(mark)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return left


def is_alive(pid: int) -> bool:
    """Return whether a process runs; a zombie does not."""
    try:
        stat = Path("/proc", str(pid), "stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"
