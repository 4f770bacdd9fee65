"""Attainment and percentiles of an arm."""

import math

import pytest

from kairos.errors import InputError
from kairos.replay.client.record import RequestOutcome, RequestRecord
from kairos.replay.report.metrics import jain
from kairos.replay.report.summary import ArmSummary, summarise
from kairos.replay.run.percentile import percentile
from support.replay import header, record


def of(
    records: list[RequestRecord], *repeats: list[RequestRecord], **changes: object
) -> ArmSummary:
    return summarise([(header(**changes), own) for own in (records, *repeats)])


def test_attainment_counts_every_request_sent() -> None:
    records = [
        record(0, [0.1, 0.12]),  # meets both
        record(1, [0.9, 0.92]),  # misses TTFT
        record(2, [0.1, 0.2]),  # misses TPOT
        record(3, [0.1, 0.12], RequestOutcome.ABORTED),  # fast, then failed
    ]
    s = of(records)
    assert (s.ttft_attainment, s.tpot_attainment, s.e2e_attainment) == (50.0, 50.0, 25.0)
    assert (s.requests, s.failures, s.outcomes) == (4, 1, {"aborted": 1, "ok": 3})


def test_failed_requests_count_as_infinite_in_percentiles() -> None:
    """An arm must not look faster because it refuses its slowest requests."""
    records = [record(i, [0.001 * (i + 1), 0.001 * (i + 1) + 0.02]) for i in range(100)]
    records.append(record(100, [], RequestOutcome.CONNECTION_ERROR))
    s = of(records)
    assert s.ttft_p50_s == pytest.approx(0.051)
    assert s.ttft_p99_s == pytest.approx(0.1)
    assert s.tpot_p50_ms == pytest.approx(20.0)
    assert s.max_ttft_over_slo == math.inf
    records.append(record(101, [0.001, 0.021], RequestOutcome.ABORTED))
    assert of(records).ttft_p99_s == math.inf


@pytest.mark.parametrize(
    ("values", "expected"),
    [([1.0, 1.0], 1.0), ([1.0, 0.0, 0.0], 1 / 3), ([0.0, 0.0], 0.0), ([1.0, 0.5], 0.9)],
)
def test_jain_index_is_that_of_the_definition(values: list[float], expected: float) -> None:
    assert jain(values) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("values", "percent", "expected"),
    [([], 50, None), ([3.0], 99, 3.0), ([1.0, 2.0], 50, 1.0), ([1.0, 2.0], 51, 2.0)],
)
def test_percentile_is_taken_by_rank(
    values: list[float], percent: float, expected: float | None
) -> None:
    assert percentile(values, percent) == expected


def test_longest_tenth_is_taken_by_prompt_length() -> None:
    late, early = [2.0, 2.02], [0.1, 0.12]
    records = [record(i, late if i >= 15 else early, input_tokens=100 + i) for i in range(20)]
    assert of(records).longest10_ttft_attainment == 0.0
    assert of(records).ttft_attainment == 75.0
    few = [record(i, early, input_tokens=1) for i in range(11)]
    few[3] = record(3, late, input_tokens=9)
    # 10 % of 11 requests is two of them.
    assert of(few).longest10_ttft_attainment == 50.0


def test_throughput_and_stall_are_measured() -> None:
    records = [
        record(0, [0.1, 0.12], arrival_s=0.0),
        record(1, [0.5, 1.0], arrival_s=1.0),  # ends at 2.0 s, TPOT missed
    ]
    s = of(records)
    assert s.duration_s == pytest.approx(2.0)
    assert s.tokens_per_s == pytest.approx(4 / 2.0)
    assert s.goodput_tokens_per_s == pytest.approx(2 / 2.0)
    assert s.max_stall_s == pytest.approx(0.5)


def test_run_without_tokens_has_a_summary() -> None:
    s = of([record(0, [], RequestOutcome.TIMEOUT, output_tokens=2)], note="prefill-0 died")
    assert (s.ttft_p50_s, s.tpot_p99_ms, s.max_stall_s) == (math.inf, math.inf, None)
    assert s.jain_index == 0.0
    assert (s.e2e_attainment, s.tokens_per_s, s.note) == (0.0, 0.0, "prefill-0 died")


def test_classes_appear_only_if_there_are_several() -> None:
    one = [record(0), record(1, [9.0, 9.02])]
    assert of(one).classes == {}
    two = [*one, record(2, slo_class="batch")]
    classes = of(two).classes
    assert classes["default"]["ttft_attainment"] == 50.0
    assert classes["batch"] == {
        "requests": 1.0,
        "ttft_attainment": 100.0,
        "tpot_attainment": 100.0,
        "e2e_attainment": 100.0,
    }


def test_summary_has_the_contract_keys() -> None:
    """Names that tools rely on."""
    keys = set(of([record()]).__struct_fields__)
    assert keys >= {
        "ttft_attainment",
        "tpot_attainment",
        "e2e_attainment",
        "goodput_tokens_per_s",
        "tokens_per_s",
        "longest10_ttft_attainment",
        "ttft_p99_s",
        "max_stall_s",
        "requests",
        "load",
    }


def test_arm_without_records_is_refused() -> None:
    with pytest.raises(InputError, match="no records"):
        of([])
