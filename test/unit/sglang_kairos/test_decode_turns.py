"""When decode goes before prefill."""

from types import SimpleNamespace
from typing import Any

import pytest
from sglang.srt.kairos.decode_turns import DecodeTurns
from sglang.srt.kairos.request_slo import RequestSlo

from kairos.slo import Slo

NOW = 1000.0


def batch(mode: str, *tpot_ms: float, prefill_only: bool = False) -> Any:
    """An upstream batch of requests with these SLOs."""
    return SimpleNamespace(
        reqs=[SimpleNamespace(kairos=RequestSlo(Slo(2000, tpot), NOW)) for tpot in tpot_ms],
        is_empty=lambda: not tpot_ms,
        is_prefill_only=prefill_only,
        forward_mode=SimpleNamespace(
            is_decode=lambda: mode == "decode",
            is_mixed=lambda: mode == "mixed",
            is_extend_without_speculative=lambda: mode in ("extend", "mixed"),
        ),
    )


PROMPT = batch("extend", 50)


@pytest.mark.parametrize("mode", ["decode", "mixed", "verify"])
def test_a_step_is_due_when_the_tightest_pace_has_passed_without_one(mode: str) -> None:
    turns = DecodeTurns(overlap=False)
    turns.measured(batch(mode, 50), NOW)
    turns.measured(PROMPT, NOW + 0.02)
    running = batch("decode", 50, 30)
    assert not turns.due(running, PROMPT, NOW + 0.029)
    assert turns.due(running, PROMPT, NOW + 0.031)
    assert turns.snapshot() == {"taken": 1}


def test_a_prompt_that_still_runs_counts() -> None:
    turns = DecodeTurns(overlap=True)
    for end_s, mode in ((0.0, "decode"), (0.1, "extend"), (0.11, "decode")):
        turns.measured(batch(mode, 50), NOW + end_s)
    assert turns.due(batch("decode", 50), PROMPT, NOW + 0.11)
    assert not turns.due(batch("decode", 150), PROMPT, NOW + 0.11)


def test_there_is_a_prompt_between_two_turns() -> None:
    turns = DecodeTurns(overlap=False)
    running = batch("decode", 50)
    assert turns.due(running, PROMPT, NOW)
    assert not turns.due(running, running, NOW + 9), "it has been launched"


@pytest.mark.parametrize("running", [batch("decode"), batch("extend", 50, prefill_only=True)])
def test_nobody_decodes(running: Any) -> None:
    assert not DecodeTurns(overlap=False).due(running, None, NOW)
