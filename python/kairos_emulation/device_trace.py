"""Optional trace of the emulated accelerator: its forwards and KV transfers as JSON lines."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec


class DeviceWork(NamedTuple):
    """One forward or KV transfer, without its times.

    Attributes:
        kind: "prefill", "decode", "transfer", or "idle" for a data-parallel attention rank without
            requests in a step of its peers.
        batch: number of requests.
        tokens: tokens that are computed or moved.
        context: tokens of KV that existed before (prefill) or are read (decode).
        rids, new: prefill: the requests of the batch, and the tokens computed of each.
        joined, left: decode: requests that were not in this server's previous step, and requests
            of it that are not in this step.
    """

    kind: str
    batch: int
    tokens: int
    context: int
    rids: Sequence[str] = ()
    new: Sequence[int] = ()
    joined: Sequence[str] = ()
    left: Sequence[str] = ()


class DeviceTimes(NamedTuple):
    """Times of one forward or KV transfer, in monotonic seconds of this machine.

    Attributes:
        launch_s: when the host launched it.
        duration_s: how long it takes by the profile.
        end_s: when the accelerator is done with it.
        bubble_s: how long the stream or link was idle before; 0 for the first record.
        waited_s: part of the duration in which the rank waits for the slowest one.
    """

    launch_s: float
    duration_s: float
    end_s: float
    bubble_s: float
    waited_s: float = 0.0


class DeviceRecord(msgspec.Struct, omit_defaults=True):
    """One line of a trace: fields of `DeviceWork` and `DeviceTimes`, and the process.

    Attributes:
        role: "prefill", "decode" or "null" for an ordinary server.
        pid: the scheduler process.
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
    waited_s: float = 0.0
    rids: list[str] = []
    new: list[int] = []
    joined: list[str] = []
    left: list[str] = []


class DeviceTrace:
    """Appends records to a file that several servers may share: one write call per line.

    Args:
        path: of the file.
        role: of the server.

    Raises:
        OSError: the file cannot be opened.
    """

    def __init__(self, path: str, role: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self._role = role
        self._pid = os.getpid()

    def write(self, work: DeviceWork, times: DeviceTimes) -> None:
        """Append one record."""
        record = DeviceRecord(
            role=self._role,
            pid=self._pid,
            kind=work.kind,
            batch=work.batch,
            tokens=work.tokens,
            context=work.context,
            launch_s=times.launch_s,
            duration_s=times.duration_s,
            end_s=times.end_s,
            bubble_s=times.bubble_s,
            waited_s=times.waited_s,
            rids=list(work.rids),
            new=list(work.new),
            joined=list(work.joined),
            left=list(work.left),
        )
        os.write(self._file, msgspec.json.encode(record) + b"\n")


def read_device_trace(path: str | Path) -> list[DeviceRecord]:
    """Return all records of a trace file, in the order in which they were written."""
    lines = Path(path).read_bytes().splitlines()
    return [msgspec.json.decode(line, type=DeviceRecord) for line in lines]
