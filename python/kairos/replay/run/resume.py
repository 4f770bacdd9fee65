"""Runs that are done already and need not be made again."""

from collections.abc import Mapping, Sequence

from kairos.errors import InputError
from kairos.replay.plan.campaign import ReplayRun
from kairos.replay.plan.plan import Plan
from kairos.replay.run.config import RunConfig, reached
from kairos.replay.run.header import RunHeader
from kairos.replay.run.provenance import git_commit
from kairos.replay.run.record_file import read_records, rejected_path


def finished(
    runs: Sequence[ReplayRun], plans: Mapping[float, Plan], config: RunConfig, force: bool = False
) -> dict[str, RunHeader]:
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
        path = run.records(config.out)
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
            *(header.servers.get(name) for name in reached(config)),
        )
        mine = (
            *(workload.trace.sha256, len(plan.requests), plan.slo_set, plan.tpot_ms),
            *(plan.seed, workload.time_scale, plan.dilate, workload.cache_tokens),
            *(config.profile, config.instances, config.start_s, config.emulated),
            *(config.limits.timeout_s, config.limits.budget_s, config.mini_lb),
            *reached(config).values(),
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
            path.replace(rejected_path(config.out, run.stem))
    return done
