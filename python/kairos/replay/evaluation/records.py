"""Records behind the evaluation: the figures of a simulation or of a replay's report."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from kairos.errors import InputError

SIMULATED = "simulated-"
ENGINE = "engine-"
_Record = TypeVar("_Record", bound=msgspec.Struct)


class SimulatedRecord(msgspec.Struct, frozen=True, kw_only=True):
    """Figures of one trace in the simulator.

    Attributes:
        label: name of the trace for readers.
        requests: number of requests taken from the start of the trace.
        tpot_ms: TPOT objective.
        stage: the busier stage, "prefill" or "decode". Load is the load of that stage.
        prefill_load: prefill load at load 1; None in older records.
        baseline_load: largest load found at which FCFS meets both SLOs for the required share.
        loads: figures by load, arm and name.
        goodput: by arm, the largest load found with the required e2e attainment.
    """

    kind: str = "simulated"
    label: str
    trace: str
    sha256: str
    requests: int
    slo_set: str
    tpot_ms: float
    profile: str
    git_commit: str
    stage: str
    prefill_load: float | None = None
    baseline_load: float
    loads: dict[str, dict[str, dict[str, float]]]
    goodput: dict[str, float]


class LengthDecile(msgspec.Struct, frozen=True):
    """Attainment of one tenth of the requests, by prompt length.

    Attributes:
        shortest_tokens: shortest prompt of the tenth.
        longest_tokens: longest prompt of the tenth.
        ttft_attainment: percent of the tenth that meets its TTFT SLO.
    """

    shortest_tokens: int
    longest_tokens: int
    ttft_attainment: float


class ClassAttainment(msgspec.Struct, frozen=True):
    """Attainment of one SLO class, percent."""

    ttft_attainment: float
    tpot_attainment: float
    e2e_attainment: float


class EngineArm(msgspec.Struct, frozen=True, kw_only=True):
    """Figures of one arm in a report.json, in the units that their names end with.

    Attainment is in percent of all requests sent. A figure is None where the runs do not have it.
    """

    load: float
    runs: int
    failures: int
    note: str
    ttft_attainment: float
    tpot_attainment: float
    tpot_attainment_engine_clock: float | None
    e2e_attainment: float
    longest10_ttft_attainment: float | None
    goodput_tokens_per_s: float
    decode_tokens_per_busy_s: float | None
    ttft_p50_s: float | None
    ttft_p99_s: float | None
    longest10_ttft_p99_s: float | None
    max_ttft_over_slo: float | None
    tpot_p50_ms: float | None
    tpot_p99_ms: float | None
    max_stall_s: float | None
    effective_load: float | None
    send_lag_p99_ms: float | None
    deciles: list[LengthDecile]
    classes: dict[str, ClassAttainment]
    intervals: dict[str, tuple[float, float]]


class OfferedWork(msgspec.Struct, frozen=True, kw_only=True):
    """Requests of a run and the seconds over which they arrive."""

    requests: int
    span_s: float


class EngineLoad(msgspec.Struct, frozen=True, kw_only=True):
    """The arms of a report at one load.

    Attributes:
        headers: by arm, the header of its first run.
        fidelity: by arm, simulator minus engine by figure; None or empty if it was not simulated.
        left_out: by arm, headers of the runs that do not count.
    """

    arms: dict[str, EngineArm]
    headers: dict[str, list[OfferedWork]]
    fidelity: dict[str, dict[str, float | None] | None]
    left_out: dict[str, list[Any]] = {}

    def offered_work(self) -> OfferedWork:
        """The same for every arm."""
        return next(own[0] for own in self.headers.values() if own)

    def first_load(self) -> str:
        """Load of the first arm."""
        return f"{next(iter(self.arms.values())).load:g}"


class EngineRecord(EngineLoad, frozen=True, kw_only=True):
    """A kept report.json.

    Attributes:
        workload: trace, requests, load, SLOs, instances and profile, in words.
        emulated: whether the servers ran on the emulated accelerator.
        loads: figures by load, if the report has several; the fields of EngineLoad are then empty.
        goodput: by arm, the loads found with the required attainment.
        differences: ways in which the runs differ that `--force` allowed.
    """

    workload: str
    emulated: bool
    loads: dict[str, EngineLoad]
    goodput: dict[str, dict[str, Any]]
    differences: list[str] = []

    @property
    def kind(self) -> str:
        """Label of the figures."""
        return "emulated" if self.emulated else "measured"

    def by_load(self) -> Mapping[str, EngineLoad]:
        """The arms by load, also of a report of a single load."""
        return self.loads or {self.first_load(): self}

    def at(self, load: str) -> EngineLoad:
        """The arms at one load; with an empty `load`, those of a report of a single load.

        Raises:
            InputError: the record has no such load.
        """
        if not load and not self.loads:
            return self
        try:
            return self.loads[load]
        except KeyError:
            raise InputError(
                f"load {load!r}: the record has {', '.join(self.loads) or 'one load only'}"
            ) from None


class Records:
    """The record files of one folder, in the order of the number that their names begin with.

    Attributes:
        simulated: by name, without "simulated-" and ".json".
        engine: by name, without "engine-" and ".json".
    """

    def __init__(self, folder: Path) -> None:
        self.simulated: dict[str, SimulatedRecord] = {
            name: _decoded(path, SimulatedRecord) for name, path in _files(folder, SIMULATED)
        }
        self.engine: dict[str, EngineRecord] = {
            name: _decoded(path, EngineRecord) for name, path in _files(folder, ENGINE)
        }

    def engine_record(self, name: str) -> EngineRecord:
        """The record of a replay.

        Raises:
            InputError: there is none of that name.
        """
        return _named(self.engine, name, "engine")

    def simulated_record(self, name: str) -> SimulatedRecord:
        """The record of a simulated trace.

        Raises:
            InputError: there is none of that name.
        """
        return _named(self.simulated, name, "simulated")


def engine_record(source: str, data: bytes) -> EngineRecord:
    """Decode a report.json.

    Args:
        source: file or name for the error message.
        data: its content.

    Raises:
        InputError: it is no report, or one of another schema.
    """
    try:
        return msgspec.json.decode(data, type=EngineRecord)
    except msgspec.DecodeError as error:
        raise InputError(f"{source}: not a report.json of this version ({error})") from error


def without_repetition(report: Mapping[str, Any]) -> dict[str, Any]:
    """A report.json reduced to the figures that the evaluation shows.

    The simulator's raw figures and the headers of all runs but each arm's first are left out.
    Folders of the machine are cut from paths.
    """

    def slim(part: Mapping[str, Any]) -> dict[str, Any]:
        headers = {arm: _without_folders(runs[:1]) for arm, runs in part["headers"].items()}
        return {**part, "simulated": {}, "headers": headers}

    return slim({**report, "loads": {load: slim(own) for load, own in report["loads"].items()}})


def _named(records: Mapping[str, _Record], name: str, kind: str) -> _Record:
    try:
        return records[name]
    except KeyError:
        known = ", ".join(records) or "none"
        raise InputError(f"{kind} record {name!r} is missing, there are: {known}") from None


def _without_folders(value: Any) -> Any:
    """`value` with every absolute path in it reduced to its last part."""
    if isinstance(value, Mapping):
        return {name: _without_folders(own) for name, own in value.items()}
    if isinstance(value, list):
        return [_without_folders(own) for own in value]
    if isinstance(value, str) and value.startswith("/"):
        return value.rpartition("/")[2]
    return value


def _files(folder: Path, prefix: str) -> list[tuple[str, Path]]:
    """Names and paths of a kind, by the number that each name begins with: 10 comes after 9."""
    found = [(path.stem.removeprefix(prefix), path) for path in folder.glob(f"{prefix}*.json")]

    def key(item: tuple[str, Path]) -> tuple[int, str]:
        number = item[0].partition("-")[0]
        return (int(number) if number.isdecimal() else 10**9, item[0])

    return sorted(found, key=key)


def _decoded(path: Path, kind: type[_Record]) -> _Record:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (OSError, msgspec.DecodeError) as error:
        raise InputError(f"{path}: {error}") from error
