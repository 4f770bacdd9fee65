"""What a replay writes down: a header, then one line per request."""

import itertools
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TypeVar

import msgspec

from kairos.errors import InputError
from kairos.latency import Profile
from kairos.replay.plan import PlannedRequest

SCHEMA = 2
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
        prompt_tokens: length of the prompt as reported by the server, where it reports one.
        cached_tokens: prefix hit as reported by the server, where it reports one.
        expected_cached_tokens: prefix hit as the load calculation expected it.
        slo_ttft_ms, slo_tpot_ms, slo_class: what it had to meet.
        ttft_ms: first token; None when there was none.
        tpot_ms: (last - first) / (tokens - 1); None below two tokens.
        tpot_engine_ms: the same on the engine's clock, from the start of the first decode step
            with it to the end of the last; None where the device was not traced.
        worst_gap_ms: longest pause between two tokens; None below two tokens.
        token_gaps_ms: all pauses, got_tokens - 1 of them, rounded to 0.1 ms.
        outcome: how it ended; exactly one.
        reason: the error behind an outcome other than ok.
        instance: "prefill-0>decode-0", as far as the client knows it.
    """

    rid: str
    arrival_s: float
    send_lag_ms: float | None = None
    input_tokens: int
    output_tokens: int
    got_tokens: int = 0
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    expected_cached_tokens: int = 0
    slo_ttft_ms: float
    slo_tpot_ms: float
    slo_class: str
    ttft_ms: float | None = None
    tpot_ms: float | None = None
    tpot_engine_ms: float | None = None
    worst_gap_ms: float | None = None
    outcome: Outcome
    reason: str = ""
    instance: str = ""
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

    @property
    def prefix_hit(self) -> int:
        """Tokens that needed no prefill: as reported, else as expected; one always does."""
        if self.cached_tokens is None:
            return self.expected_cached_tokens
        return min(self.cached_tokens, self.input_tokens - 1)


class Quiet(msgspec.Struct, frozen=True, kw_only=True):
    """How undisturbed a run was. None where it could not be measured.

    Attributes:
        cpu_pressure_percent: share of the run in which some task waited for a core.
        others_cores: cores that processes outside of the run kept busy.
        run_cores: cores that the run's own servers and client kept busy.
        device_lag_percent: time an emulated device waited for its host between two steps of a
            running batch, relative to the time it computed; worst device.
        send_lag_p99_ms: lag of the client's sends.
        problems: why the run must not be counted; empty when it may.
    """

    cpu_pressure_percent: float | None = None
    others_cores: float | None = None
    run_cores: float | None = None
    device_lag_percent: float | None = None
    send_lag_p99_ms: float | None = None
    problems: tuple[str, ...] = ()


class Device(msgspec.Struct, frozen=True, kw_only=True):
    """What emulated devices did during a run.

    Attributes:
        prefill_busy_percent, decode_busy_percent: of the time from the first arrival to the end,
            mean over servers.
        decode_tokens_per_busy_s: tokens per second of decode time.
        decode_batch_mean: requests in a decode step.
        prefill_batches: how many.
    """

    prefill_busy_percent: float
    decode_busy_percent: float
    decode_tokens_per_busy_s: float
    decode_batch_mean: float
    prefill_batches: int


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """First line of a record file: all that is needed to repeat the run, or to refuse to compare
    it with another.

    Attributes:
        arm: name of the server configuration.
        repeat: which run of this arm and load, from 1.
        position: which run of the replay it was, from 1.
        servers: flags per role, and how the client reached them.
        trace, trace_sha256: name and hash of the trace.
        load: offered prefill load; `time_scale` is what arrivals were multiplied by for it.
        cache_tokens: prefix cache that the load assumes, and emulated prefill servers have.
        dilate: profile, SLOs and arrivals were slowed down by this factor.
        start_s: where in the trace the replay begins, seconds.
        span_s: seconds from the first to the last arrival as sent.
        requests: how many the plan has.
        slo_set, tpot_ms: the SLO map, before dilation.
        content_seed: of the prompts' token ids, where it is not `seed`.
        profile: the latency profile, as emulated or predicted with; dilated if the run was.
        emulated: whether it drove the servers' clock.
        warm_up: what was sent before and is not in the records.
        quiet: how undisturbed the run was.
        device: what emulated devices did; None without their trace.
        allow_disturbed: the run counts even if it was not quiet.
        note: what went wrong as a whole; a server that died, for example.
        versions: packages and Python.
        git_commit: of the checkout, with a hash of changes where it had any; empty if unknown.
        timeout_s: limit of a request.
        budget_s: limit of the run, from the first arrival.
        mini_lb: requests of arms without a router went through upstream's.
        machine: cores and memory.
        command: the command line.
        started: ISO date and time in UTC.
        start_monotonic_s: clock reading that arrivals count from, for the device trace.
    """

    schema: int = SCHEMA
    arm: str
    repeat: int = 1
    position: int = 1
    servers: dict[str, list[str]]
    trace: str
    trace_sha256: str
    load: float
    cache_tokens: int
    dilate: float = 1.0
    instances: str
    time_scale: float
    start_s: float
    span_s: float
    requests: int
    slo_set: str
    tpot_ms: float
    seed: int
    content_seed: int | None = None
    profile: Profile
    emulated: bool
    warm_up: str = "none"
    quiet: Quiet = Quiet()
    device: Device | None = None
    allow_disturbed: bool = False
    note: str = ""
    versions: dict[str, str]
    git_commit: str = ""
    timeout_s: float = 0.0
    budget_s: float = 0.0
    mini_lb: bool = False
    machine: str = ""
    command: list[str] = msgspec.field(default_factory=list)
    started: str
    start_monotonic_s: float = 0.0

    @property
    def troubles(self) -> list[str]:
        """What went wrong, as a whole and with the quiet; empty if nothing is known."""
        return [text for text in (self.note, *self.quiet.problems) if text]

    @property
    def counts(self) -> bool:
        """Whether the run may be used as evidence."""
        return not self.note and (self.allow_disturbed or not self.quiet.problems)


SAME_WORK = (
    *("trace_sha256", "start_s", "load", "cache_tokens", "dilate", "instances", "time_scale"),
    *("span_s", "requests", "slo_set", "tpot_ms", "seed", "profile", "emulated"),
    *("timeout_s", "budget_s", "mini_lb", "machine"),
)
"""Fields of the header in which runs must agree to be compared."""


def differences(one: Header, other: Header) -> list[str]:
    """How the work of two runs, or the software that did it, differs, a line per field."""
    found = []
    for name in SAME_WORK:
        a, b = getattr(one, name), getattr(other, name)
        if a != b:
            if isinstance(a, Profile) and isinstance(b, Profile):
                a, b = (a.name, b.name) if a.name != b.name else ("", "another of the same name")
            found.append(f"{name} is {a!r} and {b!r}")
    for name in ("sglang", "kairos-sglang"):
        a, b = one.versions.get(name), other.versions.get(name)
        if a != b:
            found.append(f"version of {name} is {a} and {b}")
    # Outside of a checkout the commit is unknown; then the versions have to do.
    if one.git_commit and other.git_commit and one.git_commit != other.git_commit:
        found.append(f"commit is {one.git_commit} and {other.git_commit}")
    return found


def server_differences(one: Header, other: Header) -> list[str]:
    """How the servers of two runs of one arm differ, a line per role."""
    # Servers that a run starts itself have other ports each time.
    varies = {"client", "client sends to"} if one.emulated else {"client"}
    found = []
    for role in dict.fromkeys((*one.servers, *other.servers)):
        a, b = one.servers.get(role, []), other.servers.get(role, [])
        if role not in varies and a != b:
            found.append(
                f"servers, {role}: {' '.join(a) or 'none'!r} and {' '.join(b) or 'none'!r}"
            )
    return found


def make_record(
    planned: PlannedRequest,
    rid: str,
    outcome: Outcome,
    *,
    reason: str = "",
    send_lag_s: float | None = None,
    token_times_s: Sequence[float] = (),
    prompt_tokens: int | None = None,
    cached_tokens: int | None = None,
    instance: str = "",
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
        prompt_tokens=prompt_tokens,
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
        instance=instance,
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
    schema = _decode(lines[0], _Schema, f"{path}, line 1").schema
    if schema != SCHEMA:
        raise InputError(f"{path}, line 1, field schema: {schema}, allowed is {SCHEMA}")
    header = _decode(lines[0], Header, f"{path}, line 1")
    records = [
        _decode(line, Record, f"{path}, line {number}") for number, line in enumerate(lines[1:], 2)
    ]
    return header, records


class _Schema(msgspec.Struct, frozen=True):
    schema: int


def _decode(line: bytes, kind: type[T], where: str) -> T:
    try:
        return msgspec.json.decode(line, type=kind)
    except msgspec.DecodeError as error:
        raise InputError(f"{where}: {error}") from error
