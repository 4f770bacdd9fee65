"""What the dispatcher says to a request that is offered, by numbered behaviours of its README."""

import math

import pytest

from kairos.errors import InputError
from kairos.policy.admission import AdmissionDecision
from kairos.router.queue.admission import Reason
from support.dispatching import dispatcher, ids, work


@pytest.mark.parametrize(
    ("params", "fields", "reason"),
    [
        ({"max_requests": 2}, {}, Reason.REQUESTS),
        ({"max_sequences": 8}, {"sequences": 4}, Reason.SEQUENCES),
        ({"max_bytes": 1_000}, {"body_bytes": 400}, Reason.BYTES),
    ],
)
def test_the_queue_is_bounded(params, fields, reason):
    made = dispatcher(tenant_room=math.inf, **params)
    assert all(made.offer(work(i, **fields), 0.0).queued for i in range(2))
    verdict = made.offer(work(2, **fields), 0.0)
    assert (verdict.decision, verdict.reason) == (AdmissionDecision.REJECT, reason)
    assert 1.0 <= verdict.retry_after_s <= 60.0
    assert "at most" in verdict.detail
    made.cancelled(0, 0.0)
    assert made.offer(work(2, **fields), 0.0).queued


def test_one_tenant_alone_does_not_fill_the_queue():
    made = dispatcher(max_requests=100)
    verdicts = [made.offer(work(i, tenant="flood"), 0.0) for i in range(100)]
    assert sum(v.queued for v in verdicts) == 80
    assert verdicts[-1].reason is Reason.TENANT
    for t in range(4):
        assert made.offer(work(1_000 + t, tenant=f"t{t}"), 0.0).queued


def test_what_no_instance_could_ever_hold_is_rejected_at_once():
    made = dispatcher(decode_kv=10_000)
    verdict = made.offer(work(0, tokens=10_000), 0.0)
    assert (verdict.reason, verdict.retry_after_s) == (Reason.TOO_LARGE, 0.0)
    assert "10000" in verdict.detail
    assert made.offer(work(1, tokens=9_999), 0.0).queued
    # Several prompts that fit one by one.
    assert made.offer(work(2, tokens=30_000, sequences=4), 0.0).queued


def test_nothing_is_queued_without_a_pair():
    made = dispatcher(decode=0)
    assert made.offer(work(0), 0.0).reason is Reason.NO_PAIR
    assert not made.has_pair()


@pytest.mark.parametrize("infeasible", ["best_effort", "degrade", "reject"])
def test_what_cannot_be_on_time_is_treated_as_configured(infeasible):
    made = dispatcher(infeasible=AdmissionDecision(infeasible))
    verdict = made.offer(work(0, tokens=100_000, ttft_ms=500.0), 0.0)
    assert verdict.reason is Reason.INFEASIBLE
    assert verdict.decision.value == infeasible
    assert verdict.predicted_ttft_s > 1.0
    assert verdict.queued == (infeasible != "reject")
    if infeasible == "reject":
        assert verdict.retry_after_s >= verdict.predicted_ttft_s - 0.5
    if infeasible == "degrade":
        assert verdict.slo.ttft_s > verdict.predicted_ttft_s
    if infeasible == "best_effort":
        for i in range(1, 30):
            made.offer(work(i, 0.0, 8_000, ttft_ms=20_000.0), 0.0)
        assert next(iter(ids(made.dispatch(0.0)))) != 0
    assert (
        made.offer(work(99, tokens=1_000, ttft_ms=5_000.0), 0.0).decision is AdmissionDecision.ADMIT
    )


def test_requests_without_an_objective_yield_to_the_others_and_go_by_arrival():
    made = dispatcher()
    for i, ttft_ms in enumerate((math.inf, math.inf, 20_000.0)):
        assert made.offer(work(i, 0.1 * i, 8_000, ttft_ms=ttft_ms), 0.3).queued
    assert next(iter(ids(made.dispatch(0.3)))) == 2
    alone = dispatcher()
    for i in range(3):
        alone.offer(work(i, 0.3 - 0.1 * i, 8_000 - i, ttft_ms=math.inf), 0.3)
    assert next(iter(ids(alone.dispatch(0.3)))) == 2


def test_the_queue_ahead_counts():
    made = dispatcher(max_sequences=10_000)
    quiet = made.offer(work(0, ttft_ms=9_000.0), 0.0)
    for i in range(1, 60):
        made.offer(work(i, 0.0, 8_000, ttft_ms=8_000.0), 0.0)
    busy = made.offer(work(100, ttft_ms=9_000.0), 0.0)
    first = made.offer(work(101, ttft_ms=1_000.0), 0.0)
    assert busy.predicted_ttft_s > 20 * quiet.predicted_ttft_s
    assert first.predicted_ttft_s == pytest.approx(quiet.predicted_ttft_s, rel=0.1)


@pytest.mark.parametrize(
    "fields",
    [
        {"tokens": 0},
        {"sequences": 0},
        {"body_bytes": -1},
        {"max_output_tokens": -1},
        {"block_tokens": 0},
        {"arrival_s": math.nan},
        {"ttft_ms": math.nan},
    ],
)
def test_nonsense_is_refused(fields):
    with pytest.raises(InputError, match="request 0"):
        dispatcher().offer(work(0, **fields), 0.0)
