"""What a replay writes down: a header, then one line per request."""

import itertools
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TypeVar

import msgspec

from kairos.errors import InputError
from kairos.replay.plan import PlannedRequest

SCHEMA = 1
T = TypeVar("T")


class Outcome(StrEnum):
    """How a request ended. Everything but OK misses both objectives."""

    OK = "ok"
    HTTP_ERROR = "http_error"  # a status other than 200
    STREAM_ERROR = "stream_error"  # an error event, or bytes that are no token stream
    ABORTED = "aborted"  # the server gave the request up
    INCOMPLETE = "incomplete"  # the stream ended before the last token
    CONNECTION_ERROR = "connection_error"  # refused, reset, broken
    TIMEOUT = "timeout"  # its own time limit
    CUT = "cut"  # the run ended first: its budget, or a server that died
    INTERNAL_ERROR = "internal_error"  # a bug in the client


class Record(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """One request. Times count from the moment the request was due, on the client's clock.

    Attributes:
        rid: id the servers know it by.
        arrival_s: when it was due, seconds from the start of the replay.
        send_lag_ms: how much later its headers went out; None when they never did.
        input_tokens, output_tokens: lengths asked for.
        got_tokens: output tokens received.
        cached_tokens: prefix hit as reported by the server, where it reports one.
        expected_cached_tokens: prefix hit as the load calculation expected it.
        slo_ttft_ms, slo_tpot_ms, slo_class: what it had to meet.
        ttft_ms: first token; None when there was none.
        tpot_ms: (last - first) / (tokens - 1); None below two tokens.
        worst_gap_ms: longest pause between two tokens; None below two tokens.
        token_gaps_ms: all pauses, got_tokens - 1 of them, rounded to 0.1 ms.
        outcome: how it ended; exactly one.
        reason: the error behind an outcome other than ok.
    """

    rid: str
    arrival_s: float
    send_lag_ms: float | None = None
    input_tokens: int
    output_tokens: int
    got_tokens: int = 0
    cached_tokens: int | None = None
    expected_cached_tokens: int = 0
    slo_ttft_ms: float
    slo_tpot_ms: float
    slo_class: str
    ttft_ms: float | None = None
    tpot_ms: float | None = None
    worst_gap_ms: float | None = None
    outcome: Outcome
    reason: str = ""
    token_gaps_ms: list[float] = msgspec.field(default_factory=list)

    @property
    def ttft_met(self) -> bool:
        return (
            self.outcome is Outcome.OK
            and self.ttft_ms is not None
            and self.ttft_ms <= self.slo_ttft_ms
        )

    @property
    def tpot_met(self) -> bool:
        """A single token has no TPOT and cannot miss it."""
        return self.outcome is Outcome.OK and (
            self.tpot_ms is None or self.tpot_ms <= self.slo_tpot_ms
        )

    @property
    def met(self) -> bool:
        return self.ttft_met and self.tpot_met


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """First line of a record file: all that is needed to repeat the run, or to refuse to compare
    it with another.

    Attributes:
        arm: name of the server configuration.
        servers: its flags per role, and how the client reached it.
        trace, trace_sha256: name and hash of the trace.
        load: offered prefill load; `time_scale` is what arrivals were multiplied by for it.
        start_s: where in the trace the replay begins, seconds.
        span_s: seconds from the first to the last arrival as sent.
        profile: name of the latency profile; `emulated` says whether it drove the servers' clock.
        versions: packages and Python.
        started: ISO date and time in UTC.
    """

    schema: int = SCHEMA
    arm: str
    servers: dict[str, list[str]]
    trace: str
    trace_sha256: str
    load: float
    instances: str
    time_scale: float
    start_s: float
    span_s: float
    slo_set: str
    tpot_ms: float
    seed: int
    profile: str
    emulated: bool
    versions: dict[str, str]
    started: str


def make_record(
    planned: PlannedRequest,
    rid: str,
    outcome: Outcome,
    *,
    reason: str = "",
    send_lag_s: float | None = None,
    token_times_s: Sequence[float] = (),
    cached_tokens: int | None = None,
) -> Record:
    """Account for one request.

    Args:
        send_lag_s: seconds from due to sent.
        token_times_s: when each token came, seconds from due, not decreasing.
    """
    times = token_times_s
    gaps = [1e3 * (b - a) for a, b in itertools.pairwise(times)]
    return Record(
        rid=rid,
        arrival_s=planned.request.arrival_s,
        send_lag_ms=None if send_lag_s is None else round(1e3 * send_lag_s, 3),
        input_tokens=planned.request.input_tokens,
        output_tokens=planned.request.output_tokens,
        got_tokens=len(times),
        cached_tokens=cached_tokens,
        expected_cached_tokens=planned.cached_tokens,
        slo_ttft_ms=planned.slo.ttft_ms,
        slo_tpot_ms=planned.slo.tpot_ms,
        slo_class=planned.slo.slo_class,
        ttft_ms=1e3 * times[0] if times else None,
        tpot_ms=1e3 * (times[-1] - times[0]) / (len(times) - 1) if gaps else None,
        worst_gap_ms=max(gaps) if gaps else None,
        token_gaps_ms=[round(gap, 1) for gap in gaps],
        outcome=outcome,
        reason=reason,
    )


def write_records(path: Path, header: Header, records: Sequence[Record]) -> None:
    """Write DIR/requests-ARM.jsonl in one go, through a temporary file beside it."""
    encoder = msgspec.json.Encoder()
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("wb") as file:
        file.write(encoder.encode(header) + b"\n")
        for record in records:
            file.write(encoder.encode(record) + b"\n")
    partial.replace(path)


def read_records(path: Path) -> tuple[Header, list[Record]]:
    """Read what `write_records` wrote.

    Raises:
        InputError: unreadable, or a line that is no header or record.
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise InputError(f"cannot read records {path}: {error.strerror}") from error
    if not lines:
        raise InputError(f"{path}: empty; a header line is needed")
    header = _decode(lines[0], Header, f"{path}, line 1")
    records = [
        _decode(line, Record, f"{path}, line {number}") for number, line in enumerate(lines[1:], 2)
    ]
    if header.schema != SCHEMA:
        raise InputError(f"{path}, line 1, field schema: {header.schema}, allowed is {SCHEMA}")
    return header, records


def _decode(line: bytes, kind: type[T], where: str) -> T:
    try:
        return msgspec.json.decode(line, type=kind)
    except msgspec.DecodeError as error:
        raise InputError(f"{where}: {error}") from error
