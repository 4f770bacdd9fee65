"""The dispatcher in closed loop over simulated instances."""

from dataclasses import asdict

import pytest

from kairos.errors import InputError
from kairos.router.queue.params import Binding, DispatchParams
from kairos.sim.result import ShardedResult
from kairos.sim.routed_memory import RoutedDecodeMemory
from kairos.sim.router_shards import ShardedSimulation
from kairos.sim.shard_layout import ShardLayout
from kairos.workload.resampling import PoissonLoad, resample
from kairos.workload.slo_sets import assign_slos
from kairos.workload.trace import TraceRequest
from support.dispatching import PROFILE

LENGTHS = [500, 1_000, 2_000, 4_000, 9_000, 20_000, 60_000]
TRACE = [TraceRequest(0.0, tokens, 200) for tokens in LENGTHS]


def run(layout: ShardLayout, load: float = 0.8, count: int = 300) -> ShardedResult:
    pairs = layout.shards * layout.prefill
    requests = resample(TRACE, PoissonLoad(count, load, pairs, seed=1), PROFILE)
    slos = assign_slos(requests, [0] * count, PROFILE, "L3")
    return ShardedSimulation(requests, slos, layout, PROFILE).run()


@pytest.mark.parametrize("engine", ["urgency", "fcfs"])
@pytest.mark.parametrize("binding", Binding)
def test_every_binding_serves_every_request(engine, binding):
    params = DispatchParams(binding=binding)
    assert run(ShardLayout(1, 2, 1, engine=engine, params=params)).rejected == 0


@pytest.mark.parametrize("balancer", ["random", "least"])
def test_same_seed_gives_the_same_figures(balancer):
    layout = ShardLayout(2, 2, 2, balancer=balancer)
    first, second = asdict(run(layout)), asdict(run(layout))
    first.pop("router_us"), second.pop("router_us")
    assert first == second


def test_one_shard_over_all_pairs_beats_many():
    whole, cut = run(ShardLayout(1, 8, 8), 0.9, 800), run(ShardLayout(8, 1, 1), 0.9, 800)
    assert whole.ttft_p50_s < cut.ttft_p50_s
    assert whole.ttft_p99_s < cut.ttft_p99_s


def test_memory_is_granted_by_rank_and_given_back():
    memory = RoutedDecodeMemory(100)
    assert memory.ask(1, 5.0, 80) == [1]
    assert memory.ask(2, 4.0, 60) == []
    assert memory.ask(3, 9.0, 10) == []  # behind a request that does not fit
    assert memory.give_back(80) == [2, 3]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"shards": 0}, "layout: shards 0 must be at least 1"),
        ({"decode": -1}, "layout: decode -1 must be at least 1"),
        ({"balancer": "x"}, "layout: balancer: 'x' is not one of random, least"),
        ({"engine": "x"}, "layout: engine: 'x' is not one of urgency, fcfs"),
    ],
)
def test_bad_layouts_are_rejected(bad, message):
    with pytest.raises(InputError, match=message):
        ShardLayout(**{"shards": 1, "prefill": 1, "decode": 1, **bad})
