"""The sorted table against a plain list."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kairos.policy.sorted_rows import SortedRows

ROW = np.dtype([("key", np.float64), ("id", np.int64)])


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 8), st.integers(0, 200)), max_size=200))
def test_it_agrees_with_a_sorted_list(events: list[tuple[bool, int, int]]) -> None:
    made, plain = SortedRows(ROW), list[tuple[float, int]]()
    for id, (remove, key, which) in enumerate(events):
        if remove and plain:
            made.remove(plain.pop(which % len(plain))[1])
        else:
            made.add(float(key), id, (float(key), id))
            plain = sorted([*plain, (float(key), id)])
        assert made.live.tolist() == plain
        assert made.ids == [id for _, id in plain]
        assert made.count_below(float(key)) == sum(one < key for one, _ in plain)
        for at, (_, known) in enumerate(plain):
            assert known in made
            assert made.index(known) == at
    assert len(made) == len(plain)


def test_a_row_that_is_not_there_is_not_removed() -> None:
    with pytest.raises(KeyError):
        SortedRows(ROW).remove(1)
