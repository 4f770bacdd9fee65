"""Runs read back from their record files, arm by arm."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from kairos.errors import InputError
from kairos.replay.client.record import RequestRecord
from kairos.replay.report.summary import Summary, summarise
from kairos.replay.run.comparison import differences, server_differences
from kairos.replay.run.forwards import Forward, read_forwards
from kairos.replay.run.header import RunHeader
from kairos.replay.run.record_file import read_records


@dataclass(frozen=True)
class RunResult:
    """One run's records.

    Attributes:
        forwards_path: where its device trace is, if there is one.
    """

    header: RunHeader
    records: Sequence[RequestRecord]
    forwards_path: Path | None = None

    @cached_property
    def forwards(self) -> list[Forward]:
        """What the devices did, warm-up excluded; empty without a trace."""
        if self.forwards_path is None:
            return []
        start = self.header.start_monotonic_s
        return [f for f in read_forwards(self.forwards_path)[0] if f.start_s >= start]


@dataclass(frozen=True)
class Arm:
    """The runs of one server configuration at one load.

    Attributes:
        name: as shown; differs from the header's where two folders have the same arm.
        runs: at least one. Those that do not count are left out where there are others.
        left_out: headers of the runs left out, those that were made again included.
    """

    name: str
    runs: tuple[RunResult, ...]
    left_out: tuple[RunHeader, ...] = ()

    @property
    def header(self) -> RunHeader:
        return self.runs[0].header

    @property
    def counts(self) -> bool:
        """Whether it may be used as evidence."""
        return all(run.header.counts for run in self.runs)

    @cached_property
    def records(self) -> list[RequestRecord]:
        """Of all runs."""
        return [r for run in self.runs for r in run.records]

    @cached_property
    def summary(self) -> Summary:
        return summarise([(run.header, run.records) for run in self.runs])


def read_arms(paths: Sequence[Path], label: str = "", rejected: Sequence[Path] = ()) -> list[Arm]:
    """Arms of record files, loads ascending. Each load has its arms in the same order, that of
    their first runs at any load, so that the first arm is the baseline of every load.

    Args:
        label: put in front of every name.
        rejected: record files of runs that were set aside to be made again. Only where that has
            not happened yet are they shown as runs of their own.

    Raises:
        InputError: see `read_records`.
    """
    groups: dict[tuple[float, str], list[RunResult]] = {}
    for path in paths:
        header, records = read_records(path)
        forwards = path.with_name(path.name.replace("requests-", "forwards-", 1))
        result = RunResult(header, records, forwards if forwards.exists() else None)
        groups.setdefault((header.load, header.arm), []).append(result)
    set_aside: dict[tuple[float, str], list[RunResult]] = {}
    for path in rejected:
        result = RunResult(*read_records(path))
        set_aside.setdefault((result.header.load, result.header.arm), []).append(result)
    everyone = set_aside | groups
    began: dict[str, int] = {}
    for (_, name), runs in everyone.items():
        for run in runs:
            began[name] = min(began.get(name, run.header.position), run.header.position)
    arms = []
    for (load, name), runs in sorted(everyone.items(), key=lambda g: (g[0][0], began[g[0][1]])):
        runs.sort(key=lambda run: run.header.repeat)
        good = [run for run in runs if run.header.counts] or runs
        left_out = [run.header for run in runs if good is not runs and not run.header.counts]
        if (load, name) in groups:
            left_out += [run.header for run in set_aside.get((load, name), ())]
        arms.append(Arm(f"{label}{name}", tuple(good), tuple(left_out)))
    return arms


def check_comparable(arms: Sequence[Arm], force: bool = False) -> list[str]:
    """Arms of one table must have been given the same work by the same software.

    Returns:
        What differs, where `force` lets it pass.

    Raises:
        InputError: no arm; headers that differ in trace, load, SLOs, seed, profile, versions or
            commit; runs of an arm whose servers had other flags, or, `force` or not, that have
            unlike numbers of records, which cannot be taken together.
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
                    raise InputError(f"{text}; --force compares them all the same")
                found.append(text.replace("cannot be compared", "are compared although"))
    return list(dict.fromkeys(found))


def by_load(arms: Sequence[Arm]) -> dict[float, list[Arm]]:
    """Arms of each load, in the order given."""
    groups: dict[float, list[Arm]] = {}
    for arm in arms:
        groups.setdefault(arm.header.load, []).append(arm)
    return groups
