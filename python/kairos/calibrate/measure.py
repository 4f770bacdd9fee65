"""One point of the grid, measured: requests of exact lengths, and what their tokens say."""

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
"""Steps that are timed together. Single gaps are no good: two tokens may arrive at once."""
_LEAST_BLOCKS = 2


class DecodeMeasurement(msgspec.Struct, frozen=True, tag="decode"):
    """Measured decode steps.

    Attributes:
        batch: requests, all of about the same length.
        total_context: sum of their contexts, mean over the steps.
        seconds: of a step, median of `blocks_s`.
        blocks_s: of a step, mean over each `BLOCK` of them, of every request.
    """

    batch: int
    total_context: float
    seconds: float
    blocks_s: list[float]


class PrefillMeasurement(msgspec.Struct, frozen=True, tag="prefill"):
    """Measured times to first token, one request at a time.

    Attributes:
        length: tokens of the prompt.
        cached: those that were in the prefix cache, as the server reports.
        seconds: median of `each_s`.
    """

    length: int
    cached: int
    seconds: float
    each_s: list[float]


Measurement = DecodeMeasurement | PrefillMeasurement


class Meter:
    """Measures points with one driver.

    Args:
        first_name: names of prompts count from here, so that no content comes twice.
    """

    def __init__(self, driver: Driver, first_name: int = 1) -> None:
        self._driver = driver
        self._names = itertools.count(first_name)

    def measure(self, point: Point, limit_s: Callable[[], float]) -> Measurement:
        """The sample of `point`.

        Args:
            limit_s: seconds that are left, asked before every batch of requests.

        Raises:
            DriveError: a request failed or the time is over, or they did not do what the point is
                about.
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
            answers += self._driver.play([prompt], 1, limit_s())
        hits = [point.prefix if a.cached_tokens is None else a.cached_tokens for a in answers]
        cached = statistics.mode(hits)  # an eviction in between makes it another point
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
        # Spares prefilling every context; the decode server holds each of them all the same.
        shared = self._prefix(point.context - TAIL, limit_s)
        asked = output_tokens(point)
        for output in (asked, 4 * asked):
            prompts = [
                CalibrationPrompt((*shared, (TAIL, next(self._names)))) for _ in range(point.batch)
            ]
            answers = self._driver.play(prompts, output, limit_s(), WARM_UP + STEPS + 1)
            found = steps_of(answers, point.context)
            if found is not None:
                return found
        raise DriveError(f"{point.batch} requests never decoded together for long enough")

    def _prefix(self, tokens: int, limit_s: Callable[[], float]) -> tuple[tuple[int, int], ...]:
        """Bring a new prefix into the cache."""
        if tokens <= 0:
            return ()
        shared = ((tokens, next(self._names)),)
        self._driver.play([CalibrationPrompt(shared)], 1, limit_s())
        return shared


def steps_of(answers: Sequence[TimedAnswer], prompt_tokens: int) -> DecodeMeasurement | None:
    """The steps in which all requests decoded, without the first `WARM_UP`; None if too few.

    Args:
        prompt_tokens: length of each prompt.

    Raises:
        DriveError: some requests got far fewer tokens than others.
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
    if max(counts) <= _LEAST_BLOCKS * BLOCK:
        return None
    if max(counts) - min(counts) > 2 + 0.1 * max(counts):
        raise DriveError(
            f"requests decoded {min(counts)} to {max(counts)} steps in the same time: some were "
            "held back"
        )
    seconds = statistics.median(blocks_s)
    if seconds <= 0.0:
        raise DriveError("tokens arrive all at once: something between here and there holds them")
    return DecodeMeasurement(len(answers), contexts, seconds, blocks_s)
