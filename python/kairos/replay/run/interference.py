"""Interference with a run: other work on the machine, and delays of host and client."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import psutil

from kairos.replay.client.record import RequestRecord
from kairos.replay.run.forwards import Forward, decode_lag_percent
from kairos.replay.run.percentile import percentile

SEND_LAG_LIMIT_MS = 5.0
"""Limit of the 99th percentile; beyond it, arrivals were not those of the trace."""
OTHERS_LIMIT_CORES = 0.25
PRESSURE_LIMIT_PERCENT = 40.0
"""Emulated servers and the client sometimes wait for cores even on an otherwise idle machine."""
DEVICE_LAG_LIMIT_PERCENT = 5.0

_PRESSURE = Path("/proc/pressure/cpu")


class InterferenceReport(msgspec.Struct, frozen=True, kw_only=True):
    """How undisturbed a run was. A figure is None where it could not be measured.

    Attributes:
        cpu_pressure_percent: share of the run in which some task waited for a core.
        others_cores: cores that processes outside of the run kept busy.
        run_cores: cores that the run's own servers and client kept busy.
        device_lag_percent: time that an emulated device waited for its host between two steps of a
            running batch, relative to its computing time; worst device.
        send_lag_p99_ms: 99th percentile of the client's send lag.
        problems: why the run must not be counted; empty if it may be.
    """

    cpu_pressure_percent: float | None = None
    others_cores: float | None = None
    run_cores: float | None = None
    device_lag_percent: float | None = None
    send_lag_p99_ms: float | None = None
    problems: tuple[str, ...] = ()


class _Usage(NamedTuple):
    """Counters of the machine at one time.

    Attributes:
        time_s: monotonic time.
        pressure_s: seconds since boot in which some task waited for a core; None if not counted.
        machine_s: core seconds of all processes since boot; None if not counted.
        tree_s: core seconds of this process and its descendants.
    """

    time_s: float
    pressure_s: float | None
    machine_s: float | None
    tree_s: float

    @classmethod
    def now(cls) -> "_Usage":
        return cls(time.monotonic(), _pressure_s(), _machine_s(), _tree_s())


class InterferenceMonitor:
    """Measures on the client's machine, from its construction to `result`."""

    def __init__(self) -> None:
        self._began = _Usage.now()

    def result(
        self,
        records: Sequence[RequestRecord],
        forwards: Sequence[Forward],
        *,
        emulated: bool,
        dilate: float = 1.0,
    ) -> InterferenceReport:
        """Return the measurements with the problems that they show.

        Args:
            records: records of the run.
            forwards: device trace of the run.
            emulated: whether this machine makes the servers' time, so that it must be quiet. For
                other servers only the client's send lag counts.
            dilate: factor by which the run was slowed down.
        """
        began, ended = self._began, _Usage.now()
        seconds = max(1e-9, ended.time_s - began.time_s)
        pressure = machine = own = None
        if began.pressure_s is not None and ended.pressure_s is not None:
            pressure = round(100.0 * (ended.pressure_s - began.pressure_s) / seconds, 2)
        if began.machine_s is not None and ended.machine_s is not None:
            own = (ended.tree_s - began.tree_s) / seconds
            machine = (ended.machine_s - began.machine_s) / seconds
        lags = sorted(r.send_lag_ms for r in records if r.send_lag_ms is not None)
        device_lag = decode_lag_percent(forwards, dilate)
        found = InterferenceReport(
            cpu_pressure_percent=pressure,
            others_cores=None if machine is None or own is None else round(machine - own, 3),
            run_cores=None if own is None else round(own, 3),
            device_lag_percent=None if device_lag is None else round(device_lag, 2),
            send_lag_p99_ms=percentile(lags, 99),
        )
        return judged(found, emulated=emulated, dilate=dilate)


def judged(found: InterferenceReport, *, emulated: bool, dilate: float = 1.0) -> InterferenceReport:
    """Return `found` with its problems; for the arguments see `InterferenceMonitor.result`."""
    limits = [("client's send lag p99", found.send_lag_p99_ms, SEND_LAG_LIMIT_MS * dilate, "ms")]
    if emulated:
        limits += [
            ("cores used by other processes", found.others_cores, OTHERS_LIMIT_CORES, ""),
            ("CPU pressure", found.cpu_pressure_percent, PRESSURE_LIMIT_PERCENT, "%"),
            ("lag of emulated devices", found.device_lag_percent, DEVICE_LAG_LIMIT_PERCENT, "%"),
        ]
    problems = tuple(
        f"{name} {value:.2f} {unit}".strip() + f", allowed are {limit:g}"
        for name, value, limit, unit in limits
        if value is not None and value > limit
    )
    return msgspec.structs.replace(found, problems=problems)


def _pressure_s() -> float | None:
    """Return the seconds since boot in which some task waited for a core."""
    try:
        some = _PRESSURE.read_text().splitlines()[0]
        return int(some.rpartition("total=")[2]) / 1e6
    except (OSError, ValueError, IndexError):
        return None


def _machine_s() -> float | None:
    """Return the core seconds of all processes since boot.

    They are None in a container that has only a part of the cores, where the counters are those of
    the whole machine.
    """
    if psutil.cpu_count() != len(psutil.Process().cpu_affinity() or ()):
        return None
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system)


def _tree_s() -> float:
    """Return the core seconds of this process and its descendants, ended ones included."""
    total = 0.0
    me = psutil.Process()
    for process in [me, *me.children(recursive=True)]:
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system + times.children_user + times.children_system
    return total
