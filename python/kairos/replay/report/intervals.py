"""Confidence intervals of an arm's figures."""

from collections.abc import Sequence

import numpy as np

from kairos.replay.client.record import RequestRecord
from kairos.replay.report.bootstrap import Floats, block_means, interval, percent_interval
from kairos.replay.report.metrics import longest_tenth

BOOTSTRAPPED = (
    "ttft_attainment",
    "tpot_attainment",
    "e2e_attainment",
    "longest10_ttft_attainment",
    "goodput_tokens_per_s",
)
"""Figures with an interval."""


def per_request(runs: Sequence[Sequence[RequestRecord]]) -> dict[str, Floats]:
    """Return values per planned request whose means are the figures of BOOTSTRAPPED.

    Args:
        runs: records of each run of an arm, which have the same plan.

    Returns:
        Values by figure, averaged over runs, in order of arrival. Requests outside of a figure's
        group are left out.
    """
    plan = runs[0]
    seconds = sum(max(r.end_s for r in own) for own in runs) / len(runs)
    tokens_factor = len(plan) / seconds if seconds > 0 else 0.0
    long = {id(r) for r in longest_tenth(plan)}
    is_long = np.array([id(r) in long for r in plan])

    def mean(values: list[list[float]]) -> Floats:
        return np.asarray(np.mean(np.asarray(values, dtype=np.float64), axis=0))

    ttft = mean([[100.0 * r.ttft_met for r in own] for own in runs])
    return {
        "ttft_attainment": ttft,
        "tpot_attainment": mean([[100.0 * r.tpot_met for r in own] for own in runs]),
        "e2e_attainment": mean([[100.0 * r.met for r in own] for own in runs]),
        "longest10_ttft_attainment": ttft[is_long],
        "goodput_tokens_per_s": tokens_factor
        * mean([[float(r.got_tokens * r.met) for r in own] for own in runs]),
    }


def interval_of(name: str, values: Floats, lowest: float = 0.0) -> tuple[float, float]:
    """Return the 95 % interval of the mean of a figure of BOOTSTRAPPED.

    Args:
        name: name of the figure.
        values: values of `per_request`, or differences of them.
        lowest: least possible value: 0, or -100 for differences.
    """
    if name.endswith("_attainment"):
        return percent_interval(values, lowest)
    return interval(block_means(values[:, None])[:, 0])
