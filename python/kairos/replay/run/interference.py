"""Whether a run was left alone: what else the machine did, and how late host and client were."""

import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
import psutil

from kairos.replay.client.record import RequestRecord
from kairos.replay.run.forwards import Forward, decode_lag_percent
from kairos.replay.run.percentile import percentile

SEND_LAG_LIMIT_MS = 5.0
"""99th percentile; more, and arrivals were not those of the trace."""
OTHERS_LIMIT_CORES = 0.25
PRESSURE_LIMIT_PERCENT = 40.0
"""Emulated servers and the client wait for cores now and then even with the machine to
themselves."""
DEVICE_LAG_LIMIT_PERCENT = 5.0

_PRESSURE = Path("/proc/pressure/cpu")


class InterferenceReport(msgspec.Struct, frozen=True, kw_only=True):
    """How undisturbed a run was. None where it could not be measured.

    Attributes:
        cpu_pressure_percent: share of the run in which some task waited for a core.
        others_cores: cores that processes outside of the run kept busy.
        run_cores: cores that the run's own servers and client kept busy.
        device_lag_percent: time an emulated device waited for its host between two steps of a
            running batch, relative to the time it computed; worst device.
        send_lag_p99_ms: lag of the client's sends.
        problems: why the run must not be counted; empty when it may.
    """

    cpu_pressure_percent: float | None = None
    others_cores: float | None = None
    run_cores: float | None = None
    device_lag_percent: float | None = None
    send_lag_p99_ms: float | None = None
    problems: tuple[str, ...] = ()


class InterferenceMonitor:
    """Measures between its construction and `result`, on the machine of the client."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._pressure = _pressure_s()
        self._machine = _busy_s()
        self._own = _tree_s()

    def result(
        self,
        records: Sequence[RequestRecord],
        forwards: Sequence[Forward],
        *,
        emulated: bool,
        dilate: float = 1.0,
    ) -> InterferenceReport:
        """What was found, and what of it is too much.

        Args:
            emulated: the servers' time is made here, so the machine has to be quiet; other servers
                only ask for a client in time.
        """
        seconds = max(1e-9, time.monotonic() - self._began)
        pressure = machine = own = None
        if self._pressure is not None and (now := _pressure_s()) is not None:
            pressure = round(100.0 * (now - self._pressure) / seconds, 2)
        if self._machine is not None and (busy := _busy_s()) is not None:
            own = (_tree_s() - self._own) / seconds
            machine = (busy - self._machine) / seconds
        lags = sorted(r.send_lag_ms for r in records if r.send_lag_ms is not None)
        lag = decode_lag_percent(forwards, dilate)
        found = InterferenceReport(
            cpu_pressure_percent=pressure,
            others_cores=None if machine is None or own is None else round(machine - own, 3),
            run_cores=None if own is None else round(own, 3),
            device_lag_percent=None if lag is None else round(lag, 2),
            send_lag_p99_ms=percentile(lags, 99),
        )
        return judged(found, emulated=emulated, dilate=dilate)


def judged(found: InterferenceReport, *, emulated: bool, dilate: float = 1.0) -> InterferenceReport:
    """`found` with its problems named."""
    limits = [("client's send lag p99", found.send_lag_p99_ms, SEND_LAG_LIMIT_MS * dilate, "ms")]
    if emulated:
        limits += [
            ("cores used by other processes", found.others_cores, OTHERS_LIMIT_CORES, ""),
            ("CPU pressure", found.cpu_pressure_percent, PRESSURE_LIMIT_PERCENT, "%"),
            ("lag of emulated devices", found.device_lag_percent, DEVICE_LAG_LIMIT_PERCENT, "%"),
        ]
    problems = tuple(
        f"{what} {value:.2f} {unit}".strip() + f", allowed are {limit:g}"
        for what, value, limit, unit in limits
        if value is not None and value > limit
    )
    return InterferenceReport(
        cpu_pressure_percent=found.cpu_pressure_percent,
        others_cores=found.others_cores,
        run_cores=found.run_cores,
        device_lag_percent=found.device_lag_percent,
        send_lag_p99_ms=found.send_lag_p99_ms,
        problems=problems,
    )


def _pressure_s() -> float | None:
    """Seconds in which some task waited for a core, since boot."""
    try:
        some = _PRESSURE.read_text().splitlines()[0]
        return int(some.rpartition("total=")[2]) / 1e6
    except (OSError, ValueError, IndexError):
        return None


def _busy_s() -> float | None:
    """Core seconds of all processes since boot; None where the counters are another machine's."""
    if psutil.cpu_count() != len(psutil.Process().cpu_affinity() or ()):
        return None
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system)


def _tree_s() -> float:
    """Core seconds of this process and everything below it, the ended ones included."""
    total = 0.0
    me = psutil.Process()
    for process in [me, *me.children(recursive=True)]:
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system + times.children_user + times.children_system
    return total
