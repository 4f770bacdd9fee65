"""Measurement of one point of the grid, from the token times of requests of exact lengths."""

import itertools
import statistics
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence

import msgspec

from kairos.calibrate.drive import CalibrationPrompt, DriveError, Driver, TimedAnswer
from kairos.calibrate.grid import (
    REPEATS,
    STEPS,
    TAIL,
    WARM_UP,
    DecodePoint,
    Point,
    PrefillPoint,
    output_tokens,
)

BLOCK = 8
"""Steps that are timed together; single gaps mislead, because two tokens may arrive at once."""
_MIN_BLOCKS = 2


class DecodeMeasurement(msgspec.Struct, frozen=True, tag="decode"):
    """Measured decode steps.

    Attributes:
        batch: number of requests, all of about the same length.
        total_context: sum of their contexts in tokens, mean over the steps.
        seconds: time of a step, the median of `blocks_s`.
        blocks_s: mean time of a step over each `BLOCK` steps of each request.
    """

    batch: int
    total_context: float
    seconds: float
    blocks_s: list[float]


class PrefillMeasurement(msgspec.Struct, frozen=True, tag="prefill"):
    """Measured times to first token, one request at a time.

    Attributes:
        length: tokens of the prompt.
        cached: tokens of it that the server reports as cached.
        seconds: median of `each_s`.
        each_s: time to first token of each request, in seconds.
    """

    length: int
    cached: int
    seconds: float
    each_s: list[float]


Measurement = DecodeMeasurement | PrefillMeasurement


class Meter:
    """Measures points with one driver.

    Args:
        driver: sends the requests.
        first_name: the first name of a prompt part; every part has a name of its own.
    """

    def __init__(self, driver: Driver, first_name: int = 1) -> None:
        self._driver = driver
        self._names = itertools.count(first_name)

    def measure(self, point: Point, limit_s: Callable[[], float]) -> Measurement:
        """Return the sample of `point`.

        Args:
            point: to measure.
            limit_s: returns the seconds that are left, before every batch of requests.

        Raises:
            DriveError: a request failed, the time is over, or the token times do not belong to
                the point.
        """
        if isinstance(point, PrefillPoint):
            return self._first_tokens(point, limit_s)
        return self._steps(point, limit_s)

    def _first_tokens(
        self, point: PrefillPoint, limit_s: Callable[[], float]
    ) -> PrefillMeasurement:
        shared = self._prefix(point.prefix, limit_s)
        answers = []
        for _ in range(REPEATS):
            prompt = CalibrationPrompt((*shared, (point.new, next(self._names))))
            answers += self._driver.generate([prompt], 1, limit_s())
        hits = [point.prefix if a.cached_tokens is None else a.cached_tokens for a in answers]
        cached = statistics.mode(hits)  # an eviction in between gives another point
        length = point.prefix + point.new
        if cached >= length:
            raise DriveError(f"the server reports {cached} of {length} tokens as cached")
        each_s = [
            answer.times_s[0] - answer.sent_s
            for answer, hit in zip(answers, hits, strict=True)
            if hit == cached
        ]
        return PrefillMeasurement(length, cached, statistics.median(each_s), each_s)

    def _steps(self, point: DecodePoint, limit_s: Callable[[], float]) -> DecodeMeasurement:
        # With a shared prefix not every context is prefilled; the decode server holds each of them.
        shared = self._prefix(point.context - TAIL, limit_s)
        planned = output_tokens(point)
        for output in (planned, 4 * planned):
            prompts = [
                CalibrationPrompt((*shared, (TAIL, next(self._names)))) for _ in range(point.batch)
            ]
            answers = self._driver.generate(prompts, output, limit_s(), WARM_UP + STEPS + 1)
            found = steps_of(answers, point.context)
            if found is not None:
                return found
        raise DriveError(f"{point.batch} requests never decoded together for long enough")

    def _prefix(self, tokens: int, limit_s: Callable[[], float]) -> tuple[tuple[int, int], ...]:
        """Bring a new prefix into the cache and return its parts."""
        if tokens <= 0:
            return ()
        shared = ((tokens, next(self._names)),)
        self._driver.generate([CalibrationPrompt(shared)], 1, limit_s())
        return shared


def steps_of(answers: Sequence[TimedAnswer], prompt_tokens: int) -> DecodeMeasurement | None:
    """Return the steps in which all requests decoded, without the first `WARM_UP`.

    Args:
        answers: of every request of the point.
        prompt_tokens: length of each prompt.

    Returns:
        The measurement; None if the steps are too few.

    Raises:
        DriveError: some requests received far fewer tokens than others.
    """
    began = max(answer.times_s[0] for answer in answers)
    ended = min(answer.times_s[-1] for answer in answers)
    blocks_s: list[float] = []
    contexts = 0.0
    counts = []
    for answer in answers:
        times = answer.times_s
        first, behind = bisect_left(times, began) + WARM_UP, bisect_right(times, ended)
        counts.append(behind - first)
        contexts += prompt_tokens + (first + behind) / 2
        blocks_s += [
            (times[i + BLOCK] - times[i]) / BLOCK for i in range(first, behind - BLOCK, BLOCK)
        ]
    if max(counts) <= _MIN_BLOCKS * BLOCK:
        return None
    if max(counts) - min(counts) > 2 + 0.1 * max(counts):
        raise DriveError(
            f"requests decoded {min(counts)} to {max(counts)} steps in the same time: some were "
            "held back"
        )
    seconds = statistics.median(blocks_s)
    if seconds <= 0.0:
        raise DriveError("tokens arrive all at once: a proxy on the way may hold them back")
    return DecodeMeasurement(len(answers), contexts, seconds, blocks_s)
