"""Samples from token times, on an engine with a clock of its own."""

import statistics

import pytest

from kairos.calibrate.drive import DriveError, TimedAnswer, shared_tokens
from kairos.calibrate.grid import REPEATS, DecodePoint, PrefillPoint
from kairos.calibrate.measure import DecodeMeasurement, Meter, PrefillMeasurement, steps_of
from kairos.latency import load_profile
from kairos.latency.first_token import FirstTokenPath, prefill_s, single_request_chunks
from support.virtual_engine import VirtualEngine

PROFILE = load_profile("minimax-m2.5-tp4-h200")
PATH = FirstTokenPath(0.02, 2e-6)


def forever() -> float:
    return 1e6


def test_step_is_measured_while_all_requests_decode() -> None:
    """The first prompts decode alone for a while, and those steps do not count."""
    engine = VirtualEngine(PROFILE, PATH)
    sample = Meter(engine).measure(DecodePoint(16, 4096), forever)
    assert isinstance(sample, DecodeMeasurement)
    assert sample.batch == 16
    assert 16 * 4096 < sample.total_context < 16 * (4096 + 200)
    expected = PROFILE.decode.step_s(16, sample.total_context)
    assert sample.seconds == pytest.approx(expected, rel=1e-3)


def test_jitter_of_token_arrivals_does_not_change_the_step_time() -> None:
    engine = VirtualEngine(PROFILE, PATH, jitter_s=0.01)  # a step is 11 ms
    sample = Meter(engine).measure(DecodePoint(16, 1024), forever)
    assert isinstance(sample, DecodeMeasurement)
    expected = PROFILE.decode.step_s(16, sample.total_context)
    assert sample.seconds == pytest.approx(expected, rel=0.03)
    assert statistics.pstdev(sample.blocks_s) > 0.0


def test_output_is_extended_when_the_first_requests_end_before_the_last_begin() -> None:
    slow = VirtualEngine(PROFILE, PATH, cache=False)  # prefills every context
    sample = Meter(slow).measure(DecodePoint(4, 16_384), forever)
    assert isinstance(sample, DecodeMeasurement)
    assert sample.seconds == pytest.approx(PROFILE.decode.step_s(4, sample.total_context), rel=1e-3)
    first, second = (output for prompts, output in slow.calls if len(prompts) > 1)
    assert second == 4 * first


def test_requests_that_never_decode_together_are_refused() -> None:
    slow = VirtualEngine(PROFILE, PATH, cache=False)
    with pytest.raises(DriveError, match="never decoded together"):
        Meter(slow).measure(DecodePoint(16, 60_000), forever)


def test_requests_that_are_held_back_are_refused() -> None:
    even = [TimedAnswer(0.0, [0.01 * i for i in range(100)], 0) for _ in range(3)]
    held = TimedAnswer(0.0, [0.05 * i for i in range(20)], 0)
    with pytest.raises(DriveError, match="held back"):
        steps_of([*even, held], 100)


def test_tokens_that_arrive_at_once_are_refused() -> None:
    with pytest.raises(DriveError, match="all at once"):
        steps_of([TimedAnswer(0.0, [1.0] * 100, 0)], 100)


def test_first_tokens_are_measured_with_and_without_prefix() -> None:
    engine = VirtualEngine(PROFILE, PATH)
    for point in (PrefillPoint(1000, 0), PrefillPoint(1000, 20_000), PrefillPoint(20_000, 0)):
        sample = Meter(engine, first_name=1000 * point.prefix + point.new).measure(point, forever)
        assert isinstance(sample, PrefillMeasurement)
        assert (sample.cached, sample.length) == (point.prefix, point.prefix + point.new)
        assert len(sample.each_s) == REPEATS
        chunks = single_request_chunks(sample.length, sample.cached, PROFILE.limits.chunk_tokens)
        expected = PATH.seconds(sample.length) + prefill_s(PROFILE.prefill, chunks)
        assert sample.seconds == pytest.approx(expected)


def test_server_without_prefix_cache_gives_another_point() -> None:
    engine = VirtualEngine(PROFILE, PATH, cache=False)
    sample = Meter(engine).measure(PrefillPoint(1000, 2000), forever)
    assert isinstance(sample, PrefillMeasurement)
    assert (sample.cached, sample.length) == (0, 3000)


def test_prompts_have_different_tails() -> None:
    engine = VirtualEngine(PROFILE, PATH)
    meter = Meter(engine)
    for point in (PrefillPoint(64, 0), PrefillPoint(64, 128), DecodePoint(4, 512)):
        meter.measure(point, forever)
    tails = [prompt.parts[-1][1] for prompts, _ in engine.calls for prompt in prompts]
    assert len(set(tails)) == len(tails)


def test_shared_tokens_count_from_the_start_of_the_last_stream() -> None:
    assert shared_tokens([[1.0, 2.0, 3.0], []]) == 0
    assert shared_tokens([[1.0, 2.0, 3.0, 4.0], [2.5, 3.5]]) == 2
