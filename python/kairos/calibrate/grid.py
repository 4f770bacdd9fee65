"""Points to measure: which fit the servers, their order, and their estimated times."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import msgspec

from kairos.errors import InputError
from kairos.latency import InstanceLimits, Profile
from kairos.latency.first_token import prefill_s, single_request_chunks
from kairos.validation import Range, check_range

STEPS = 64
"""Decode steps that a point measures."""
WARM_UP = 16
"""Steps before them, once all requests decode; the same number follows them."""
REPEATS = 5
"""Requests of a prefill point."""
TAIL = 16
"""Tokens at the end of a decode point's prompts that are not shared."""
RESERVE = 512
"""Tokens that upstream's decode server keeps free for a request beside its context."""
_PATH_S = 0.05  # of the estimates only
_PER_TOKEN_S = 2e-6
_LARGEST_CONTEXT = 65_536
_SIZES = (1 / 128, 1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1, 2, 3, 4, 8)
_SMALLEST = 16
_MAX_VALUE = 10_000_000


class DecodePoint(msgspec.Struct, frozen=True, tag="decode"):
    """`batch` requests of about `context` tokens each, decoding together."""

    batch: int
    context: int

    def __str__(self) -> str:
        return f"decode {self.batch} x {self.context:,}"


class PrefillPoint(msgspec.Struct, frozen=True, tag="prefill"):
    """A prompt of `new` tokens behind a cached prefix of `prefix` tokens."""

    new: int
    prefix: int

    def __str__(self) -> str:
        return f"prefill {self.new:,} behind {self.prefix:,}"


Point = DecodePoint | PrefillPoint
P = TypeVar("P", DecodePoint, PrefillPoint)


class SkippedPoint(msgspec.Struct, frozen=True):
    """A point without a sample, and the reason."""

    point: Point
    reason: str


@dataclass(frozen=True, slots=True)
class GridAxes:
    """Values along each axis; None chooses them by the servers' limits.

    Attributes:
        batches: decode batch sizes.
        contexts: tokens of context of each request of a decode step.
        new: new tokens of a prefill.
        prefixes: cached tokens of a prefill.

    Raises:
        InputError: a value is out of range.
    """

    batches: Sequence[int] | None = None
    contexts: Sequence[int] | None = None
    new: Sequence[int] | None = None
    prefixes: Sequence[int] | None = None

    def __post_init__(self) -> None:
        for flag, low in (("batches", 1), ("contexts", TAIL + 1), ("new", 1), ("prefixes", 0)):
            for value in getattr(self, flag) or ():
                check_range(f"--{flag}", value, Range(low, _MAX_VALUE))


class Grid(NamedTuple):
    """Points of a calibration.

    Attributes:
        points: in the order of measurement. Corners come first and inner points later, so that a
            sweep that ends early still spans the grid.
        skipped: points that do not fit the servers.
    """

    points: tuple[Point, ...]
    skipped: tuple[SkippedPoint, ...]


def make_grid(axes: GridAxes, limits: InstanceLimits, longest_prompt: int) -> Grid:
    """Return every combination of `axes` that the servers hold.

    Args:
        axes: values along each axis.
        limits: of the servers.
        longest_prompt: tokens; prompts must be shorter.

    Raises:
        InputError: no point fits.
    """
    batches = axes.batches or _powers(1, limits.max_batch, 2)
    largest = min(longest_prompt - STEPS - 2 * WARM_UP, limits.kv_tokens, _LARGEST_CONTEXT)
    contexts = axes.contexts or _powers(256, max(256, largest), 4)
    chunk = limits.chunk_tokens
    new = axes.new or sorted({max(_SMALLEST, int(chunk * share)) for share in _SIZES})
    prefixes = axes.prefixes or (0, chunk, 4 * chunk)
    decode = _coarse_first(batches, contexts, DecodePoint)
    prefill = [
        point
        for point in _coarse_first(new, prefixes, PrefillPoint)
        # Long prompts vary the number of chunks; with a prefix they would only take longer.
        if axes.new or not (point.prefix and point.new > chunk)
    ]
    points: list[Point] = []
    skipped = []
    for point in _alternating(prefill, decode):
        reason = unfit(point, limits, longest_prompt)
        if reason:
            skipped.append(SkippedPoint(point, reason))
        else:
            points.append(point)
    if not points:
        raise InputError(
            f"grid: no point fits the servers; {skipped[0].point}: {skipped[0].reason}"
        )
    return Grid(tuple(points), tuple(skipped))


def unfit(point: Point, limits: InstanceLimits, longest_prompt: int) -> str:
    """Return why the servers cannot hold `point`; empty if they can."""
    if isinstance(point, PrefillPoint):
        length, requests = point.new + point.prefix, 1
    else:
        length, requests = point.context, point.batch
        if requests > limits.max_batch:
            return f"more than {limits.max_batch} requests run at once"
    if length >= longest_prompt:
        return f"prompts have at most {longest_prompt:,} tokens"
    needed = requests * (length + output_tokens(point) + RESERVE)
    if needed > limits.kv_tokens:
        return f"needs {needed:,} tokens of KV, there are {limits.kv_tokens:,}"
    return ""


def output_tokens(point: Point) -> int:
    """Return the output tokens of each request of a point.

    Requests of a large batch begin one after the other, and the first must still decode when the
    last begins. So the number grows with the batch.
    """
    if isinstance(point, PrefillPoint):
        return 1
    return STEPS + 2 * WARM_UP + max(32, 2 * point.batch)


def estimate_s(point: Point, profile: Profile) -> float:
    """Return the seconds that measuring `point` takes on servers like `profile`."""
    chunk = profile.limits.chunk_tokens

    def first_token_s(length: int, cached: int) -> float:
        run = prefill_s(profile.prefill, single_request_chunks(length, cached, chunk))
        return _PATH_S + _PER_TOKEN_S * length + run

    if isinstance(point, PrefillPoint):
        length = point.new + point.prefix
        once = first_token_s(point.prefix, 0) if point.prefix else 0.0
        return once + REPEATS * first_token_s(length, point.prefix)
    joining = first_token_s(point.context, 0) + point.batch * (
        _PER_TOKEN_S * point.context + profile.prefill.per_token_s * TAIL
    )
    step_s = profile.decode.step_s(point.batch, point.batch * point.context, point.context)
    return joining + _PATH_S + (STEPS + 2 * WARM_UP) * step_s


def _powers(low: int, high: int, base: int) -> list[int]:
    found = []
    while low < high:
        found.append(low)
        low *= base
    return [*found, high]


def _coarse_first(
    rows: Sequence[int], columns: Sequence[int], point: Callable[[int, int], P]
) -> list[P]:
    """Return all combinations, with those at the ends of both axes first."""
    rows, columns = sorted(set(rows)), sorted(set(columns))
    row_levels, column_levels = _levels(len(rows)), _levels(len(columns))
    places = [(i, j) for i in range(len(rows)) for j in range(len(columns))]
    places.sort(key=lambda place: max(row_levels[place[0]], column_levels[place[1]]))
    return [point(rows[i], columns[j]) for i, j in places]


def _levels(n: int) -> list[int]:
    """Return 0 for both ends, 1 for the middle, 2 for the middles of the halves, and so on."""
    levels = [0] * n
    open_gaps, level = [(0, n - 1)], 1
    while open_gaps:
        halves = []
        for left, right in open_gaps:
            if right - left < 2:
                continue
            middle = (left + right) // 2
            levels[middle] = level
            halves += [(left, middle), (middle, right)]
        open_gaps, level = halves, level + 1
    return levels


def _alternating(first: Sequence[Point], second: Sequence[Point]) -> list[Point]:
    """Merge both so that every beginning of the result has the same share of each."""
    ranked = [
        ((i + 0.5) / len(points), point)
        for points in (first, second)
        for i, point in enumerate(points)
    ]
    return [point for _, point in sorted(ranked, key=lambda pair: pair[0])]
