"""The runs of a replay: their order, their files, and which of them are done."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

from kairos.errors import InputError
from kairos.replay.plan import Plan
from kairos.replay.record import Header, read_records
from kairos.replay.runner import Run, Setting, git_commit, reached


def runs_of(arms: Sequence[str], loads: Sequence[float], repeats: int) -> list[Run]:
    """All runs in the order in which they are made: every arm once before any comes again, and the
    order of arms turned round each time, so that a machine that drifts favours none."""
    if not 1 <= repeats <= 1000:
        raise InputError(f"--repeats: {repeats} is out of range, allowed are 1 to 1000")
    rounds = itertools.product(range(1, repeats + 1), loads)
    runs: list[Run] = []
    for turn, (repeat, load) in enumerate(rounds):
        for arm in arms if turn % 2 == 0 else reversed(arms):
            stem = arm
            if len(loads) > 1:
                stem += f"@{load:g}"
            if repeat > 1:
                stem += f".r{repeat}"
            runs.append(Run(arm, load, repeat, len(runs) + 1, stem))
    return runs


def finished(
    runs: Sequence[Run], plans: Mapping[float, Plan], setting: Setting, force: bool = False
) -> dict[str, Header]:
    """Headers of the runs that are done, by stem. Disturbed ones and those in which a server died
    are not: their records move to rejected-STEM.N.jsonl, which reports read.

    Args:
        force: keep runs of another commit.

    Raises:
        InputError: records that are of other work, servers or software than asked for.
    """
    done = {}
    commit = git_commit()
    for run in runs:
        path = run.records(setting.out)
        if not path.exists():
            continue
        header, _ = read_records(path)
        plan = plans[run.load]
        workload = plan.workload
        theirs = (
            *(header.trace_sha256, header.requests, header.slo_set, header.tpot_ms),
            *(header.seed, header.time_scale, header.dilate, header.cache_tokens),
            *(header.profile, header.instances, header.start_s, header.emulated),
            *(header.timeout_s, header.budget_s, header.mini_lb),
            *(header.servers.get(name) for name in reached(setting)),
        )
        mine = (
            *(workload.trace.sha256, len(plan.requests), plan.slo_set, plan.tpot_ms),
            *(plan.seed, workload.time_scale, plan.dilate, workload.cache_tokens),
            *(setting.profile, setting.instances, setting.start_s, setting.emulated),
            *(setting.limits.timeout_s, setting.limits.budget_s, setting.mini_lb),
            *reached(setting).values(),
        )
        if theirs != mine:
            raise InputError(
                f"--resume: {path} is of another replay; give the same trace, start, load, "
                "duration, SLOs, seed, profile, instances, dilation, prefix cache, limits, "
                "--router, URL, API, model and SLO headers, or another --out"
            )
        if commit and header.git_commit and header.git_commit != commit and not force:
            raise InputError(
                f"--resume: {path} was made with commit {header.git_commit}, this is {commit}; "
                "--force keeps it, and the report says so"
            )
        if header.counts:
            done[run.stem] = header
        else:
            path.replace(_rejected(setting.out, run.stem))
    return done


def _rejected(out: Path, stem: str) -> Path:
    """The first name that is free."""
    names = (out / f"rejected-{stem}.{i}.jsonl" for i in itertools.count(1))
    return next(path for path in names if not path.exists())


def rejected_in(folder: Path, stems: Sequence[str] = ("",)) -> list[Path]:
    """Record files of runs that did not count and were set aside, by name.

    Args:
        stems: what follows "rejected-".
    """
    starts = tuple(f"rejected-{stem}" for stem in stems)
    return [p for p in sorted(folder.glob("rejected-*.jsonl")) if p.name.startswith(starts)]


def probes_in(folder: Path, arms: Sequence[str]) -> list[Path]:
    """Record files of single loads of `arms`, which are those that a goodput search leaves."""
    return [path for arm in arms for path in sorted(folder.glob(f"requests-{arm}@*.jsonl"))]


def records_in(folder: Path) -> list[Path]:
    """Record files of a folder, by name.

    Raises:
        InputError: there are none.
    """
    found = sorted(folder.glob("requests-*.jsonl"))
    if not found:
        raise InputError(f"{folder}: no requests-*.jsonl in it")
    return found
