"""The runs of a campaign and their order."""

import pytest

from kairos.errors import InputError
from kairos.replay.plan.campaign import runs_of


def test_every_arm_runs_once_before_any_runs_again_in_reversed_order() -> None:
    runs = runs_of(["a", "b", "c"], [0.5, 0.9], 2)
    assert [(r.arm, r.load, r.repeat) for r in runs] == [
        *(("a", 0.5, 1), ("b", 0.5, 1), ("c", 0.5, 1)),
        *(("c", 0.9, 1), ("b", 0.9, 1), ("a", 0.9, 1)),
        *(("a", 0.5, 2), ("b", 0.5, 2), ("c", 0.5, 2)),
        *(("c", 0.9, 2), ("b", 0.9, 2), ("a", 0.9, 2)),
    ]
    assert [r.position for r in runs] == list(range(1, 13))
    assert len({r.stem for r in runs}) == 12
    assert [r.stem for r in runs_of(["a"], [0.9], 2)] == ["a", "a.r2"]
    with pytest.raises(InputError, match="--repeats"):
        runs_of(["a"], [0.9], 0)
