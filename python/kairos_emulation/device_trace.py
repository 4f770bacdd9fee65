"""Optional record of everything the emulated accelerator did, as JSON lines."""

import os
from pathlib import Path
from typing import Any

import msgspec


class DeviceRecord(msgspec.Struct, omit_defaults=True):
    """One forward or KV transfer. Times are monotonic seconds of this machine.

    Attributes:
        role: "prefill", "decode" or "null" for an ordinary server.
        pid: the scheduler process.
        kind: "prefill", "decode" or "transfer".
        batch: requests.
        tokens: computed or moved.
        context: tokens of KV that existed before (prefill) or were read (decode).
        launch_s: when the host launched it.
        duration_s: what the profile says.
        end_s: when the accelerator is done with it.
        bubble_s: how long the stream or link had nothing to do before; 0 for the first record.
        rids, new: prefill: the requests of the batch and the tokens computed of each.
        joined, left: decode: requests that were not in this server's step before, and those of it
            that are not in this one.
    """

    role: str
    pid: int
    kind: str
    batch: int
    tokens: int
    context: int
    launch_s: float
    duration_s: float
    end_s: float
    bubble_s: float
    rids: list[str] = []
    new: list[int] = []
    joined: list[str] = []
    left: list[str] = []


class DeviceTrace:
    """Appends records to a file that several servers may share: one write call per line."""

    def __init__(self, path: str, role: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self._role = role
        self._pid = os.getpid()

    def write(self, **fields: Any) -> None:
        """Append a `DeviceRecord` of these fields and the process's role and pid."""
        record = DeviceRecord(role=self._role, pid=self._pid, **fields)
        os.write(self._file, msgspec.json.encode(record) + b"\n")


def read_device_trace(path: str | Path) -> list[DeviceRecord]:
    """All records of a trace file, in the order they were written."""
    return [
        msgspec.json.decode(line, type=DeviceRecord)
        for line in Path(path).read_bytes().splitlines()
    ]
