"""Data-parallel attention ranks of a prefill server: a batch lasts as long as the slowest's."""

import pytest
from sglang.srt.kairos.prefill.ranks import PrefillRanks

from kairos.latency import load_profile

MODEL = load_profile("tiny-fast").prefill


@pytest.mark.parametrize(
    ("tokens", "pairs", "slowest"),
    [
        ([2_000, 100], [2_000_000, 5_000], {0}),
        ([100, 2_000], [90_000_000, 2_000_000], {1}),
        ([2_000, 2_000], [2_000_000, 2_000_000], {0, 1}),
        ([2_000, 0], [2_000_000, 0], {0}),
    ],
)
def test_the_slowest_rank_is_known_to_all(
    tokens: list[int], pairs: list[int], slowest: set[int]
) -> None:
    found = set()
    for rank in (0, 1):
        ranks = PrefillRanks(rank)
        ranks.gathered(5, tokens, pairs)
        if ranks.is_slowest(5, MODEL):
            found.add(rank)
    assert found == slowest


def test_a_batch_of_which_nothing_was_gathered_is_nobodys() -> None:
    ranks = PrefillRanks(0)
    assert not ranks.is_slowest(1, MODEL)
    for iteration in range(1, 1_000):
        ranks.gathered(iteration, [100, 0], [100, 0])
    assert not ranks.is_slowest(1, MODEL), "only batches in flight are kept"
    assert ranks.is_slowest(999, MODEL)
