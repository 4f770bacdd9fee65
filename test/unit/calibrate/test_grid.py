"""Points of a grid: their order, and those that do not fit the servers."""

import pytest

from kairos.calibrate.grid import (
    DecodePoint,
    GridAxes,
    PrefillPoint,
    estimate_s,
    make_grid,
    output_tokens,
    unfit,
)
from kairos.errors import InputError
from kairos.latency import InstanceLimits, load_profile

TINY = load_profile("tiny-fast")
LIMITS = InstanceLimits(2048, 200_000, 64)
LONGEST = 100_000


def test_points_that_do_not_fit_are_listed_with_the_reason() -> None:
    axes = GridAxes((1, 64, 65), (256, 8192, 100_000), (64,), (0,))
    grid = make_grid(axes, LIMITS, LONGEST)
    reasons = {s.point: s.reason for s in grid.skipped}
    assert reasons[DecodePoint(65, 256)] == "more than 64 requests run at once"
    assert "tokens of KV, there are 200,000" in reasons[DecodePoint(64, 8192)]
    assert "at most 100,000 tokens" in reasons[DecodePoint(1, 100_000)]
    assert set(grid.points) | set(reasons) == {
        PrefillPoint(64, 0),
        *(DecodePoint(b, c) for b in (1, 64, 65) for c in (256, 8192, 100_000)),
    }
    assert not set(grid.points) & set(reasons)
    assert all(not unfit(point, LIMITS, LONGEST) for point in grid.points)


def test_points_that_fit_leave_memory_for_their_output() -> None:
    grid = make_grid(GridAxes(), LIMITS, LONGEST)
    for point in grid.points:
        if isinstance(point, DecodePoint):
            assert point.batch * (point.context + output_tokens(point)) <= LIMITS.kv_tokens


def test_default_grid_spans_the_limits_and_varies_chunks_and_prefixes() -> None:
    grid = make_grid(GridAxes(), LIMITS, LONGEST)
    decode = [p for p in grid.points if isinstance(p, DecodePoint)]
    prefill = [p for p in grid.points if isinstance(p, PrefillPoint)]
    assert {p.batch for p in decode} == {1, 2, 4, 8, 16, 32, 64}
    assert max(p.batch * p.context for p in decode) > LIMITS.kv_tokens / 4
    assert sum(p.new > LIMITS.chunk_tokens for p in prefill) >= 3
    assert {p.prefix for p in prefill} == {0, 2048, 8192}
    assert not any(p.prefix and p.new > LIMITS.chunk_tokens for p in prefill)


def test_every_beginning_spans_both_grids() -> None:
    points = make_grid(GridAxes(), LIMITS, LONGEST).points
    beginning = points[: len(points) // 3]
    for kind in (DecodePoint, PrefillPoint):
        share = sum(isinstance(p, kind) for p in beginning) / sum(
            isinstance(p, kind) for p in points
        )
        assert 0.2 < share < 0.5
    batches = {p.batch for p in beginning if isinstance(p, DecodePoint)}
    assert {1, 64} <= batches


@pytest.mark.parametrize("axis", ["batches", "contexts", "new", "prefixes"])
def test_values_out_of_range_are_refused(axis: str) -> None:
    with pytest.raises(InputError, match=f"--{axis}: -1 is out of range"):
        GridAxes(**{axis: (-1,)})


def test_grid_without_a_point_that_fits_is_refused() -> None:
    with pytest.raises(InputError, match=r"no point fits the servers; prefill .* at most 100,000"):
        make_grid(GridAxes((100,), (256,), (10_000_000,), (0,)), LIMITS, LONGEST)


def test_estimates_grow_with_the_point() -> None:
    for less, more in (
        (DecodePoint(1, 256), DecodePoint(64, 256)),
        (DecodePoint(1, 256), DecodePoint(1, 65_536)),
        (PrefillPoint(64, 0), PrefillPoint(4096, 0)),
        (PrefillPoint(64, 0), PrefillPoint(64, 8192)),
    ):
        assert 0 < estimate_s(less, TINY) < estimate_s(more, TINY)
