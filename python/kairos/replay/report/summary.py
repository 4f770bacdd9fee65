"""Attainment, latencies, fairness and throughput of one arm."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence

import msgspec
import numpy as np

from kairos.errors import InputError
from kairos.replay.client.record import RequestOutcome, RequestRecord
from kairos.replay.report.bootstrap import Floats, block_means, interval, percent_interval
from kairos.replay.run.header import RunHeader
from kairos.replay.run.percentile import percentile
from kairos.workload.load import prefill_work_s
from kairos.workload.trace import TraceRequest

LONGEST_SHARE = 0.1
DECILES = 10
BOOTSTRAPPED = (
    "ttft_attainment",
    "tpot_attainment",
    "e2e_attainment",
    "longest10_ttft_attainment",
    "goodput_tokens_per_s",
)


class Decile(msgspec.Struct, frozen=True, kw_only=True):
    """A tenth of the requests by prompt length, shortest first."""

    shortest_tokens: int
    longest_tokens: int
    requests: int
    ttft_attainment: float
    tpot_attainment: float
    e2e_attainment: float


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """Attainments are percent of all requests; a request that failed misses. The requests of
    several runs of an arm are taken together.

    Percentiles of TTFT and TPOT are over all requests; for one that failed, whatever it got, either
    is infinite, so that nobody wins by refusing the slowest. The 99th of 100 requests is the 99th
    smallest. None where nothing can be computed.

    Attributes:
        requests, failures: counts; `outcomes` splits them.
        runs: how many runs are in it, and `e2e_attainment_by_run` how they differ.
        load: offered prefill load, as asked for.
        effective_load: the same with the prefix hits that the servers reported; None where they
            report none.
        tpot_attainment_engine_clock: from the first decode step on.
        longest10_ttft_attainment, longest10_e2e_attainment, longest10_ttft_p99_s: of the tenth
            with the longest prompts.
        max_ttft_over_slo: the worst.
        jain_index: of min(1, SLO / TTFT) over requests, 0 where there was no token: 1 when all
            are served equally well, 1/n when one is served at all, 0 when nobody is.
        tokens_per_s: output tokens received, over `duration_s`.
        goodput_tokens_per_s: the same of the requests that met both objectives.
        decode_tokens_per_busy_s: output tokens per second of decode time, of emulated devices.
        max_stall_s: longest pause between two tokens of any request.
        duration_s: from the first arrival to the last token, sum over runs.
        prefix_hit_percent: prompt tokens that the servers reported as cached;
            `expected_prefix_hit_percent` what the load assumes.
        send_lag_p99_ms: how late the client itself was.
        deciles: by prompt length.
        classes: attainments per SLO class, where there are several.
        intervals: 95 % confidence intervals by block bootstrap over requests; where all requests
            agree, the bound that they still leave.
        note: what disturbed the runs; empty if nothing is known.
    """

    requests: int
    failures: int
    outcomes: dict[str, int]
    runs: int
    e2e_attainment_by_run: list[float]
    load: float
    effective_load: float | None
    ttft_attainment: float
    tpot_attainment: float
    tpot_attainment_engine_clock: float | None
    e2e_attainment: float
    longest10_ttft_attainment: float
    longest10_e2e_attainment: float
    longest10_ttft_p99_s: float | None
    max_ttft_over_slo: float | None
    jain_index: float
    ttft_p50_s: float | None
    ttft_p99_s: float | None
    tpot_p50_ms: float | None
    tpot_p99_ms: float | None
    max_stall_s: float | None
    tokens_per_s: float
    goodput_tokens_per_s: float
    decode_tokens_per_busy_s: float | None
    duration_s: float
    prefix_hit_percent: float | None
    expected_prefix_hit_percent: float
    send_lag_p50_ms: float | None
    send_lag_p99_ms: float | None
    deciles: list[Decile]
    classes: dict[str, dict[str, float]]
    intervals: dict[str, tuple[float, float]]
    note: str = ""


def summarise(runs: Sequence[tuple[RunHeader, Sequence[RequestRecord]]]) -> Summary:
    """Summary of an arm's runs, which have the same plan.

    Raises:
        InputError: no records.
    """
    if not runs or not all(records for _, records in runs):
        raise InputError(f"arm {runs[0][0].arm if runs else '?'}: no records to summarise")
    header = runs[0][0]
    records = [r for _, own in runs for r in own]
    ttft = sorted(map(ttft_ms, records))
    tpot = sorted(tpot_ms(r) for r in records if r.output_tokens > 1)
    lag = sorted(r.send_lag_ms for r in records if r.send_lag_ms is not None)
    stalls = [r.worst_gap_ms for r in records if r.worst_gap_ms is not None]
    duration_s = sum(max(r.end_s for r in own) for _, own in runs)
    longest = longest_tenth(records)
    long_ttft = sorted(map(ttft_ms, longest))
    rates = [h.device.decode_tokens_per_busy_s for h, _ in runs if h.device is not None]
    return Summary(
        requests=len(records),
        failures=sum(r.outcome is not RequestOutcome.OK for r in records),
        outcomes=dict(sorted(Counter(r.outcome.value for r in records).items())),
        runs=len(runs),
        e2e_attainment_by_run=[_percent(r.met for r in own) for _, own in runs],
        load=header.load,
        effective_load=_effective_load(runs),
        ttft_attainment=_percent(r.ttft_met for r in records),
        tpot_attainment=_percent(r.tpot_met for r in records),
        tpot_attainment_engine_clock=_engine_clock(records),
        e2e_attainment=_percent(r.met for r in records),
        longest10_ttft_attainment=_percent(r.ttft_met for r in longest),
        longest10_e2e_attainment=_percent(r.met for r in longest),
        longest10_ttft_p99_s=_seconds(percentile(long_ttft, 99)),
        max_ttft_over_slo=max(ttft_ms(r) / r.slo_ttft_ms for r in records),
        jain_index=jain([_service(r) for r in records]),
        ttft_p50_s=_seconds(percentile(ttft, 50)),
        ttft_p99_s=_seconds(percentile(ttft, 99)),
        tpot_p50_ms=percentile(tpot, 50),
        tpot_p99_ms=percentile(tpot, 99),
        max_stall_s=_seconds(max(stalls, default=None)),
        tokens_per_s=_rate(sum(r.got_tokens for r in records), duration_s),
        goodput_tokens_per_s=_rate(sum(r.got_tokens for r in records if r.met), duration_s),
        decode_tokens_per_busy_s=sum(rates) / len(rates) if rates else None,
        duration_s=duration_s,
        prefix_hit_percent=_prefix_hit(records),
        expected_prefix_hit_percent=100.0
        * sum(r.expected_cached_tokens for r in records)
        / sum(r.input_tokens for r in records),
        send_lag_p50_ms=percentile(lag, 50),
        send_lag_p99_ms=percentile(lag, 99),
        deciles=_deciles(records),
        classes=_classes(records),
        intervals={name: interval_of(name, values) for name, values in per_request(runs).items()},
        note="; ".join(dict.fromkeys(n for h, _ in runs for n in (h.note, *h.quiet.problems) if n)),
    )


def per_request(runs: Sequence[tuple[RunHeader, Sequence[RequestRecord]]]) -> dict[str, Floats]:
    """Values whose means are the figures of BOOTSTRAPPED: per planned request, averaged over
    runs. Requests outside of a figure's group are left out."""
    plan = runs[0][1]
    seconds = sum(max(r.end_s for r in own) for _, own in runs) / len(runs)
    tokens_factor = len(plan) / seconds if seconds > 0 else 0.0
    long = {id(r) for r in longest_tenth(plan)}
    is_long = np.array([id(r) in long for r in plan])

    def mean(value: "list[list[float]]") -> Floats:
        return np.asarray(np.mean(np.asarray(value, dtype=np.float64), axis=0))

    ttft = mean([[100.0 * r.ttft_met for r in own] for _, own in runs])
    return {
        "ttft_attainment": ttft,
        "tpot_attainment": mean([[100.0 * r.tpot_met for r in own] for _, own in runs]),
        "e2e_attainment": mean([[100.0 * r.met for r in own] for _, own in runs]),
        "longest10_ttft_attainment": ttft[is_long],
        "goodput_tokens_per_s": tokens_factor
        * mean([[float(r.got_tokens * r.met) for r in own] for _, own in runs]),
    }


def interval_of(name: str, values: Floats, lowest: float = 0.0) -> tuple[float, float]:
    """Interval of the mean of a figure of BOOTSTRAPPED; see `percent_interval`."""
    if name.endswith("_attainment"):
        return percent_interval(values, lowest)
    return interval(block_means(values[:, None])[:, 0])


def jain(values: Sequence[float]) -> float:
    """Jain's fairness index: 1 when all values are equal, 1/n when all but one are 0. Here 0 when
    all are 0: who serves nobody is not fair."""
    squares = sum(v * v for v in values)
    return sum(values) ** 2 / (len(values) * squares) if squares > 0.0 else 0.0


def ttft_ms(record: RequestRecord) -> float:
    """Infinite for a request that failed."""
    if record.ttft_ms is None or record.outcome is not RequestOutcome.OK:
        return math.inf
    return record.ttft_ms


def tpot_ms(record: RequestRecord) -> float:
    """Infinite for a request that failed."""
    if record.tpot_ms is None or record.outcome is not RequestOutcome.OK:
        return math.inf
    return record.tpot_ms


def longest_tenth(records: Sequence[RequestRecord]) -> list[RequestRecord]:
    """The tenth with the longest prompts, rounded up; ties go by rid."""
    by_length = sorted(records, key=lambda r: (-r.input_tokens, r.rid))
    return by_length[: math.ceil(LONGEST_SHARE * len(records))]


def _service(record: RequestRecord) -> float:
    return min(1.0, record.slo_ttft_ms / max(ttft_ms(record), 1e-9))


def _effective_load(runs: Sequence[tuple[RunHeader, Sequence[RequestRecord]]]) -> float | None:
    """Load with the reported prefix hits; requests that report none count as expected."""
    work = seconds = 0.0
    told = False
    for header, records in runs:
        for r in records:
            told |= r.cached_tokens is not None
            request = TraceRequest(r.arrival_s, r.input_tokens, r.output_tokens)
            work += prefill_work_s(request, r.prefix_hit, header.profile)
        seconds += header.span_s * int(header.instances.partition("P")[0])
    return work / seconds if told and seconds > 0.0 else None


def _engine_clock(records: Sequence[RequestRecord]) -> float | None:
    if all(r.tpot_engine_ms is None for r in records):
        return None
    return _percent(
        r.outcome is RequestOutcome.OK
        and (r.output_tokens == 1 or (r.tpot_engine_ms or math.inf) <= r.slo_tpot_ms)
        for r in records
    )


def length_deciles(records: Sequence[RequestRecord]) -> list[list[RequestRecord]]:
    """Records by prompt length, in ten equal parts, the shortest first; empty parts left out."""
    ordered = sorted(records, key=lambda r: (r.input_tokens, r.rid))
    n = len(ordered)
    parts = [ordered[n * i // DECILES : n * (i + 1) // DECILES] for i in range(DECILES)]
    return [part for part in parts if part]


def _deciles(records: Sequence[RequestRecord]) -> list[Decile]:
    return [
        Decile(
            shortest_tokens=part[0].input_tokens,
            longest_tokens=part[-1].input_tokens,
            requests=len(part),
            ttft_attainment=_percent(r.ttft_met for r in part),
            tpot_attainment=_percent(r.tpot_met for r in part),
            e2e_attainment=_percent(r.met for r in part),
        )
        for part in length_deciles(records)
    ]


def _classes(records: Sequence[RequestRecord]) -> dict[str, dict[str, float]]:
    names = sorted({r.slo_class for r in records})
    if len(names) < 2:
        return {}
    members = {name: [r for r in records if r.slo_class == name] for name in names}
    return {
        name: {
            "requests": float(len(own)),
            "ttft_attainment": _percent(r.ttft_met for r in own),
            "tpot_attainment": _percent(r.tpot_met for r in own),
            "e2e_attainment": _percent(r.met for r in own),
        }
        for name, own in members.items()
    }


def _prefix_hit(records: Sequence[RequestRecord]) -> float | None:
    told = [(r.cached_tokens, r.input_tokens) for r in records if r.cached_tokens is not None]
    if not told:
        return None
    return 100.0 * sum(cached for cached, _ in told) / sum(total for _, total in told)


def _percent(met: Iterable[bool]) -> float:
    flags = list(met)
    return 100.0 * sum(flags) / len(flags)


def _seconds(ms: float | None) -> float | None:
    return None if ms is None else ms / 1e3


def _rate(tokens: int, seconds: float) -> float:
    return tokens / seconds if seconds > 0 else 0.0
