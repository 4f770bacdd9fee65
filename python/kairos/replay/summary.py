"""Attainment, latencies and throughput of one arm."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence

import msgspec

from kairos.errors import InputError
from kairos.replay.record import Header, Outcome, Record

LONGEST_SHARE = 0.1


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """Attainments are percent of all requests; a request that failed misses.

    Percentiles of TTFT and TPOT are over the requests that have one, failed ones included; the
    99th of 100 requests is the 99th smallest. None where nothing can be computed.

    Attributes:
        requests, failures: counts; `outcomes` splits them.
        load: offered prefill load.
        longest10_ttft_attainment: of the tenth with the longest prompts.
        tokens_per_s: output tokens received, over `duration_s`.
        goodput_tokens_per_s: the same of the requests that met both objectives.
        max_stall_s: longest pause between two tokens of any request.
        duration_s: from the first arrival to the last token.
        prefix_hit_percent: prompt tokens that the servers reported as cached.
        send_lag_p99_ms: how late the client itself was.
        classes: e2e attainment per SLO class, where there are several.
        note: what disturbed the run; empty if nothing is known.
    """

    requests: int
    failures: int
    outcomes: dict[str, int]
    load: float
    ttft_attainment: float
    tpot_attainment: float
    e2e_attainment: float
    longest10_ttft_attainment: float
    ttft_p50_s: float | None
    ttft_p99_s: float | None
    tpot_p50_ms: float | None
    tpot_p99_ms: float | None
    max_stall_s: float | None
    tokens_per_s: float
    goodput_tokens_per_s: float
    duration_s: float
    prefix_hit_percent: float | None
    send_lag_p50_ms: float | None
    send_lag_p99_ms: float | None
    classes: dict[str, dict[str, float]]
    note: str = ""


def summarise(header: Header, records: Sequence[Record], note: str = "") -> Summary:
    """Summary of one arm's records.

    Raises:
        InputError: no records.
    """
    if not records:
        raise InputError(f"arm {header.arm}: no records to summarise")
    ttft = sorted(r.ttft_ms for r in records if r.ttft_ms is not None)
    tpot = sorted(r.tpot_ms for r in records if r.tpot_ms is not None)
    lag = sorted(r.send_lag_ms for r in records if r.send_lag_ms is not None)
    stalls = [r.worst_gap_ms for r in records if r.worst_gap_ms is not None]
    duration_s = max(_end_s(r) for r in records)
    by_length = sorted(records, key=lambda r: (-r.input_tokens, r.rid))
    longest = by_length[: math.ceil(LONGEST_SHARE * len(records))]
    return Summary(
        requests=len(records),
        failures=sum(r.outcome is not Outcome.OK for r in records),
        outcomes=dict(sorted(Counter(r.outcome.value for r in records).items())),
        load=header.load,
        ttft_attainment=_percent(r.ttft_met for r in records),
        tpot_attainment=_percent(r.tpot_met for r in records),
        e2e_attainment=_percent(r.met for r in records),
        longest10_ttft_attainment=_percent(r.ttft_met for r in longest),
        ttft_p50_s=_seconds(percentile(ttft, 50)),
        ttft_p99_s=_seconds(percentile(ttft, 99)),
        tpot_p50_ms=percentile(tpot, 50),
        tpot_p99_ms=percentile(tpot, 99),
        max_stall_s=_seconds(max(stalls, default=None)),
        tokens_per_s=_rate(sum(r.got_tokens for r in records), duration_s),
        goodput_tokens_per_s=_rate(sum(r.got_tokens for r in records if r.met), duration_s),
        duration_s=duration_s,
        prefix_hit_percent=_prefix_hit(records),
        send_lag_p50_ms=percentile(lag, 50),
        send_lag_p99_ms=percentile(lag, 99),
        classes=_classes(records),
        note=note,
    )


def percentile(ordered: Sequence[float], percent: float) -> float | None:
    """Smallest value that at least `percent` % of `ordered` do not exceed; None for none."""
    if not ordered:
        return None
    return ordered[max(0, math.ceil(percent / 100 * len(ordered)) - 1)]


def _end_s(record: Record) -> float:
    """When the last token came, or the request was due if none did."""
    if record.ttft_ms is None:
        return record.arrival_s
    decode_ms = (record.tpot_ms or 0.0) * (record.got_tokens - 1)
    return record.arrival_s + (record.ttft_ms + decode_ms) / 1e3


def _classes(records: Sequence[Record]) -> dict[str, dict[str, float]]:
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


def _prefix_hit(records: Sequence[Record]) -> float | None:
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
