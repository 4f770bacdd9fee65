"""Time the decisions of the scheduling policies. Prints medians over repeated runs.

Times are CPU times of the deciding thread: on a busy machine wall times measure its neighbours.
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import orjson
import psutil

from kairos.latency import load_profile
from kairos.latency.table import StepTable
from kairos.policy.jobs import PrefillJob
from kairos.policy.length import LengthEstimator
from kairos.policy.residents import DecodeResident, Residents
from kairos.policy.slack import SlackPolicy
from kairos.policy.urgency import UrgencyQueue
from kairos.sim.config import SimConfig
from kairos.sim.scenario import Scenario
from kairos.sim.simulation import simulate

PROFILE = load_profile("minimax-m2.5-tp4-h200")
URGENCY_SIZES = (100, 300, 1_000, 3_000, 10_000)
SHORT_SIZES = (1_000, 10_000)
SLACK_SIZES = (16, 64, 256, 1_024)
DECISIONS = 400


def percentiles(decide: Callable[[int], object], repeats: int) -> tuple[float, float]:
    """Return the medians over repeats of the p50 and the p99 of one decision, microseconds."""
    p50, p99 = [], []
    for _ in range(repeats):
        taken = np.empty(DECISIONS)
        for step in range(DECISIONS):
            start = time.thread_time()
            decide(step)
            taken[step] = time.thread_time() - start
        p50.append(np.quantile(taken, 0.5) * 1e6)
        p99.append(np.quantile(taken, 0.99) * 1e6)
    return float(np.median(p50)), float(np.median(p99))


def urgency_queue(size: int) -> UrgencyQueue:
    """Return a queue of feasible, deferred and infeasible jobs."""
    rng = np.random.default_rng(size)
    queue = UrgencyQueue(PROFILE.prefill, PROFILE.limits.chunk_tokens)
    lengths = np.minimum(rng.lognormal(8.5, 1.2, size).astype(int) + 1, 200_000)
    for i, length in enumerate(lengths.tolist()):
        arrival = -float(rng.random()) * size / 100
        slack = float(rng.choice([0.5 + 4e-5 * length, 0.02 * size]))
        queue.add(PrefillJob(i, arrival, arrival + slack, length))
    return queue


def short_prompts(size: int) -> UrgencyQueue:
    """Return a queue of infeasible prompts of 50 tokens: a batch takes many of them."""
    queue = UrgencyQueue(PROFILE.prefill, PROFILE.limits.chunk_tokens)
    for i in range(size):
        queue.add(PrefillJob(i, -10.0 - 1e-3 * i, -9.0 - 1e-3 * i, 50))
    return queue


def decide_urgency(queue: UrgencyQueue, size: int) -> Callable[[int], object]:
    """Return a decision as a server takes it: a job arrives, a batch is planned, a job leaves."""

    def decide(step: int) -> object:
        now = 1e-3 * step
        queue.add(PrefillJob(size + step, now, now + 1.0, 1_000))
        plan = queue.plan(now, PROFILE.limits.chunk_tokens)
        queue.remove(size + step)
        return plan

    return decide


def decide_slack(size: int) -> Callable[[int], object]:
    """Return a selection among residents of which some are behind and some have banked slack."""
    rng = np.random.default_rng(size)
    table = StepTable.from_model(PROFILE.decode, max(size, 256), PROFILE.limits.kv_tokens)
    policy = SlackPolicy(table, size, lengths=LengthEstimator())
    residents = Residents()
    for i in range(size):
        tokens = int(rng.integers(0, 300))
        first = -0.03 * tokens + float(rng.normal(0.0, 0.2))
        context = int(rng.lognormal(8.5, 1.0)) + 1
        residents.add(DecodeResident(i, context, tokens, first, first, 0.03))
    rows = residents.rows
    return lambda step: policy.select(rows, 1e-3 * step)


def simulator_seconds() -> float:
    """Return the seconds of simulating a long-tailed scenario of 8,927 requests, 1P1D, one core."""
    rng = np.random.default_rng(1)
    n = 8_927
    lengths = np.minimum(rng.lognormal(8.9, 1.05, n).astype(np.int64) + 1, 125_000)
    outputs = np.minimum(rng.gamma(1.4, 248.0, n).astype(np.int64) + 1, 2_000)
    arrival = np.cumsum(rng.exponential(1.0 / 3.2, n))
    own = np.array([PROFILE.prefill.remaining_s(0, k, 8_192) for k in lengths.tolist()])
    arrival *= own.sum() / 0.9 / arrival[-1]
    zeros = np.zeros(n, np.int64)
    scenario = Scenario(arrival, lengths, outputs, zeros, 0.5 + 3.0 * own, np.full(n, 0.03), zeros)
    start = time.perf_counter()
    simulate(scenario, SimConfig(), PROFILE)
    return time.perf_counter() - start


def soak(requests: int) -> dict[str, list[float]]:
    """Pass requests through the state of every policy.

    The first tenth allocates compiled kernels, which is not growth.

    Returns:
        resident memory after every tenth of the requests, MiB.
    """
    queue = UrgencyQueue(PROFILE.prefill, PROFILE.limits.chunk_tokens)
    lengths = LengthEstimator()
    table = StepTable.from_model(PROFILE.decode, 256, PROFILE.limits.kv_tokens)
    policy = SlackPolicy(table, 256, lengths=lengths)
    residents = Residents()
    process = psutil.Process()
    memory = []
    for i in range(1, requests + 1):
        now = 1e-3 * i
        queue.add(PrefillJob(i, now, now + 1.0, 1_000))
        residents.add(DecodeResident(i, 1_000, 0, now, now, 0.03))
        if i % 64 == 0:
            queue.plan(now, PROFILE.limits.chunk_tokens)
            policy.observe(policy.select(residents.rows, now), 0.02)
        if i > 64:
            queue.remove(i - 64)
            residents.remove(i - 64)
            policy.completed(0, i % 997 + 1)
        if i % max(1, requests // 10) == 0:
            memory.append(round(process.memory_info().rss / 2**20, 1))
    return {"soak_requests": [float(requests)], "soak_rss_mib": memory}


def plot(figures: dict[str, float], path: Path) -> None:
    """Plot p50 and p99 over size, with n log n through the largest size."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(11, 4.5))
    for axis, name, sizes in zip(
        axes, ("urgency", "slack"), (URGENCY_SIZES, SLACK_SIZES), strict=True
    ):
        for level in ("p50", "p99"):
            values = [figures[f"{name}_{level}_us_{size}"] for size in sizes]
            axis.loglog(sizes, values, marker="o", label=level)
        grown = np.array(sizes) * np.log(sizes)
        axis.loglog(sizes, grown / grown[-1] * values[-1], "k:", label="n log n")
        axis.set_title(f"{name} decision")
        axis.set_xlabel("requests")
        axis.set_ylabel("microseconds")
        axis.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON instead of lines")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--plot", type=Path, help="write the growth plot here")
    parser.add_argument("--no-simulator", action="store_true", help="do not time the simulator")
    parser.add_argument(
        "--soak", type=int, default=0, help="measure only memory, over this many requests"
    )
    args = parser.parse_args()
    if args.soak:
        print(orjson.dumps(soak(args.soak)).decode())
        return 0

    figures: dict[str, float] = {}
    for size in URGENCY_SIZES:
        decide = decide_urgency(urgency_queue(size), size)
        p50, p99 = percentiles(decide, args.repeats)
        figures[f"urgency_p50_us_{size}"], figures[f"urgency_p99_us_{size}"] = p50, p99
    for size in SHORT_SIZES:
        p50, p99 = percentiles(decide_urgency(short_prompts(size), size), args.repeats)
        figures[f"urgency_short_p50_us_{size}"] = p50
        figures[f"urgency_short_p99_us_{size}"] = p99
    for size in SLACK_SIZES:
        p50, p99 = percentiles(decide_slack(size), args.repeats)
        figures[f"slack_p50_us_{size}"], figures[f"slack_p99_us_{size}"] = p50, p99
    if not args.no_simulator:
        figures["simulator_8927_requests_s"] = min(simulator_seconds() for _ in range(2))
    if args.plot is not None:
        plot(figures, args.plot)
    if args.json:
        print(orjson.dumps(figures, option=orjson.OPT_INDENT_2).decode())
    else:
        for name, value in figures.items():
            print(f"{name:32} {value:10.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
