"""The generator's statistics against those of the public traces its presets are fitted to."""

import numpy as np
import pytest

from kairos.errors import InputError
from kairos.workload.prefix import expected_cached_tokens
from kairos.workload.synthetic import generate
from kairos.workload.trace import Trace

# mean, p50, p99, maximum of the public trace.
PUBLISHED = {
    "mooncake-conversation": ((12228, 7112, 87250, 124847), (347, 355, 1178, 2000), 3.31, 1.02),
    "azure-conversation": ((1155, 1020, 4142, 14050), (211, 129, 601, 1000), 5.53, 1.09),
    "servegen-r1": ((1023, 356, 17333, 34962), (720, 454, 6302, 30354), 2.51, 1.22),
}
COUNT = 20_000


@pytest.fixture(scope="module", params=sorted(PUBLISHED))
def preset(request: pytest.FixtureRequest) -> tuple[str, Trace]:
    return request.param, generate(request.param, COUNT, seed=11)


def test_lengths_fit_the_public_trace(preset: tuple[str, Trace]) -> None:
    """Mean and median within 4 %, the 99th percentile within 12 %, the maximum not above the
    trace's and at least 60 % of it."""
    name, trace = preset
    for field, (mean, p50, p99, largest) in zip(
        ("input_tokens", "output_tokens"), PUBLISHED[name][:2], strict=True
    ):
        lengths = np.array([getattr(r, field) for r in trace.requests])
        assert lengths.mean() == pytest.approx(mean, rel=0.04), field
        assert np.percentile(lengths, 50) == pytest.approx(p50, rel=0.04), field
        assert np.percentile(lengths, 99) == pytest.approx(p99, rel=0.12), field
        assert 0.6 * largest <= lengths.max() <= largest, field


def test_arrivals_fit_the_public_trace(preset: tuple[str, Trace]) -> None:
    """Rate within 12 % (it drifts on purpose), variation of the gaps within 6 %."""
    name, trace = preset
    _, _, rate, cv = PUBLISHED[name]
    arrivals = np.array([r.arrival_s for r in trace.requests])
    gaps = np.diff(arrivals)
    assert arrivals[0] == 0.0
    assert gaps.min() >= 0.0
    assert 1 / gaps.mean() == pytest.approx(rate, rel=0.12)
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.06)


def test_prefix_sharing_fits_the_conversation_trace() -> None:
    """Public trace: 36 % of its tokens are in earlier prompts, 17.5 % still in a cache of 4 M."""
    trace = generate("mooncake-conversation", 9000, seed=2)
    tokens = sum(r.input_tokens for r in trace.requests)
    everything = sum(expected_cached_tokens(trace.requests, 10**12)) / tokens
    recent = sum(expected_cached_tokens(trace.requests)) / tokens
    assert everything == pytest.approx(0.36, abs=0.05)
    assert recent == pytest.approx(0.175, abs=0.04)


def test_blocks_cover_the_prompt_and_form_trees() -> None:
    trace = generate("mooncake-conversation", 2000, seed=4)
    parent_of: dict[int, int] = {}
    for request in trace.requests:
        assert len(request.hash_ids) == -(-request.input_tokens // 512)
        for parent, block in zip((-1, *request.hash_ids), request.hash_ids, strict=False):
            assert parent_of.setdefault(block, parent) == parent


def test_same_seed_gives_the_same_trace() -> None:
    one, two, other = (generate("servegen-r1", 500, seed) for seed in (1, 1, 2))
    assert one == two
    assert one.sha256 != other.sha256


def test_bad_arguments_are_rejected() -> None:
    with pytest.raises(InputError, match="allowed are mooncake-conversation"):
        generate("mooncake", 10, 0)
    for count, seed in ((0, 0), (-1, 0), (10, -1)):
        with pytest.raises(InputError, match="out of range"):
            generate("servegen-r1", count, seed)
