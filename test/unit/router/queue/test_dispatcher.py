"""The router's scheduling, by numbered behaviours of its README."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kairos.errors import InputError
from kairos.router.placement.load import WorkerLoad
from kairos.router.queue.dispatcher import Dispatcher
from kairos.router.queue.params import DispatchParams
from kairos.router.workers.endpoint import Role
from support.dispatching import PROFILE, dispatcher, ids, work

LONG = 100_000  # tokens; some five seconds of prefill


def served(
    made: Dispatcher, seconds: float, start: float = 0.0, speed: float = 1.0
) -> list[tuple[float, int]]:
    """Run prefill instances that serve one request at a time, in the order sent; (time, id)."""
    queues: dict[str, list[tuple[int, float]]] = {}
    free: dict[str, float] = {}
    order = []
    now = start
    while now < start + seconds:
        for one in made.dispatch(now):
            tokens = lengths[one.id] - one.cached_tokens
            took = speed * PROFILE.prefill.remaining_s(0, max(tokens, 1), 8_192) + 0.02
            queues.setdefault(one.prefill, []).append((one.id, took))
            order.append((now, one.id))
        for key, queue in queues.items():
            while queue and free.setdefault(key, now) + queue[0][1] <= now:
                id, took = queue.pop(0)
                free[key] = free[key] + took if queue else now
                made.finished(id, now, 10)
            if not queue:
                free[key] = now
        now += 0.01
    return order


lengths: dict[int, int] = {}


def offer(made: Dispatcher, *works) -> None:
    for one in works:
        lengths[one.id] = one.input_tokens
        made.offer(one, max(one.arrival_s, 0.0))


def script(shift: float, order: list[int]) -> list[list[tuple[int, str, str]]]:
    """A fixed sequence of events; what was dispatched after each."""
    made = dispatcher(2, 2, preemptive=True, infeasible_after=1e6)
    works = [
        work(i, shift, 500 + 997 * i % 30_000, ttft_ms=400.0 + 211 * (i % 7), tenant="ab"[i % 2])
        for i in range(40)
    ]
    for i in order:
        made.offer(works[i], shift)
    seen = []
    for step in range(30):
        now = shift + 0.25 * step
        sent = made.dispatch(now)
        seen.append([(one.id, one.prefill, one.decode) for one in sent])
        for one in sent[::2]:
            made.prefill_done(one.id, now + 0.125)
    return seen


@settings(max_examples=20, deadline=None)
@given(st.permutations(range(40)))
def test_the_order_of_offers_at_one_time_does_not_matter(order):
    expected = script(0.0, list(range(40)))
    got = script(0.0, order)
    # Tenants are charged in order of service, which is the same.
    assert got == expected


@settings(max_examples=20, deadline=None)
@given(st.integers(-(2**20), 2**20))
def test_the_origin_of_the_clock_does_not_matter(shift):
    plain = list(range(40))
    assert script(float(shift), plain) == script(0.0, plain)


@pytest.mark.parametrize("share", [0.05, 0.0])
def test_what_was_given_up_is_served_within_a_bound_by_its_share_alone(share):
    made = dispatcher(starve_share=share, starve_after=2.0)
    now, busy_until, next_id, running, started = 0.0, 0.0, 1, [], None
    while now < 15.0:
        if int(now / 0.03) >= next_id:  # twice what the instance can do
            made.offer(work(next_id, now, 4_000, ttft_ms=1_500.0), now)
            next_id += 1
        if next_id == 60 and 0 not in running and started is None:
            started = math.inf
            made.offer(work(0, now, 30_000, ttft_ms=100.0), now)
        if running and busy_until <= now:
            made.finished(running.pop(0), now, 10)
            busy_until = now + 0.06
        for id in ids(made.dispatch(now)):
            running.append(id)
            started = now if id == 0 else started
        now += 0.005
    assert (started < 15.0) == (share > 0.0)


def test_without_a_share_it_waits_until_there_is_nothing_else():
    made = dispatcher(starve_share=0.0)
    offer(made, work(0, 0.0, 30_000, ttft_ms=100.0))
    offer(made, *[work(i, 0.0, 4_000, ttft_ms=60_000.0) for i in range(1, 60)])
    order = [id for _, id in served(made, 10.0)]
    assert order[-1] == 0


@pytest.mark.parametrize(("weight", "share"), [(1.0, 0.5), (3.0, 0.75)])
def test_a_flooding_tenant_gets_its_share_and_no_more(weight, share):
    made = dispatcher(tenant_weights={"meek": weight}, fair_slack_s=0.5)
    flood = [work(i, 0.0, 4_000, ttft_ms=1_000.0 + i, tenant="flood") for i in range(400)]
    meek = [work(1_000 + i, 0.0, 4_000, ttft_ms=90_000.0, tenant="meek") for i in range(400)]
    offer(made, *flood, *meek)
    order = [id for at, id in served(made, 28.0) if at > 4.0]
    got = sum(id >= 1_000 for id in order) / len(order)
    assert got == pytest.approx(share, abs=0.06)


def test_classes_do_not_share_with_each_other():
    made = dispatcher(fair_slack_s=0.0)
    urgent = [work(i, 0.0, 4_000, ttft_ms=4_000.0, tenant="a") for i in range(20)]
    other = [
        work(100 + i, 0.0, 4_000, ttft_ms=60_000.0, tenant="b", slo_class="batch")
        for i in range(20)
    ]
    offer(made, *urgent, *other)
    order = [id for _, id in served(made, 3.0)]
    assert sorted(order[:20]) == list(range(20))


def test_idling_saves_up_no_share():
    made = dispatcher(fair_slack_s=0.5)
    offer(made, *[work(i, 0.0, 4_000, ttft_ms=50_000.0, tenant="busy") for i in range(300)])
    served(made, 6.0)
    offer(made, *[work(500 + i, 6.0, 4_000, ttft_ms=40_000.0, tenant="idle") for i in range(100)])
    order = [id for _, id in served(made, 4.0, start=6.0)][4:]
    assert 0.35 < sum(id >= 500 for id in order) / len(order) < 0.75


def test_a_request_stays_here_until_an_instance_is_about_to_run_dry():
    made = dispatcher()
    offer(made, *[work(i, 0.0, 8_000, ttft_ms=20_000.0 + i) for i in range(20)])
    first = made.dispatch(0.0)
    assert 1 <= len(first) <= 4
    assert made.dispatch(0.001) == []
    wake = made.next_wake_s(0.001)
    assert 0.001 < wake < 0.2
    sent = len(first)
    for _ in range(100):
        wake = made.next_wake_s(wake)
        sent += len(made.dispatch(wake))
        if wake > 0.6:
            break
    # Nothing was heard: it holds back although all should be done by now.
    assert sent < 10
    for id in range(sent):
        made.prefill_done(id, 0.7)
    assert made.dispatch(0.7)


def test_the_most_urgent_goes_first():
    made = dispatcher()
    offer(made, *[work(i, 0.0, 8_000, ttft_ms=20_000.0 - 100 * i) for i in range(20)])
    order = [id for _, id in served(made, 3.0)]
    assert order == sorted(order, reverse=True)


def test_of_equal_ones_the_oldest_goes_first_though_predictions_are_too_long():
    """They were given up, and then late for ever, while those behind them were on time."""
    made = dispatcher()
    offer(made, *[work(i, 0.0, 20_000, ttft_ms=3_000.0 + i) for i in range(20)])
    order = [id for _, id in served(made, 3.0, speed=0.2)]
    assert order == sorted(order)
    assert len(order) == 20


@pytest.mark.parametrize("preemptive", [True, False])
def test_an_urgent_request_overtakes_where_the_engine_lets_it(preemptive):
    made = dispatcher(preemptive=preemptive)
    offer(made, work(0, 0.0, LONG, ttft_ms=30_000.0))
    assert ids(made.dispatch(0.0)) == [0]
    offer(made, work(1, 1.0, 1_000, ttft_ms=500.0))
    assert ids(made.dispatch(1.0)) == ([1] if preemptive else [])


def test_an_infeasible_request_overtakes_no_other():
    made = dispatcher(preemptive=True)
    offer(made, work(0, 0.0, LONG, ttft_ms=30_000.0))
    made.dispatch(0.0)
    offer(made, work(1, 1.0, 1_000, ttft_ms=1.0))
    assert made.dispatch(1.0) == []


def test_an_instance_of_unknown_speed_is_given_work_at_once_and_learned():
    made = dispatcher(profile=None)
    offer(made, *[work(i, 0.0, 8_000, ttft_ms=60_000.0) for i in range(40)])
    assert len(made.dispatch(0.0)) == 32
    for i in range(32):
        made.finished(i, 0.5 * (i + 1), 10)
    for i in range(100, 112):
        made.offer(work(i, 20.0 + 5 * i, 4_000 + 500 * (i % 5), ttft_ms=60_000.0), 20.0 + 5 * i)
        sent = made.dispatch(20.0 + 5 * i)
        for one in ids(sent):
            made.finished(one, 20.0 + 5 * i + 0.4, 10)
    shown = made.snapshot(600.0)["workers"]["p0"]
    assert shown["speed_factor"] is not None
    offer(made, *[work(200 + i, 600.0, 8_000, ttft_ms=90_000.0) for i in range(40)])
    for i in range(200, 240):
        lengths[i] = 8_000
    assert len(made.dispatch(600.0)) < 5  # late from now on


def test_a_request_that_needs_much_memory_is_not_passed_for_ever():
    made = dispatcher(decode_kv=50_000, starve_after=2.0)
    offer(made, *[work(i, 0.0, 9_000, ttft_ms=60_000.0, max_output_tokens=10) for i in range(4)])
    made.dispatch(0.0)
    for i in range(4):
        made.prefill_done(i, 0.4)
    now = 0.5
    made.offer(work(99, now, 40_000, ttft_ms=1_500.0, max_output_tokens=10), now)
    running = [0, 1, 2, 3]
    for step in range(400):
        now += 0.25
        id = 1_000 + step
        made.offer(work(id, now, 9_000, ttft_ms=30_000.0, max_output_tokens=10), now)
        sent = ids(made.dispatch(now))
        if 99 in sent:
            break
        running += sent
        for one in sent:
            made.prefill_done(one, now)
        if step % 2 and running:
            made.finished(running.pop(0), now, 10)
    assert 99 in sent
    assert now < 20.0


def test_memory_that_others_use_counts_while_the_report_is_fresh():
    made = dispatcher(decode_kv=100_000)
    made.loads("d0", WorkerLoad(1.0, kv_used_tokens=95_000, kv_capacity_tokens=100_000), 1.0)
    offer(made, work(0, 1.0, 5_000, ttft_ms=90_000.0))
    assert made.dispatch(1.1) == []
    shown = made.snapshot(1.2)["workers"]["d0"]
    assert (shown["stale"], shown["report_age_s"]) == (False, pytest.approx(0.2))
    assert ids(made.dispatch(5.0)) == [0]
    assert made.snapshot(5.0)["workers"]["d0"]["stale"]


def test_a_report_that_comes_too_late_is_ignored():
    made = dispatcher()
    made.loads("d0", WorkerLoad(1.0, kv_used_tokens=10**9), 9.0)
    assert made.snapshot(9.0)["workers"]["d0"]["report_age_s"] is None
    made.loads("gone", WorkerLoad(9.0), 9.0)


def test_a_reported_backlog_holds_requests_back():
    made = dispatcher()
    made.loads("p0", WorkerLoad(0.0, backlog_s=1.5), 0.0)
    offer(made, work(0, 0.0, ttft_ms=90_000.0))
    assert made.dispatch(0.01) == []
    assert ids(made.dispatch(1.6)) == [0]


def test_a_reported_backlog_that_is_short_brings_requests_forward():
    made = dispatcher()
    offer(made, work(0, 0.0, LONG, ttft_ms=90_000.0), work(1, 0.0, LONG, ttft_ms=91_000.0))
    assert len(made.dispatch(0.0)) == 1
    made.loads("p0", WorkerLoad(0.5, backlog_s=0.1), 0.5)
    assert len(made.dispatch(0.5)) == 1


def test_a_restart_forgets_the_prefix_cache():
    made = dispatcher(2)
    blocks = tuple(range(100, 140))
    first = work(0, 0.0, 40 * 64, blocks=blocks, ttft_ms=9_000.0)
    made.offer(first, 0.0)
    (sent,) = made.dispatch(0.0)
    made.finished(0, 0.1, 10)
    for id, epoch, cached in ((1, "a", 2_559), (2, "a", 2_559), (3, "b", 0)):
        made.loads(sent.prefill, WorkerLoad(float(id), epoch=epoch), float(id))
        made.offer(work(id, float(id), 40 * 64, blocks=blocks, ttft_ms=9_000.0), float(id))
        (again,) = made.dispatch(float(id))
        assert again.cached_tokens == cached
        assert cached == 0 or again.prefill == sent.prefill
        made.finished(id, id + 0.05)
        if cached == 0:
            break


def test_a_prefix_draws_a_request_to_the_instance_that_has_it():
    made = dispatcher(4)
    blocks = tuple(range(500))
    made.offer(work(0, 0.0, 32_000, blocks=blocks, ttft_ms=90_000.0), 0.0)
    (sent,) = made.dispatch(0.0)
    made.finished(0, 1.0, 10)
    for id in range(1, 6):
        longer = (*blocks, *range(id * 10_000, id * 10_000 + 10))
        made.offer(work(id, 2.0 * id, 32_640, blocks=longer, ttft_ms=90_000.0), 2.0 * id)
        (again,) = made.dispatch(2.0 * id)
        assert (again.prefill, again.cached_tokens) == (sent.prefill, 32_000)
        made.finished(id, 2.0 * id + 0.1, 10)


def test_a_request_that_is_sent_back_waits_as_before():
    made = dispatcher()
    offer(made, *[work(i, 0.0, 8_000, ttft_ms=20_000.0 + i) for i in range(20)])
    first = ids(made.dispatch(0.0))
    assert made.requeue(first[0], 0.01)
    assert not made.requeue(first[0], 0.01)
    assert ids(made.dispatch(0.02))[0] == first[0]


def test_sending_back_is_not_charged_twice():
    made = dispatcher(fair_slack_s=0.1)
    offer(made, work(0, 0.0, LONG, tenant="a", ttft_ms=90_000.0))
    for _ in range(5):
        made.dispatch(0.0)
        made.requeue(0, 0.0)
    offer(made, work(1, 0.0, 1_000, tenant="b", ttft_ms=91_000.0))
    assert ids(made.dispatch(0.0))[0] == 0


def test_late_events_of_ended_requests_do_no_harm():
    made = dispatcher()
    offer(made, work(0))
    made.dispatch(0.0)
    made.finished(0, 1.0, 5)
    for event in (made.prefill_done, made.finished, made.cancelled):
        event(0, 2.0)
        event(12_345, 2.0)
    assert not made.requeue(0, 2.0)
    assert made.snapshot(2.0)["dispatched"] == 0


def test_a_slower_decode_step_than_asked_for_is_waited_out_only_while_there_is_time():
    made = dispatcher(2, 1)
    heavy = [
        work(i, 0.0, 11_000, ttft_ms=60_000.0, tpot_ms=500.0, max_output_tokens=100)
        for i in range(60)
    ]
    offer(made, *heavy)
    now = 0.0
    for _ in range(600):
        for id in ids(made.dispatch(now)):
            made.prefill_done(id, now)
        now += 0.05
    assert made.waiting() == 0
    offer(made, work(99, now, 1_000, ttft_ms=4_000.0, tpot_ms=10.0))
    assert made.dispatch(now) == []
    assert ids(made.dispatch(now + 2.5)) == [99]


@pytest.mark.parametrize("binding", ["early", "least-loaded", "round-robin"])
def test_rules_for_comparison_send_at_once_in_order_of_arrival(binding):
    from kairos.router.queue.params import Binding

    made = dispatcher(2, 2, binding=Binding(binding))
    offer(made, *[work(i, -0.01 * i, 8_000) for i in range(20)])
    sent = made.dispatch(0.0)
    assert ids(sent) == list(range(19, -1, -1))
    share = [sum(one.prefill == key for one in sent) for key in ("p0", "p1")]
    assert share == [10, 10]


def test_ids_and_keys_are_unique():
    made = dispatcher()
    made.offer(work(0), 0.0)
    with pytest.raises(InputError, match="request 0 is known"):
        made.offer(work(0), 0.0)
    with pytest.raises(InputError, match="p0 is known"):
        made.add_worker("p0", Role.DECODE)
    with pytest.raises(InputError, match="kv_tokens = 0"):
        made.add_worker("d9", Role.DECODE, kv_tokens=0)
    with pytest.raises(InputError, match="starve_share"):
        DispatchParams(starve_share=2.0)
    with pytest.raises(InputError, match="tenant 'x'"):
        DispatchParams(tenant_weights={"x": 0.0})


def test_expected_outputs_follow_what_was_seen():
    made = dispatcher(decode_kv=100_000)
    for i in range(200):
        made.offer(work(i, float(i), max_output_tokens=50_000), float(i))
        assert ids(made.dispatch(float(i))) == [i]
        made.finished(i, i + 0.5, 100)
    made.offer(work(999, 300.0, max_output_tokens=50_000), 300.0)
    made.dispatch(300.0)
    reserved = made.snapshot(300.0)["workers"]["d0"]["kv_reserved_tokens"]
    assert 1_050 < reserved < 1_200
