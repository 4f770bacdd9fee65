"""Decode steps between prompts on a server that is not disaggregated."""

import pytest
from sglang.srt.kairos.decode.turns import DecodeTurns
from sglang.srt.kairos.request_slo import RequestSlo
from sglang.srt.kairos.request_state import RequestState

from kairos.slo import Slo
from support.decode_loop import Allocator, Batch, DecodeReq, Mode

NOW = 1000.0


def batch(mode: str, *tpot_ms: float, prefill_only: bool = False) -> Batch:
    """An upstream batch of requests with these TPOT objectives."""
    reqs = [
        DecodeReq(RequestState(RequestSlo(Slo(2000, tpot), NOW), 0), [], []) for tpot in tpot_ms
    ]
    made = Batch(reqs, Allocator())
    made.forward_mode = Mode(mode)
    made.is_prefill_only = prefill_only
    return made


PROMPT = batch("extend", 50)


@pytest.mark.parametrize("mode", ["decode", "mixed", "verify"])
def test_step_is_due_once_the_tightest_tpot_objective_has_passed(mode: str) -> None:
    turns = DecodeTurns(overlap=False)
    turns.measured(batch(mode, 50), NOW)
    turns.measured(PROMPT, NOW + 0.02)
    running = batch("decode", 50, 30)
    assert not turns.due(running, PROMPT, NOW + 0.029)
    assert turns.due(running, PROMPT, NOW + 0.031)
    assert turns.snapshot() == {"taken": 1}


def test_prompt_in_flight_counts() -> None:
    turns = DecodeTurns(overlap=True)
    for end_s, mode in ((0.0, "decode"), (0.1, "extend"), (0.11, "decode")):
        turns.measured(batch(mode, 50), NOW + end_s)
    assert turns.due(batch("decode", 50), PROMPT, NOW + 0.11)
    assert not turns.due(batch("decode", 150), PROMPT, NOW + 0.11)


def test_two_turns_have_a_prompt_between_them() -> None:
    turns = DecodeTurns(overlap=False)
    running = batch("decode", 50)
    assert turns.due(running, PROMPT, NOW)
    assert not turns.due(running, running, NOW + 9), "it has been launched"


@pytest.mark.parametrize("running", [batch("decode"), batch("extend", 50, prefill_only=True)])
def test_no_step_is_due_without_decoding_requests(running: Batch) -> None:
    assert not DecodeTurns(overlap=False).due(running, None, NOW)
