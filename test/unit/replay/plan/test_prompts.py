"""Prompts: exact lengths, shared prefixes, ids in range."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kairos.errors import InputError
from kairos.replay.plan.prompts import Prompts
from kairos.workload.trace import TraceRequest


def shared_prefix(a: np.ndarray, b: np.ndarray) -> int:
    """Return the number of equal leading ids."""
    n = min(len(a), len(b))
    different = np.flatnonzero(a[:n] != b[:n])
    return int(different[0]) if len(different) else n


@given(st.integers(1, 5000), st.integers(0, 10**6), st.integers(18, 10**6))
def test_prompt_has_exact_length_and_range(length: int, index: int, vocabulary: int) -> None:
    ids = Prompts(vocabulary).token_ids(TraceRequest(0, length, 1), index)
    assert ids.shape == (length,)
    assert ids.min() >= 16
    assert ids.max() < vocabulary


def test_equal_leading_blocks_share_exactly_their_tokens() -> None:
    prompts = Prompts(1024, seed=7)
    a = prompts.token_ids(TraceRequest(0, 1700, 1, (5, 6, 7, 8)), 0)
    b = prompts.token_ids(TraceRequest(0, 1700, 1, (5, 6, 9, 8)), 1)
    assert 1024 <= shared_prefix(a, b) < 1024 + 8  # a few equal ids by chance
    c = prompts.token_ids(TraceRequest(0, 900, 1, (5, 6)), 2)
    assert shared_prefix(a, c) == 900  # a partial block is the beginning of the whole one


def test_prompts_without_blocks_share_nothing() -> None:
    prompts = Prompts(1024)
    a, b = (prompts.token_ids(TraceRequest(0, 3000, 1), index) for index in (0, 1))
    assert shared_prefix(a, b) < 8
    # Nor with a block whose id is the index.
    c = prompts.token_ids(TraceRequest(0, 512, 1, (0,)), 3)
    assert shared_prefix(a, c) < 8


def test_ids_look_random() -> None:
    ids = Prompts(1024).token_ids(TraceRequest(0, 500_000, 1, tuple(range(977))), 0)
    counts = np.bincount(ids, minlength=1024)[16:]
    expected = 500_000 / 1008
    chi_squared = ((counts - expected) ** 2 / expected).sum()
    assert chi_squared < 1008 + 5 * (2 * 1008) ** 0.5
    assert abs(np.corrcoef(ids[:-1], ids[1:])[0, 1]) < 0.01
    assert abs(np.corrcoef(ids[:-512], ids[512:])[0, 1]) < 0.01


def test_seed_changes_every_prompt() -> None:
    request = TraceRequest(0, 600, 1, (1, 2))
    one, two, other = (Prompts(1024, seed).token_ids(request, 0) for seed in (1, 1, 2))
    assert (one == two).all()
    assert shared_prefix(one, other) < 8


@pytest.mark.parametrize("size", [0, -5, 17, 2**31 + 1])
def test_bad_vocabulary_is_refused(size: int) -> None:
    with pytest.raises(InputError, match="vocabulary size"):
        Prompts(size)
