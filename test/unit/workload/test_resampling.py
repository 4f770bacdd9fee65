"""Requests drawn from a trace at a load."""

import pytest

from kairos.latency import load_profile
from kairos.workload.resampling import PoissonLoad, resample
from kairos.workload.trace import TraceRequest

PROFILE = load_profile("minimax-m2.5-tp4-h200")
SOURCE = [TraceRequest(0.0, tokens, 200, (1,)) for tokens in (500, 4_000, 20_000)]


@pytest.mark.parametrize("instances", [1, 4])
def test_drawn_requests_offer_the_load(instances: int) -> None:
    made = resample(SOURCE, PoissonLoad(4_000, 0.8, instances, seed=1), PROFILE)
    chunk = PROFILE.limits.chunk_tokens
    work_s = sum(PROFILE.prefill.remaining_s(0, r.input_tokens, chunk) for r in made)
    assert work_s / (made[-1].arrival_s * instances) == pytest.approx(0.8, rel=0.05)


def test_same_seed_draws_the_same_requests_without_shared_prefixes() -> None:
    first, again, other = (
        resample(SOURCE, PoissonLoad(100, 0.8, 1, seed), PROFILE) for seed in (1, 1, 2)
    )
    assert first == again != other
    assert not any(request.hash_ids for request in first)
    assert {request.input_tokens for request in first} == {500, 4_000, 20_000}
