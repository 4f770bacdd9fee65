"""SLO sets."""

from collections import Counter

import pytest

from kairos.errors import InputError
from kairos.latency import load_profile
from kairos.slo import Slo
from kairos.workload.slo_sets import SLO_SETS, TIERS, assign_slos, in_words, own_prefill_s
from kairos.workload.trace import TraceRequest

PROFILE = load_profile("minimax-m2.5-tp4-h200")
REQUESTS = [TraceRequest(0, 8192, 1), TraceRequest(1, 20_000, 1)]


def test_own_prefill_is_the_base_latency_in_chunks() -> None:
    # By hand from the profile: fixed + linear + attention of each chunk.
    one = 0.008 + 1.0955e-5 * 8192 + 8.56e-10 * 8192**2 / 2
    assert own_prefill_s(8192, 0, PROFILE) == pytest.approx(one)
    second = 0.008 + 0.016 + 8.56e-10 * (8292**2 - 8192**2) / 2  # 100 tokens: the weight floor
    assert own_prefill_s(8292, 0, PROFILE) == pytest.approx(one + second)
    assert own_prefill_s(8292, 8192, PROFILE) == pytest.approx(second)


def test_own_prefill_of_known_prompts() -> None:
    assert own_prefill_s(8192, 0, PROFILE) == pytest.approx(0.13, abs=0.005)
    assert own_prefill_s(87_000, 0, PROFILE) == pytest.approx(4.3, abs=0.05)


@pytest.mark.parametrize(
    ("slo_set", "ttft_ms"),
    [
        ("L3", [500 + 3e3 * own_prefill_s(8192, 0, PROFILE), None]),
        ("F5", [5000, 5000]),
        ("F2", [2000, 2000]),
        ("LC", [1024, 2500]),
    ],
)
def test_sets_of_one_class(slo_set: str, ttft_ms: list[float | None]) -> None:
    slos = assign_slos(REQUESTS, [0, 0], PROFILE, slo_set, tpot=25.0)
    for slo, expected in zip(slos, ttft_ms, strict=True):
        assert slo.tpot_ms == 25.0
        assert slo.slo_class == "default"
        if expected is not None:
            assert slo.ttft_ms == pytest.approx(expected)


def test_ttft_of_lc_has_a_minimum() -> None:
    assert assign_slos([TraceRequest(0, 10, 1)], [0], PROFILE, "LC")[0].ttft_ms == 1000


def test_cached_prefix_tightens_l3() -> None:
    cold, warm = (assign_slos(REQUESTS, [0, hit], PROFILE, "L3")[1] for hit in (0, 16_384))
    assert warm.ttft_ms < cold.ttft_ms


def test_tiers_follow_their_shares_and_the_seed() -> None:
    requests = [TraceRequest(float(i), 8192, 1) for i in range(4000)]
    slos = assign_slos(requests, [0] * 4000, PROFILE, "tiers", seed=5)
    shares = Counter(slo.slo_class for slo in slos)
    own_ms = 1e3 * own_prefill_s(8192, 0, PROFILE)
    for tier in TIERS:
        assert shares[tier.name] / 4000 == pytest.approx(tier.share, abs=0.03)
        expected = Slo(1e3 * tier.base_s + tier.factor * own_ms, tier.tpot_ms, tier.name)
        slo = next(s for s in slos if s.slo_class == tier.name)
        assert (slo.ttft_ms, slo.tpot_ms) == pytest.approx((expected.ttft_ms, expected.tpot_ms))
    assert slos == assign_slos(requests, [0] * 4000, PROFILE, "tiers", seed=5)
    assert slos != assign_slos(requests, [0] * 4000, PROFILE, "tiers", seed=6)


def test_bad_arguments_are_rejected() -> None:
    with pytest.raises(InputError, match="allowed are L3, F5, F2, LC, tiers"):
        assign_slos(REQUESTS, [0, 0], PROFILE, "L4")
    for tpot in (0.0, -1.0, float("nan"), 1e9):
        with pytest.raises(InputError, match="--tpot-ms"):
            assign_slos(REQUESTS, [0, 0], PROFILE, "L3", tpot=tpot)


def test_sets_in_words_have_the_assigned_figures() -> None:
    """The figures of `assign_slos` above."""
    words = {slo_set: in_words(slo_set, 30.0) for slo_set in SLO_SETS}
    assert words == {
        "L3": "TTFT 0.5 s + 3 x own prefill, TPOT 30 ms",
        "F5": "TTFT 5 s, TPOT 30 ms",
        "F2": "TTFT 2 s, TPOT 30 ms",
        "LC": "TTFT 1 s, or prompt tokens / 8,000 s if that is more, TPOT 30 ms",
        "tiers": "50 % interactive: TTFT 1 s + 2 x own prefill, TPOT 25 ms; 30 % standard: TTFT "
        "3 s + 4 x own prefill, TPOT 50 ms; 20 % batch: TTFT 20 s + 8 x own prefill, TPOT 150 ms",
    }
