"""Fixtures of the tests against stand-ins for upstream's schedulers."""

import pytest
from sglang.srt.kairos.prefill import planner as prefill_planner


@pytest.fixture
def no_radix_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """No prompt is looked up: the stand-in has no radix cache."""
    monkeypatch.setattr(prefill_planner, "match_prefixes", lambda *_: [])
