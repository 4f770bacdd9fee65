"""Windows, prefix hits, load and its scaling."""

from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from kairos.errors import InputError
from kairos.latency import Profile, load_profile
from kairos.workload.load import TraceSection, prefill_work_s, scale_to_load
from kairos.workload.prefix import expected_cached_tokens
from kairos.workload.synthetic import generate
from kairos.workload.trace import Trace, TraceRequest

PROFILE: Profile = load_profile("minimax-m2.5-tp4-h200")


def trace(*requests: tuple[float, int]) -> Trace:
    return Trace("t", "sha", [TraceRequest(at, tokens, 10) for at, tokens in requests])


def test_prefix_hits_are_whole_leading_blocks() -> None:
    requests = [
        TraceRequest(0, 1200, 1, (1, 2, 3)),
        TraceRequest(1, 1500, 1, (1, 2, 4)),
        TraceRequest(2, 1024, 1, (1, 2)),  # all of it is cached, one token is computed anyway
        TraceRequest(3, 700, 1),
    ]
    assert expected_cached_tokens(requests) == [0, 1024, 1023, 0]


def test_prefix_cache_drops_the_least_recently_used_leaves_first() -> None:
    requests = [
        TraceRequest(0, 1024, 1, (1, 2)),
        TraceRequest(1, 1024, 1, (3, 4)),
        TraceRequest(2, 2000, 1, (1, 2, 5, 6)),
    ]
    # Three blocks fit: 3, 4 and the root of the first prompt.
    assert expected_cached_tokens(requests, 3 * 512) == [0, 0, 512]
    assert expected_cached_tokens(requests, 4 * 512) == [0, 0, 1024]


def test_load_is_work_over_span_and_instances() -> None:
    source = trace((0, 8192), (3, 8192), (10, 4096))
    work = sum(PROFILE.prefill.remaining_s(0, r.input_tokens, 8192) for r in source.requests)
    for instances in (1, 2):
        workload = scale_to_load(source, 0.8, PROFILE, instances=instances)
        assert workload.trace.span_s == pytest.approx(work / (0.8 * instances))
        assert workload.time_scale == pytest.approx(work / (0.8 * instances) / 10)
        second = workload.trace.requests[1]
        assert second.arrival_s == pytest.approx(3 * workload.time_scale)
        assert second.input_tokens == 8192


def test_cached_tokens_are_no_work() -> None:
    shared = Trace("t", "", [TraceRequest(float(t), 1024, 1, (1, 2)) for t in range(3)])
    assert scale_to_load(shared, 1.0, PROFILE).cached_tokens == [0, 1023, 1023]
    full, rest = (prefill_work_s(shared.requests[0], hit, PROFILE) for hit in (0, 1023))
    assert scale_to_load(shared, 1.0, PROFILE).trace.span_s == pytest.approx(full + 2 * rest)


@pytest.mark.parametrize("load", [0.3, 0.9, 1.3])
def test_duration_takes_the_requests_that_offer_the_load(load: float) -> None:
    source = generate("mooncake-conversation", 3000, seed=1)
    workload = scale_to_load(source, load, PROFILE, section=TraceSection(60, 120))
    requests = workload.trace.requests
    work = sum(
        prefill_work_s(r, hit, PROFILE)
        for r, hit in zip(requests, workload.cached_tokens, strict=True)
    )
    assert work / workload.trace.span_s == pytest.approx(load)
    heaviest = max(prefill_work_s(r, 0, PROFILE) for r in source.requests)
    assert workload.trace.span_s == pytest.approx(120, abs=heaviest / load / 2)
    assert requests[0].arrival_s == 0.0
    first = next(r for r in source.requests if r.arrival_s >= 60)
    assert requests[0].input_tokens == first.input_tokens


def test_trace_shorter_than_the_duration_is_taken_whole() -> None:
    workload = scale_to_load(
        trace((0, 100), (1, 100)), 0.5, PROFILE, section=TraceSection(duration_s=1e6)
    )
    assert len(workload.trace.requests) == 2


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"load": 0.0}, "load: 0.0 is out of range"),
        ({"load": float("nan")}, "load: nan"),
        ({"load": -1.0}, "load: -1.0"),
        ({"instances": 0}, "instances: 0"),
        ({"section": TraceSection(-1.0)}, "start-s: -1.0"),
        ({"section": TraceSection(0.0, 0.0)}, "duration-s: 0.0"),
        ({"section": TraceSection(0.0, float("inf"))}, "duration-s: inf"),
        ({"section": TraceSection(2.0)}, "1 requests arrive from 2 s on"),
        ({"section": TraceSection(5.0)}, "0 requests arrive"),
        ({"cache_tokens": -1}, "prefix-cache-tokens: -1"),
    ],
)
def test_bad_arguments_are_rejected(change: dict[str, Any], says: str) -> None:
    arguments: dict[str, Any] = {"load": 1.0} | change
    with pytest.raises(InputError, match=says):
        scale_to_load(trace((0, 10), (2, 10)), profile=PROFILE, **arguments)


def test_simultaneous_arrivals_have_no_load() -> None:
    with pytest.raises(InputError, match="same instant"):
        scale_to_load(trace((1, 10), (1, 20)), 1.0, PROFILE)


def test_window_counts_times_from_its_start() -> None:
    source = trace((0, 1), (1, 2), (2.5, 3), (4, 4))
    kept = source.window(1, 2).requests
    assert [(r.arrival_s, r.input_tokens) for r in kept] == [(0, 2), (1.5, 3)]
    with pytest.raises(InputError, match="no request arrives between 5 s and 6 s"):
        source.window(5, 1)


@given(
    st.lists(st.tuples(st.floats(0, 1000), st.integers(1, 200_000)), min_size=2, max_size=30),
    st.floats(0.05, 5),
)
def test_any_trace_is_scaled_exactly_and_keeps_its_order(
    values: list[tuple[float, int]], load: float
) -> None:
    source = trace(*sorted(values))
    assume(source.span_s > 1e-3)
    workload = scale_to_load(source, load, PROFILE)
    arrivals = [r.arrival_s for r in workload.trace.requests]
    assert arrivals == sorted(arrivals)
    work = sum(prefill_work_s(r, 0, PROFILE) for r in workload.trace.requests)
    assert work / workload.trace.span_s == pytest.approx(load)
