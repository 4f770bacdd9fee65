"""Requests, headers and arms for tests of the replay."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from kairos.cluster import DpAttention
from kairos.latency import load_profile
from kairos.replay.client.job import ClientConfig
from kairos.replay.client.record import ReceivedTokens, RequestOutcome, RequestRecord, make_record
from kairos.replay.plan.plan import PlannedRequest
from kairos.replay.report.results import ArmResult, RunResult
from kairos.replay.run.config import RunConfig
from kairos.replay.run.header import RunHeader
from kairos.replay.run.record_file import write_records
from kairos.slo import Slo
from kairos.workload.trace import TraceRequest


def planned(
    index: int = 0,
    arrival_s: float = 0.0,
    input_tokens: int = 10,
    output_tokens: int = 3,
    **slo,
) -> PlannedRequest:
    """Return a planned request; `slo` are fields of its SLO."""
    request = TraceRequest(arrival_s, input_tokens, output_tokens)
    fields = {"ttft_ms": 500.0, "tpot_ms": 25.0, "slo_class": "default", **slo}
    return PlannedRequest(index, request, 0, Slo(**fields))


def header(arm: str = "fcfs", **changes: object) -> RunHeader:
    """Return the header of a run of one minute, with `changes`."""
    fields: dict[str, object] = {
        "servers": {"all": ["--schedule-policy", arm]},
        "trace": "t.jsonl.gz",
        "trace_sha256": "0" * 64,
        "load": 0.9,
        "cache_tokens": 4_000_000,
        "instances": "1P1D",
        "time_scale": 1.25,
        "start_s": 0.0,
        "span_s": 60.0,
        "requests": 10,
        "slo_set": "L3",
        "tpot_ms": 30.0,
        "seed": 0,
        "profile": load_profile("tiny-fast"),
        "emulated": True,
        "versions": {"python": "3.11"},
        "started": "2026-01-01T00:00:00Z",
    }
    return RunHeader(arm=arm, **(fields | changes))  # type: ignore[arg-type]  # fields vary


def record(
    index: int = 0,
    times_s: Sequence[float] = (0.1, 0.12),
    outcome: RequestOutcome = RequestOutcome.OK,
    **request,
) -> RequestRecord:
    """Return a record with tokens at `times_s` after the request was due."""
    return make_record(
        planned(index, **{"output_tokens": max(1, len(times_s)), **request}),
        f"r-{index:07d}",
        outcome,
        received=ReceivedTokens(0.001, times_s, cached_tokens=0),
    )


def arm(
    name: str,
    records: Sequence[RequestRecord],
    *repeats: Sequence[RequestRecord],
    **changes: object,
) -> ArmResult:
    """Return an arm with a run of `records` and one of each of `repeats`."""
    runs = [
        RunResult(header(name, repeat=i, position=i, **changes), own)
        for i, own in enumerate((records, *repeats), 1)
    ]
    return ArmResult(name, tuple(runs))


def stored(folder: Path, arm: str, **changes: object) -> Path:
    """Write the records of an arm that met all its SLOs."""
    folder.mkdir(exist_ok=True)
    path = folder / f"requests-{arm}.jsonl"
    write_records(path, header(arm, **changes), [record(i) for i in range(10)])
    return path


def run_config(out: Path, **changes: object) -> RunConfig:
    """Return the configuration of runs into `out`, with `changes`."""
    fields: dict[str, object] = {
        "instances": "1P1D",
        "dp_attention": DpAttention(),
        "profile": load_profile("tiny-fast"),
        "url": None,
        "client": ClientConfig(),
        "out": out,
        "command": (),
        "allow_disturbed": False,
        "console": Console(),
    }
    return RunConfig(**(fields | changes))
