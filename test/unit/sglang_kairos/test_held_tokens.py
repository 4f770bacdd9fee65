"""First tokens that are held back, against a stand-in for upstream's batch."""

from types import SimpleNamespace

import pytest
from sglang.srt.kairos.decode.held_tokens import MARGIN_S, HeldTokens
from sglang.srt.kairos.request_slo import RequestSlo
from sglang.srt.kairos.request_state import AwaitedToken, RequestState

from kairos.slo import Slo
from support.decode_loop import DecodeReq, Finish

NOW = 100.0


def arrived(number: int, waited_s: float) -> DecodeReq:
    """A request with a TTFT objective of 2 s whose KV has arrived."""
    state = RequestState(RequestSlo(Slo(2_000, 50), NOW - waited_s), number)
    return DecodeReq(state, [0] * 10, [0])


def shown(*reqs: DecodeReq) -> list[list[DecodeReq]]:
    """Requests of each batch that upstream is given."""
    given: list[list[DecodeReq]] = []
    batch = SimpleNamespace(reqs=list(reqs))
    HeldTokens().process_prebuilt(lambda part: given.append(part.reqs), batch, NOW)
    assert batch.reqs == list(reqs), "the batch itself joins the running batch as it is"
    return given


def test_a_token_is_held_until_shortly_before_its_deadline() -> None:
    early, late = arrived(1, 0.5), arrived(2, 2.0 - MARGIN_S)
    assert shown(early, late) == [[late]]
    assert early.kairos.is_held
    assert not late.kairos.is_held


def test_upstream_streams_nothing_if_all_tokens_are_held() -> None:
    assert shown(arrived(1, 0.5)) == []


def test_without_held_tokens_upstream_gets_the_batch_itself() -> None:
    late = arrived(1, 3.0)
    assert shown(late) == [[late]]


@pytest.mark.parametrize("aborted", [False, True])
def test_a_request_that_is_being_aborted_is_not_held(aborted: bool) -> None:
    req = arrived(1, 0.5)
    req.to_finish = Finish("abort") if aborted else None
    assert shown(req) == ([[req]] if aborted else [])


def test_a_marked_request_that_ends_at_once_is_streamed() -> None:
    req = arrived(1, 0.5)
    held = HeldTokens()
    held.mark([req], NOW)
    assert req.kairos.first_token == AwaitedToken(held=True)
    req.finished_reason = req.to_finish = Finish()
    given = []
    held.process_prebuilt(lambda part: given.append(part.reqs), SimpleNamespace(reqs=[req]), NOW)
    assert given == [[req]]
