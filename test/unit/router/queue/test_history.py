"""Expected arrivals of impatient requests."""

import random

import pytest

from kairos.router.queue.history import Arrivals


def test_replaced_arrivals_count_no_more() -> None:
    draw = random.Random(1)
    made, patience = Arrivals(), list[float]()
    for i in range(400):
        patience.append(draw.uniform(0.1, 5.0))
        made.add(patience[-1], i * 0.01)
        now_s = i * 0.01 + 0.01
        kept = patience[-128:]
        for busy_s in (0.05, min(kept), min(kept) + 0.01, 3.0):
            late_s = sum(max(busy_s - one, 0.0) for one in kept)
            expected = late_s / (0.01 * len(kept)) if len(kept) >= 8 else 0.0
            assert made.expected_misses(busy_s, now_s) == pytest.approx(expected)
