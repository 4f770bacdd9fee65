"""Warm-up of servers before a run."""

import os
from collections.abc import Callable
from dataclasses import replace

from kairos.cluster import ClusterError
from kairos.replay.client.client import ClientConfig
from kairos.replay.client.record import RequestOutcome
from kairos.replay.client.target import Target
from kairos.replay.client.worker import Worker, WorkerJob
from kairos.replay.plan.plan import Plan, PlannedRequest
from kairos.replay.plan.prompts import VOCABULARY, Prompts
from kairos.slo import Slo
from kairos.workload.trace import TraceRequest

_LENGTHS = (64, 2_000, 12_000)
_OUTPUT_TOKENS = 16
_LIMIT_S = 120.0
_POLL_S = 0.5


def warm_up(
    plan: Plan, seed: int, target: Target, options: ClientConfig, check: Callable[[], None]
) -> str:
    """Prompts of other content and several lengths through every pair, twice; returns what was
    done.

    Raises:
        ClusterError: one of them failed.
    """
    pairs = target.pairs
    longest = max(p.request.input_tokens for p in plan.requests)
    different = sorted({min(n, longest) for n in _LENGTHS})
    lengths = [n for n in different for _ in range(2 * pairs)]
    gap_s = 0.2 * plan.dilate
    requests = [
        PlannedRequest(i, TraceRequest(i * gap_s, length, _OUTPUT_TOKENS), 0, Slo(60e3, 1e3))
        for i, length in enumerate(lengths)
    ]
    limits = replace(options, timeout_s=_LIMIT_S, budget_s=2 * _LIMIT_S)
    # Another seed gives other ids everywhere, so that the run finds none of it cached.
    job = WorkerJob(target, Prompts(VOCABULARY, seed + 1), limits, f"w{os.getpid():07d}", requests)
    with Worker(job) as worker:
        worker.start()
        while (records := worker.poll(_POLL_S)) is None:
            check()
    failed = [r for r in records if r.outcome is not RequestOutcome.OK]
    if failed:
        first = failed[0]
        raise ClusterError(
            f"warm-up: {len(failed)} of {len(records)} requests failed, the first with "
            f"{first.outcome.value}: {first.reason}"
        )
    shown = ", ".join(f"{n:,}" for n in different)
    return (
        f"{len(requests)} requests of {shown} prompt and {_OUTPUT_TOKENS} output tokens with "
        "content of their own, before the run, in none of the figures"
    )
