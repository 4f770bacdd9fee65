"""The runs of a replay: their order, their files, and which of them are done."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

from kairos.errors import InputError
from kairos.replay.plan import Plan
from kairos.replay.record import Header, read_records
from kairos.replay.runner import Run


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


def finished(runs: Sequence[Run], plans: Mapping[float, Plan], out: Path) -> dict[str, Header]:
    """Headers of the runs in `out` that are done, by stem. Disturbed ones and those in which a
    server died are not: their records move to rejected-STEM.jsonl.

    Raises:
        InputError: records that are of other work than asked for.
    """
    done = {}
    for run in runs:
        path = run.records(out)
        if not path.exists():
            continue
        header, _ = read_records(path)
        plan = plans[run.load]
        workload = plan.workload
        theirs = (
            *(header.trace_sha256, header.requests, header.slo_set, header.tpot_ms),
            *(header.seed, header.time_scale, header.dilate, header.cache_tokens),
        )
        mine = (
            *(workload.trace.sha256, len(plan.requests), plan.slo_set, plan.tpot_ms),
            *(plan.seed, workload.time_scale, plan.dilate, workload.cache_tokens),
        )
        if theirs != mine:
            raise InputError(
                f"--resume: {path} is of another replay; give the same trace, load, duration, "
                "SLOs, seed, dilation and prefix cache, or another --out"
            )
        if header.counts:
            done[run.stem] = header
        else:
            path.replace(out / f"rejected-{run.stem}.jsonl")
    return done


def records_in(folder: Path) -> list[Path]:
    """Record files of a folder, by name.

    Raises:
        InputError: there are none.
    """
    found = sorted(folder.glob("requests-*.jsonl"))
    if not found:
        raise InputError(f"{folder}: no requests-*.jsonl in it")
    return found
