"""A scheduler's requests and their SLOs, against a stand-in for upstream's scheduler."""

from collections.abc import Mapping, Sequence
from unittest.mock import Mock

import pytest
from sglang.srt.kairos.config import KairosConfig
from sglang.srt.kairos.state import HANDSHAKE_ORDER_S, RECENT, KairosState, install, installed
from sglang.srt.kairos.upstream import Req

from kairos.slo import Slo, SloClasses
from kairos_patches.scheduler import get_new_batch_prefill_raw
from support.decode_loop import Allocator, Batch, Mode
from support.fake_req import FakeReq, fake_req
from support.fake_scheduler import FakePolicy, FakePool, FakeScheduler

CONFIG = KairosConfig(SloClasses(Slo(2000, 50)), "tiny-fast", ("--kairos",))
POLICY = FakePolicy()


def state(role: str) -> KairosState:
    return KairosState(CONFIG, FakeScheduler(role))


def request(rid: str, custom_params: Mapping[str, object] | None = None) -> FakeReq:
    """A request without an SLO yet."""
    req = fake_req(0, 100)
    del req.kairos
    req.rid, req.sampling_params.custom_params = rid, custom_params
    return req


@pytest.mark.parametrize(("role", "plans"), [("prefill", True), ("decode", False), ("null", False)])
def test_only_a_prefill_server_plans(role: str, plans: bool) -> None:
    made = state(role)
    assert (made.planner is not None) is plans
    assert (made.prefill is not None) is (role != "decode")
    assert isinstance(made.snapshot()["planner"], dict if plans else str)


def test_embeddings_are_ordered_with_the_default_slo() -> None:
    made = state("null")
    hurried = request("hurried", {"kairos": {"ttft_ms": 900}})
    made.admit(hurried)
    waiting: list[Req] = [request("embedding"), hurried]
    made.order(waiting, POLICY)
    assert [req.rid for req in waiting] == ["hurried", "embedding"]


def test_a_malformed_slo_from_an_engine_falls_back_and_is_counted() -> None:
    made = state("decode")
    req = request("r", {"kairos": {"ttft_ms": "soon"}})
    made.admit(req)
    assert req.kairos.slo == Slo(2000, 50)
    assert made.snapshot()["invalid_slos"] == 1


def test_an_arrival_by_another_hosts_clock_is_not_believed() -> None:
    made = state("decode")
    req = request("r", {"kairos": {"ttft_ms": 700, "arrival_s": 1e12}})
    made.admit(req)
    assert req.kairos.arrival_s < 1e12


def test_requests_are_numbered_and_the_recent_ones_shown() -> None:
    made = state("decode")
    requests = [request(f"r{n}") for n in range(RECENT + 5)]
    for req in requests:
        made.admit(req)
    assert [req.kairos.number for req in requests] == list(range(1, RECENT + 6))
    assert len(made.snapshot()["recent"]) == RECENT


def receiving(receiver: object, local_reqs: Sequence[object] | None) -> list[object]:
    """Upstream's `recv_requests`, when nothing comes."""
    return []


def test_handshakes_go_by_urgency_and_are_not_sorted_in_every_pass(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scheduler = FakeScheduler("prefill")
    made = KairosState(CONFIG, scheduler)
    waiting = scheduler.disagg_prefill_bootstrap_queue
    now = [100.0]
    monkeypatch.setattr(made.clock, "now", lambda: now[0])
    slos = (9000, 500, 3000)
    waiting.queue += [request(f"{ms}", {"kairos": {"ttft_ms": ms}}) for ms in slos]

    def after_a_pass() -> list[str]:
        made.receive(receiving, None, None)
        return [req.rid for req in waiting.queue]

    waiting.req_to_metadata_buffer_idx_allocator = FakePool(3)
    assert after_a_pass() == ["9000", "500", "3000"], "there are buffers for all"
    waiting.req_to_metadata_buffer_idx_allocator = FakePool(2)
    assert after_a_pass() == ["500", "3000", "9000"]
    waiting.queue.append(request("100", {"kairos": {"ttft_ms": 100}}))
    now[0] += 0.9 * HANDSHAKE_ORDER_S
    assert after_a_pass()[-1] == "100"
    now[0] += 0.2 * HANDSHAKE_ORDER_S
    assert after_a_pass()[0] == "100"


@pytest.mark.parametrize("due", [False, True])
def test_a_decode_step_that_is_due_goes_before_prompts(
    due: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler = FakeScheduler("null")
    scheduler.kairos = made = KairosState(CONFIG, scheduler)
    monkeypatch.setattr(made, "decode_is_due", Mock(return_value=due))
    running, formed = Batch([], Allocator()), (None, "formed")
    form = Mock(return_value=formed)
    found = get_new_batch_prefill_raw(form, scheduler, running_batch=running)
    assert found == ((None, running) if due else formed)


@pytest.mark.parametrize("mode", ["decode", "extend"])
def test_a_decode_server_learns_from_its_steps_once_upstream_has_processed_them(
    mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler = FakeScheduler("decode")
    made = KairosState(CONFIG, scheduler)
    assert made.decode is not None
    calls: list[str] = []
    for owner, name in (
        (made.decode.batcher, "merge_launched"),
        (made.decode, "processed"),
        (made.decode.batcher, "stream_due"),
        (made, "measured"),
    ):
        monkeypatch.setattr(owner, name, lambda *_, name=name: calls.append(name))
    batch = Batch([], Allocator())
    batch.forward_mode = Mode(mode)
    made.process_result(lambda: calls.append("upstream"), batch)
    learned = ["processed", "stream_due"] if mode == "decode" else []
    assert calls == ["merge_launched", "upstream", *learned, "measured"]


def test_every_pass_of_a_decode_server_begins_with_all_requests_in_the_running_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = state("decode")
    assert made.decode is not None
    calls: list[str] = []
    for name in ("merge_launched", "settle"):
        monkeypatch.setattr(made.decode.batcher, name, lambda _, name=name: calls.append(name))
    made.telemetry = Mock()
    assert made.receive(receiving, None, None) == []
    assert calls == ["merge_launched", "settle"]
    made.telemetry.tick.assert_called_once()


def test_a_process_has_the_state_of_its_one_scheduler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sglang.srt.kairos.state._state", None)
    with pytest.raises(RuntimeError, match="no scheduler is made yet"):
        installed()
    made = state("decode")
    install(made)
    assert installed() is made
