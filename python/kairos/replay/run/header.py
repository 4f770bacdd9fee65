"""The header of a record file: what is needed to repeat a run or to refuse a comparison."""

import msgspec

from kairos.latency import Profile
from kairos.replay.run.forwards import DeviceReport
from kairos.replay.run.interference import InterferenceReport

SCHEMA = 2


class RunHeader(msgspec.Struct, frozen=True, kw_only=True):
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
    quiet: InterferenceReport = InterferenceReport()
    device: DeviceReport | None = None
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
