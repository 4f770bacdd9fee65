"""Find and await processes by a mark in their environment, whoever their parent is."""

import time
import uuid
from pathlib import Path

MARK = "KAIROS_TEST_MARK"


def new_mark() -> str:
    """Value for the environment variable `MARK`."""
    return uuid.uuid4().hex


def marked(mark: str) -> dict[int, str]:
    """Live processes (no zombies) with the mark: pid -> command line."""
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
    """Waits until no process has the mark; returns those left at the limit."""
    deadline = time.monotonic() + limit_s
    while (left := marked(mark)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return left


def is_alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        stat = Path("/proc", str(pid), "stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"
