"""Attainment, latencies, fairness and throughput of one arm."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence

import msgspec

from kairos.cluster import DpAttention
from kairos.errors import InputError
from kairos.replay.client.record import RequestOutcome, RequestRecord
from kairos.replay.report.intervals import interval_of, per_request
from kairos.replay.report.metrics import jain, length_deciles, longest_tenth, tpot_ms, ttft_ms
from kairos.replay.run.header import RunHeader
from kairos.replay.run.percentile import percentile
from kairos.workload.load import prefill_work_s
from kairos.workload.trace import TraceRequest

Runs = Sequence[tuple[RunHeader, Sequence[RequestRecord]]]
"""Header and records of each run of an arm."""


class Decile(msgspec.Struct, frozen=True, kw_only=True):
    """A tenth of the requests by prompt length.

    Attributes:
        shortest_tokens: shortest prompt.
        longest_tokens: longest prompt.
        requests: number of requests.
        ttft_attainment: percent that met their TTFT objective.
        tpot_attainment: percent that met their TPOT objective.
        e2e_attainment: percent that met both.
    """

    shortest_tokens: int
    longest_tokens: int
    requests: int
    ttft_attainment: float
    tpot_attainment: float
    e2e_attainment: float


class ArmSummary(msgspec.Struct, frozen=True, kw_only=True):
    """Figures of an arm over the requests of all its runs.

    Attainments are percent of all requests; a request that failed misses. Percentiles of TTFT and
    TPOT are over all requests: both are infinite for a request that failed, so that refusing slow
    requests improves no percentile. The 99th of 100 requests is the 99th smallest. A figure is None
    where it cannot be computed.

    Attributes:
        requests: number of requests.
        failures: number of requests that failed.
        outcomes: number of requests by outcome.
        runs: number of runs.
        e2e_attainment_by_run: end-to-end attainment of each run.
        load: offered prefill load.
        effective_load: the same with the prefix hits that the servers reported.
        ttft_attainment: percent that met their TTFT objective.
        tpot_attainment: percent that met their TPOT objective.
        tpot_attainment_engine_clock: the same, counted from the first decode step.
        e2e_attainment: percent that met both objectives.
        longest10_ttft_attainment: TTFT attainment of the tenth with the longest prompts.
        longest10_e2e_attainment: end-to-end attainment of the same.
        longest10_ttft_p99_s: 99th percentile of TTFT of the same.
        max_ttft_over_slo: largest ratio of TTFT to its objective.
        jain_index: Jain's index of min(1, SLO / TTFT) over requests, 0 for a request without a
            token: 1 if all are served equally well, 1/n if one is served, 0 if none is.
        ttft_p50_s: median of TTFT.
        ttft_p99_s: 99th percentile of TTFT.
        tpot_p50_ms: median of TPOT over requests of several tokens.
        tpot_p99_ms: 99th percentile of the same.
        max_stall_s: longest pause between two tokens of a request.
        tokens_per_s: output tokens received, over `duration_s`.
        goodput_tokens_per_s: the same of the requests that met both objectives.
        decode_tokens_per_busy_s: output tokens per second of decode time of emulated devices.
        duration_s: time from the first arrival to the last token, summed over runs.
        prefix_hit_percent: prompt tokens that the servers reported as cached.
        expected_prefix_hit_percent: prompt tokens that the load calculation expects as cached.
        send_lag_p50_ms: median of the client's send lag.
        send_lag_p99_ms: 99th percentile of the same.
        deciles: attainments by prompt length, shortest first.
        classes: attainments by SLO class, if there are several.
        intervals: 95 % confidence intervals by figure.
        note: failures and disturbances of the runs; empty if there were none.
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


def summarise(runs: Runs) -> ArmSummary:
    """Summarise an arm's runs, which have the same plan.

    Raises:
        InputError: there are no records.
    """
    if not runs or not all(records for _, records in runs):
        raise InputError(f"arm {runs[0][0].arm if runs else '?'}: no records to summarise")
    records = [r for _, own in runs for r in own]
    ttft = sorted(map(ttft_ms, records))
    tpot = sorted(tpot_ms(r) for r in records if r.output_tokens > 1)
    lag = sorted(r.send_lag_ms for r in records if r.send_lag_ms is not None)
    stalls = [r.worst_gap_ms for r in records if r.worst_gap_ms is not None]
    duration_s = sum(max(r.end_s for r in own) for _, own in runs)
    longest = longest_tenth(records)
    values = per_request([own for _, own in runs])
    return ArmSummary(
        requests=len(records),
        failures=sum(r.outcome is not RequestOutcome.OK for r in records),
        outcomes=dict(sorted(Counter(r.outcome.value for r in records).items())),
        runs=len(runs),
        e2e_attainment_by_run=[_percent(r.met for r in own) for _, own in runs],
        load=runs[0][0].load,
        effective_load=_effective_load(runs),
        ttft_attainment=_percent(r.ttft_met for r in records),
        tpot_attainment=_percent(r.tpot_met for r in records),
        tpot_attainment_engine_clock=_engine_clock(records),
        e2e_attainment=_percent(r.met for r in records),
        longest10_ttft_attainment=_percent(r.ttft_met for r in longest),
        longest10_e2e_attainment=_percent(r.met for r in longest),
        longest10_ttft_p99_s=_seconds(percentile(sorted(map(ttft_ms, longest)), 99)),
        max_ttft_over_slo=max(ttft_ms(r) / r.slo_ttft_ms for r in records),
        jain_index=jain([_service(r) for r in records]),
        ttft_p50_s=_seconds(percentile(ttft, 50)),
        ttft_p99_s=_seconds(percentile(ttft, 99)),
        tpot_p50_ms=percentile(tpot, 50),
        tpot_p99_ms=percentile(tpot, 99),
        max_stall_s=_seconds(max(stalls, default=None)),
        tokens_per_s=_rate(sum(r.got_tokens for r in records), duration_s),
        goodput_tokens_per_s=_rate(sum(r.got_tokens for r in records if r.met), duration_s),
        decode_tokens_per_busy_s=_decode_rate(runs),
        duration_s=duration_s,
        prefix_hit_percent=_prefix_hit_percent(records),
        expected_prefix_hit_percent=_expected_hit_percent(records),
        send_lag_p50_ms=percentile(lag, 50),
        send_lag_p99_ms=percentile(lag, 99),
        deciles=_deciles(records),
        classes=_classes(records),
        intervals={name: interval_of(name, own) for name, own in values.items()},
        note="; ".join(dict.fromkeys(text for header, _ in runs for text in header.problems)),
    )


def _service(record: RequestRecord) -> float:
    """Return min(1, SLO / TTFT); about 0 for a request that failed."""
    return min(1.0, record.slo_ttft_ms / max(ttft_ms(record), 1e-9))


def _effective_load(runs: Runs) -> float | None:
    """Return the load with the reported prefix hits; without a report the expected hit counts."""
    work = seconds = 0.0
    reported = False
    for header, records in runs:
        for r in records:
            reported |= r.cached_tokens is not None
            request = TraceRequest(r.arrival_s, r.input_tokens, r.output_tokens)
            work += prefill_work_s(request, r.prefix_hit, header.profile)
        servers = int(header.instances.partition("P")[0])
        ranks = DpAttention.parse(header.dp_attention)
        seconds += header.span_s * servers * ranks.prefill
    return work / seconds if reported and seconds > 0.0 else None


def _engine_clock(records: Sequence[RequestRecord]) -> float | None:
    if all(r.tpot_engine_ms is None for r in records):
        return None
    return _percent(
        r.outcome is RequestOutcome.OK
        and (r.output_tokens == 1 or (r.tpot_engine_ms or math.inf) <= r.slo_tpot_ms)
        for r in records
    )


def _decode_rate(runs: Runs) -> float | None:
    rates = [h.device.decode_tokens_per_busy_s for h, _ in runs if h.device is not None]
    return sum(rates) / len(rates) if rates else None


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


def _prefix_hit_percent(records: Sequence[RequestRecord]) -> float | None:
    reported = [(r.cached_tokens, r.input_tokens) for r in records if r.cached_tokens is not None]
    if not reported:
        return None
    return 100.0 * sum(cached for cached, _ in reported) / sum(total for _, total in reported)


def _expected_hit_percent(records: Sequence[RequestRecord]) -> float:
    hits = sum(r.expected_cached_tokens for r in records)
    return 100.0 * hits / sum(r.input_tokens for r in records)


def _percent(met: Iterable[bool]) -> float:
    flags = list(met)
    return 100.0 * sum(flags) / len(flags)


def _seconds(ms: float | None) -> float | None:
    return None if ms is None else ms / 1e3


def _rate(tokens: int, seconds: float) -> float:
    return tokens / seconds if seconds > 0 else 0.0
