"""Runs that are done already and need not be made again."""

from collections.abc import Sequence

from kairos.errors import InputError
from kairos.replay.plan.campaign import ReplayRun
from kairos.replay.plan.plan import Plan
from kairos.replay.plan.plans import Plans
from kairos.replay.run.config import RunConfig
from kairos.replay.run.header import RunHeader
from kairos.replay.run.provenance import git_commit
from kairos.replay.run.record_file import read_records, rejected_path


def finished(
    runs: Sequence[ReplayRun], plans: Plans, config: RunConfig, force: bool = False
) -> dict[str, RunHeader]:
    """Return the headers of the runs that are done, by stem.

    A run that was disturbed or lost a server is not done. Its records move to
    rejected-STEM.N.jsonl, which reports read.

    Args:
        runs: runs to look for.
        plans: their plans.
        config: their configuration.
        force: keep runs of another commit.

    Raises:
        InputError: records of other work, servers or software than requested.
    """
    done = {}
    commit = git_commit()
    for run in runs:
        path = run.records(config.out)
        if not path.exists():
            continue
        header, _ = read_records(path)
        if not _is_same_work(header, plans.at(run.load), config):
            raise InputError(
                f"--resume: {path} is of another replay; give the same trace, start, load, "
                "duration, SLOs, seed, profile, instances, ranks, dilation, prefix cache, limits, "
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


def _is_same_work(header: RunHeader, plan: Plan, config: RunConfig) -> bool:
    work, workload, client = plan.config, plan.workload, config.client
    url_servers = config.url_servers()
    found = (
        *(header.trace_sha256, header.requests, header.slo_set, header.tpot_ms),
        *(header.seed, header.time_scale, header.dilate, header.cache_tokens),
        *(header.profile, header.instances, header.dp_attention),
        *(header.start_s, header.emulated),
        *(header.timeout_s, header.budget_s, header.mini_lb),
        *(header.servers.get(name) for name in url_servers),
    )
    wanted = (
        *(workload.trace.sha256, len(plan.requests), work.slo_set, work.tpot_ms),
        *(work.seed, workload.time_scale, work.dilate, workload.cache_tokens),
        *(config.profile, config.instances, str(config.dp_attention)),
        *(work.start_s, config.emulated),
        *(client.timeout_s, client.budget_s, config.mini_lb),
        *url_servers.values(),
    )
    return found == wanted
