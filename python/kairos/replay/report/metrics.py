"""Latencies and groups of requests, as summaries and plots count them."""

import math
from collections.abc import Sequence

from kairos.replay.client.record import RequestOutcome, RequestRecord

LONGEST_SHARE = 0.1
DECILES = 10


def ttft_ms(record: RequestRecord) -> float:
    """Return the TTFT in ms; infinite for a request that failed."""
    if record.ttft_ms is None or record.outcome is not RequestOutcome.OK:
        return math.inf
    return record.ttft_ms


def tpot_ms(record: RequestRecord) -> float:
    """Return the TPOT in ms; infinite for a request that failed."""
    if record.tpot_ms is None or record.outcome is not RequestOutcome.OK:
        return math.inf
    return record.tpot_ms


def longest_tenth(records: Sequence[RequestRecord]) -> list[RequestRecord]:
    """Return the tenth with the longest prompts, rounded up; ties are ordered by rid."""
    by_length = sorted(records, key=lambda r: (-r.input_tokens, r.rid))
    return by_length[: math.ceil(LONGEST_SHARE * len(records))]


def length_deciles(records: Sequence[RequestRecord]) -> list[list[RequestRecord]]:
    """Split records by prompt length into ten equal parts, shortest first, without empty parts."""
    ordered = sorted(records, key=lambda r: (r.input_tokens, r.rid))
    n = len(ordered)
    parts = [ordered[n * i // DECILES : n * (i + 1) // DECILES] for i in range(DECILES)]
    return [part for part in parts if part]


def jain(values: Sequence[float]) -> float:
    """Return Jain's fairness index of non-negative values.

    It is 1 if all values are equal and 1/n if all but one are 0. If all values are 0, it is defined
    as 0 here, because an arm that serves no request is not fair.
    """
    squares = sum(v * v for v in values)
    return sum(values) ** 2 / (len(values) * squares) if squares > 0.0 else 0.0
