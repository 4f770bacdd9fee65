"""Runs read back from their record files, arm by arm."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from kairos.errors import InputError
from kairos.replay.client.record import RequestRecord
from kairos.replay.report.summary import ArmSummary, summarise
from kairos.replay.run.comparison import differences, server_differences
from kairos.replay.run.forwards import Forward, read_forwards
from kairos.replay.run.header import RunHeader
from kairos.replay.run.record_file import read_records

_Key = tuple[float, str]  # load and arm


@dataclass(frozen=True)
class RunResult:
    """Records of one run.

    Attributes:
        header: header of the record file.
        records: one record per request.
        forwards_path: path of the device trace; None without one.
    """

    header: RunHeader
    records: Sequence[RequestRecord]
    forwards_path: Path | None = None

    @cached_property
    def forwards(self) -> list[Forward]:
        """Device trace of the run without its warm-up; empty without a trace."""
        if self.forwards_path is None:
            return []
        start = self.header.start_monotonic_s
        return [f for f in read_forwards(self.forwards_path)[0] if f.start_s >= start]


@dataclass(frozen=True)
class ArmResult:
    """The runs of one server configuration at one load.

    Attributes:
        name: name as shown; differs from the header's where two folders have the same arm.
        runs: at least one run. Runs that do not count are left out if others count.
        left_out: headers of the runs left out, including those that were made again.
    """

    name: str
    runs: tuple[RunResult, ...]
    left_out: tuple[RunHeader, ...] = ()

    @property
    def header(self) -> RunHeader:
        """Header of the first run."""
        return self.runs[0].header

    @property
    def counts(self) -> bool:
        """Whether the arm may be used as evidence."""
        return all(run.header.counts for run in self.runs)

    @cached_property
    def records(self) -> list[RequestRecord]:
        """Records of all runs."""
        return [r for run in self.runs for r in run.records]

    @cached_property
    def summary(self) -> ArmSummary:
        """Figures over all runs."""
        return summarise([(run.header, run.records) for run in self.runs])


def read_arms(
    paths: Sequence[Path], label: str = "", rejected: Sequence[Path] = ()
) -> list[ArmResult]:
    """Read record files into arms, loads ascending.

    Every load has its arms in the order of their first runs at any load, so that the first arm is
    the baseline of every load.

    Args:
        paths: record files.
        label: prefix of every name.
        rejected: record files of runs that were set aside to be made again. Until that has
            happened, they are shown as runs of their own.

    Raises:
        InputError: a file cannot be read, or a line is no header or record.
    """
    groups = _grouped(_read(path) for path in paths)
    set_aside = _grouped(RunResult(*read_records(path)) for path in rejected)
    everyone = set_aside | groups
    first: dict[str, int] = {}
    for (_, name), runs in everyone.items():
        for run in runs:
            first[name] = min(first.get(name, run.header.position), run.header.position)
    arms = []
    for (load, name), runs in sorted(everyone.items(), key=lambda g: (g[0][0], first[g[0][1]])):
        runs.sort(key=lambda run: run.header.repeat)
        good = [run for run in runs if run.header.counts] or runs
        left_out = [run.header for run in runs if good is not runs and not run.header.counts]
        if (load, name) in groups:
            left_out += [run.header for run in set_aside.get((load, name), ())]
        arms.append(ArmResult(f"{label}{name}", tuple(good), tuple(left_out)))
    return arms


def _read(path: Path) -> RunResult:
    header, records = read_records(path)
    forwards = path.with_name(path.name.replace("requests-", "forwards-", 1))
    return RunResult(header, records, forwards if forwards.exists() else None)


def _grouped(results: Iterable[RunResult]) -> dict[_Key, list[RunResult]]:
    groups: dict[_Key, list[RunResult]] = {}
    for result in results:
        groups.setdefault((result.header.load, result.header.arm), []).append(result)
    return groups


def check_comparable(arms: Sequence[ArmResult], force: bool = False) -> list[str]:
    """Check that the arms of one table had the same work and the same software.

    Args:
        arms: arms of one load.
        force: return differences instead of refusing them.

    Returns:
        The differences that `force` lets pass.

    Raises:
        InputError: no arms, or headers that differ in work or software, or runs of an arm whose
            servers had other flags. Runs of an arm with unlike numbers of records cannot be taken
            together and are always refused.
    """
    if not arms:
        raise InputError("a report needs at least one arm")
    found = []
    first = arms[0]
    for arm in arms:
        for run in arm.runs:
            if len(run.records) != len(arm.runs[0].records):
                raise InputError(
                    f"runs of {arm.name} have {len(arm.runs[0].records)} and {len(run.records)} "
                    "records: they cannot be one arm"
                )
            for difference in (
                *differences(first.header, run.header),
                *server_differences(arm.header, run.header),
            ):
                text = f"{first.name} and {arm.name} cannot be compared: {difference}"
                if not force:
                    raise InputError(f"{text}; --force compares them and names the difference")
                found.append(text.replace("cannot be compared", "are compared although"))
    return list(dict.fromkeys(found))


def by_load(arms: Sequence[ArmResult]) -> dict[float, list[ArmResult]]:
    """Return the arms of each load, in the order given."""
    groups: dict[float, list[ArmResult]] = {}
    for arm in arms:
        groups.setdefault(arm.header.load, []).append(arm)
    return groups
