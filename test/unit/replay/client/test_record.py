"""The record of one request on a hand-made token timeline."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kairos.replay.client.record import ReceivedTokens, RequestOutcome, RequestRecord, make_record
from support.replay import planned


def record(
    times: list[float],
    *,
    outcome: RequestOutcome = RequestOutcome.OK,
    ttft_ms: float = 500,
    tpot_ms: float = 25,
) -> RequestRecord:
    request = planned(output_tokens=max(1, len(times)), ttft_ms=ttft_ms, tpot_ms=tpot_ms)
    return make_record(request, "r", outcome, received=ReceivedTokens(0.002, times))


def test_figures_follow_the_token_times() -> None:
    """Tokens at 0.4, 0.42, 0.5 and 0.52 s after the request was due."""
    r = record([0.4, 0.42, 0.5, 0.52], tpot_ms=40)
    assert r.ttft_ms == pytest.approx(400)
    assert r.tpot_ms == pytest.approx(120 / 3)
    assert r.worst_gap_ms == pytest.approx(80)
    assert r.token_gaps_ms == [20.0, 80.0, 20.0]
    assert r.got_tokens == 4
    assert r.send_lag_ms == pytest.approx(2)
    assert (r.ttft_met, r.tpot_met, r.met) == (True, True, True)


def test_objectives_are_met_up_to_and_including_their_value() -> None:
    times = [0.5, 0.75]  # exact in binary
    assert record(times, ttft_ms=500, tpot_ms=250).met
    assert not record(times, ttft_ms=499.999, tpot_ms=250).ttft_met
    assert not record(times, ttft_ms=500, tpot_ms=249.999).tpot_met


def test_tpot_counts_the_wait_after_the_first_token() -> None:
    """Nineteen fast tokens do not hide a pause before the second one."""
    times = [0.1, 1.1, *(1.1 + 0.01 * i for i in range(1, 19))]
    assert record(times).tpot_ms == pytest.approx(1e3 * (times[-1] - 0.1) / 19)
    assert not record(times).tpot_met


def test_single_token_has_no_tpot_and_cannot_miss_it() -> None:
    r = record([0.1])
    assert r.tpot_ms is None
    assert r.worst_gap_ms is None
    assert r.met


@pytest.mark.parametrize("outcome", [o for o in RequestOutcome if o is not RequestOutcome.OK])
def test_failure_misses_both_objectives_however_fast_it_was(outcome: RequestOutcome) -> None:
    r = record([0.1, 0.11], outcome=outcome)
    assert r.ttft_ms is not None
    assert (r.ttft_met, r.tpot_met, r.met) == (False, False, False)


def test_record_without_tokens_has_no_latencies() -> None:
    r = record([], outcome=RequestOutcome.TIMEOUT)
    assert (r.ttft_ms, r.tpot_ms, r.worst_gap_ms, r.got_tokens) == (None, None, None, 0)


@given(st.lists(st.floats(0, 10), min_size=2, max_size=60))
def test_gaps_add_up_to_the_decode_time(gaps: list[float]) -> None:
    times = [1.0]
    for gap in gaps:
        times.append(times[-1] + gap)
    r = record(times)
    assert r.tpot_ms is not None
    assert r.tpot_ms * len(gaps) == pytest.approx(1e3 * sum(gaps), abs=1e-6)
    assert sum(r.token_gaps_ms) == pytest.approx(1e3 * sum(gaps), abs=0.051 * len(gaps))
    assert r.worst_gap_ms == pytest.approx(1e3 * max(gaps), abs=1e-6)
