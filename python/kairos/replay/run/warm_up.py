"""Warm-up of servers before a run."""

import os
from dataclasses import replace

from kairos.cluster import ClusterError
from kairos.replay.client.job import ClientConfig, WorkerJob
from kairos.replay.client.record import RequestOutcome
from kairos.replay.client.worker import WorkerProcess
from kairos.replay.plan.plan import Plan, PlannedRequest
from kairos.replay.plan.prompts import VOCABULARY, Prompts
from kairos.replay.run.servers import RunServers
from kairos.slo import Slo
from kairos.workload.trace import TraceRequest

_LENGTHS = (64, 2_000, 12_000)
_OUTPUT_TOKENS = 16
_GAP_S = 0.2
_LIMIT_S = 120.0
_POLL_S = 0.5


def warm_up(plan: Plan, seed: int, servers: RunServers, config: ClientConfig) -> str:
    """Send prompts of several lengths through every pair, twice.

    Args:
        plan: plan of the run, whose longest prompt limits the lengths.
        seed: seed of the run's prompts; the warm-up uses another one.
        servers: servers of the run.
        config: request format of the run.

    Returns:
        A description of the requests, for the header.

    Raises:
        ClusterError: a request failed.
    """
    longest = max(p.request.input_tokens for p in plan.requests)
    different = sorted({min(n, longest) for n in _LENGTHS})
    lengths = [n for n in different for _ in range(2 * servers.target.pairs)]
    gap_s = _GAP_S * plan.config.dilate
    requests = [
        PlannedRequest(i, TraceRequest(i * gap_s, length, _OUTPUT_TOKENS), 0, Slo(60e3, 1e3))
        for i, length in enumerate(lengths)
    ]
    limits = replace(config, timeout_s=_LIMIT_S, budget_s=2 * _LIMIT_S)
    # Another seed gives other ids at every position, so the run finds none of them in a cache.
    prompts = Prompts(VOCABULARY, seed + 1)
    job = WorkerJob(servers.target, prompts, limits, f"w{os.getpid():07d}", requests)
    with WorkerProcess(job) as worker:
        worker.start()
        while (result := worker.poll(_POLL_S)) is None:
            servers.check()
    failed = [r for r in result.records if r.outcome is not RequestOutcome.OK]
    if failed:
        first = failed[0]
        raise ClusterError(
            f"warm-up: {len(failed)} of {len(requests)} requests failed, the first with "
            f"{first.outcome.value}: {first.reason}"
        )
    shown = ", ".join(f"{n:,}" for n in different)
    return (
        f"{len(requests)} requests of {shown} prompt and {_OUTPUT_TOKENS} output tokens with "
        "prompts of their own, before the run, in none of the figures"
    )
