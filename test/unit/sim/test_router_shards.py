"""The dispatcher in closed loop over simulated instances."""

from dataclasses import asdict

import pytest

from kairos.errors import InputError
from kairos.router.queue.params import Binding, DispatchParams
from kairos.sim.router_shards import (
    RoutedDecodeMemory,
    ShardedResult,
    ShardedSimulation,
    ShardLayout,
    poisson,
)
from kairos.workload.slo_sets import assign_slos
from kairos.workload.trace import TraceRequest
from support.dispatching import PROFILE

LENGTHS = [500, 1_000, 2_000, 4_000, 9_000, 20_000, 60_000]
TRACE = [TraceRequest(0.0, tokens, 200) for tokens in LENGTHS]


def run(layout: ShardLayout, load: float = 0.8, count: int = 300) -> ShardedResult:
    pairs = layout.shards * layout.prefill
    requests = poisson(TRACE, count, load, pairs, PROFILE, 1)
    slos = assign_slos(requests, [0] * count, PROFILE, "L3")
    return ShardedSimulation(requests, slos, layout, PROFILE).run()


@pytest.mark.parametrize("engine", ["urgency", "fcfs"])
@pytest.mark.parametrize("binding", Binding)
def test_every_request_is_served_by_every_rule(engine, binding):
    params = DispatchParams(binding=binding)
    assert run(ShardLayout(1, 2, 1, engine=engine, params=params)).rejected == 0


@pytest.mark.parametrize("balancer", ["random", "least"])
def test_the_same_run_gives_the_same_figures(balancer):
    layout = ShardLayout(2, 2, 2, balancer=balancer)
    first, second = asdict(run(layout)), asdict(run(layout))
    first.pop("router_us"), second.pop("router_us")
    assert first == second


def test_one_queue_over_all_pairs_is_better_than_many():
    whole, cut = run(ShardLayout(1, 8, 8), 0.9, 800), run(ShardLayout(8, 1, 1), 0.9, 800)
    assert whole.ttft_p50_s < cut.ttft_p50_s
    assert whole.ttft_p99_s < cut.ttft_p99_s


def test_memory_is_given_in_order_and_comes_back():
    memory = RoutedDecodeMemory(100)
    assert memory.ask(1, 5.0, 80) == [1]
    assert memory.ask(2, 4.0, 60) == []
    assert memory.ask(3, 9.0, 10) == []  # behind the one that waits
    assert memory.give(80) == [2, 3]


def test_bad_layouts_are_refused():
    with pytest.raises(InputError, match="at least 1"):
        ShardLayout(0, 1, 1)
    with pytest.raises(InputError, match="balancer 'x'"):
        ShardLayout(1, 1, 1, balancer="x")
