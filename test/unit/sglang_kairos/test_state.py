"""A scheduler's requests and their SLOs, against a stand-in for upstream's scheduler."""

from collections.abc import Mapping

import pytest
from sglang.srt.kairos.config import KairosConfig
from sglang.srt.kairos.state import HANDSHAKE_ORDER_S, RECENT, KairosState
from sglang.srt.kairos.upstream import Req

from kairos.slo import Slo, SloClasses
from support.fake_req import FakeReq, fake_req
from support.fake_scheduler import FakePolicy, FakeScheduler

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


def test_handshakes_go_by_urgency_and_are_not_sorted_in_every_pass(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = state("prefill")
    now = [100.0]
    monkeypatch.setattr(made.clock, "now", lambda: now[0])
    queue: list[Req] = [request(f"{ms}", {"kairos": {"ttft_ms": ms}}) for ms in (9000, 500, 3000)]

    def order() -> list[str]:
        made.order_handshakes(queue, POLICY)
        return [req.rid for req in queue]

    assert order() == ["500", "3000", "9000"]
    queue.append(request("100", {"kairos": {"ttft_ms": 100}}))
    now[0] += 0.9 * HANDSHAKE_ORDER_S
    assert order()[-1] == "100"
    now[0] += 0.2 * HANDSHAKE_ORDER_S
    assert order()[0] == "100"
