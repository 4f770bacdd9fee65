"""Measure the router's scheduling at 1,000 and 10,000 waiting requests.

The figures are CPU times of the scheduling thread per event, in microseconds. `request` is the sum
of all events divided by the number of dispatched requests.
"""

import argparse
import random
import sys
import time
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import numpy as np
import orjson

from kairos.latency import load_profile
from kairos.router.queue.dispatcher import Dispatcher
from kairos.router.queue.params import DispatchParams
from kairos.router.queue.request import RequestDemand
from kairos.router.workers.endpoint import Role
from kairos.slo import Slo

PROFILE = load_profile("minimax-m2.5-tp4-h200")
SIZES = (1_000, 10_000)
PAIRS = 4
EVENTS = 600
P = ParamSpec("P")
R = TypeVar("R")


def bench(size: int, preemptive: bool) -> dict[str, float]:
    """Return the median and 99th percentile of each event.

    Args:
        size: number of waiting requests, which is kept.
        preemptive: whether prefill servers interrupt a prompt between its chunks.
    """
    draw = random.Random(1)
    params = DispatchParams(
        max_requests=1_000_000, max_sequences=1_000_000, tenant_room=float("inf")
    )
    made = Dispatcher(params)
    for i in range(PAIRS):
        made.add_worker(f"p{i}", Role.PREFILL, PROFILE, preemptive=preemptive)
        made.add_worker(f"d{i}", Role.DECODE, PROFILE)

    def request(id: int, now: float) -> RequestDemand:
        tokens = int(min(draw.lognormvariate(8.5, 1.2), 200_000)) + 1
        slo = Slo(draw.choice([500 + 0.04 * tokens, 20.0 * size]), 50.0)
        shared = draw.randrange(50) * 10_000
        blocks = tuple(range(shared, shared + min(tokens // 64, 1_024)))
        return RequestDemand(id, f"t{id % 5}", slo, now, tokens, 300, blocks=blocks)

    for id in range(size):
        made.offer(request(id, -draw.random() * size / 100), 0.0)
    taken: dict[str, list[float]] = {"offer": [], "dispatch": [], "done": [], "finished": []}
    spent = 0.0

    def timed(event: str, call: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        nonlocal spent
        begun = time.thread_time()
        result = call(*args, **kwargs)
        took = 1e6 * (time.thread_time() - begun)
        taken[event].append(took)
        spent += took
        return result

    now, id, live, sent = 0.0, size, list[int](), 0
    for _ in range(EVENTS):
        now += 0.02
        while made.waiting() < size:
            timed("offer", made.offer, request(id, now), now)
            id += 1
        new = timed("dispatch", made.dispatch, now)
        live += [one.id for one in new]
        sent += len(new)
        if live:
            ended = live.pop(0)
            timed("done", made.prefill_done, ended, now)
            timed("finished", made.finished, ended, now, 200)
    kind = "kairos" if preemptive else "plain"
    figures = {
        f"{event}_p{level}_us_{size}_{kind}": float(np.percentile(values, level))
        for event, values in taken.items()
        for level in (50, 99)
    }
    return {**figures, f"request_us_{size}_{kind}": spent / max(sent, 1)}


def main() -> int:
    """Print the figures. Return 0."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of lines")
    args = parser.parse_args()
    figures: dict[str, float] = {}
    for size in SIZES:
        for preemptive in (True, False):
            figures.update(bench(size, preemptive))
    if args.json:
        print(orjson.dumps(figures, option=orjson.OPT_INDENT_2).decode())
    else:
        for name, value in figures.items():
            print(f"{name:34} {value:8.1f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
