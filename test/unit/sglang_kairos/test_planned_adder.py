"""The limits of a planned batch on upstream's adder, against a stand-in for its class."""

import sys
from types import SimpleNamespace

import pytest
from sglang.srt.kairos.prefill.batch_composer import BatchLimits
from sglang.srt.kairos.prefill.batch_forming import BatchForming
from sglang.srt.kairos.prefill.planned_adder import planned_adder

REFUSED = object()


class Adder:
    """Upstream's `PrefillAdder`: a continued prompt takes what it may, others say how they fit."""

    chunked_req_limit: int | None = 7  # what upstream's own policy has set

    def add_chunked_req(self, req: object) -> object:
        return req, self.chunked_req_limit

    def _select_prefill_admission(
        self, req: bool, *, total_tokens: int, has_chunked_req: bool = False
    ) -> object:
        return SimpleNamespace(is_chunked=req, total_tokens=total_tokens)


@pytest.fixture(autouse=True)
def _upstream(monkeypatch: pytest.MonkeyPatch) -> None:
    results = SimpleNamespace(AddReqResult=SimpleNamespace(OTHER=REFUSED))
    monkeypatch.setitem(sys.modules, "sglang.srt.managers.schedule_policy", results)


@pytest.mark.parametrize("limit", [None, 300])
def test_the_continued_prompt_gets_its_planned_tokens(limit: int | None) -> None:
    adder = planned_adder(Adder, lambda: limit)()
    assert isinstance(adder, Adder)
    assert adder.add_chunked_req("prompt") == ("prompt", limit)


@pytest.mark.parametrize("continued", [False, True])
@pytest.mark.parametrize("is_chunked", [False, True])
def test_one_unfinished_prompt_fits_into_a_batch(continued: bool, is_chunked: bool) -> None:
    adder = planned_adder(Adder, lambda: None)()
    found = adder._select_prefill_admission(is_chunked, has_chunked_req=continued, total_tokens=5)
    if continued and is_chunked:
        assert found is REFUSED
    else:
        assert (found.is_chunked, found.total_tokens) == (is_chunked, 5)


def test_the_class_is_made_once_for_each_class_of_upstream() -> None:
    class Other:
        pass

    forming = BatchForming(BatchLimits(1, 8192, 100_000, None))
    made = forming.adder_class(Adder)
    assert forming.adder_class(Adder) is made
    assert issubclass(forming.adder_class(Other), Other)
