"""The header of a record file: the facts to repeat a run, or to refuse a comparison."""

import msgspec

from kairos.latency import Profile
from kairos.replay.run.forwards import DeviceReport
from kairos.replay.run.interference import InterferenceReport

SCHEMA = 2


class RunHeader(msgspec.Struct, frozen=True, kw_only=True):
    """First line of a record file.

    Attributes:
        schema: version of the format.
        arm: name of the server configuration.
        repeat: number of the run among those of this arm and load, from 1.
        position: number of the run in the replay, from 1.
        servers: flags per role, and how the client reached the servers.
        trace: name of the trace.
        trace_sha256: hash of the trace.
        load: offered prefill load.
        cache_tokens: prefix cache that the load assumes and emulated prefill servers have.
        dilate: factor by which profile, SLOs and arrivals were slowed down.
        instances: number of prefill and decode servers, such as "1P1D".
        dp_attention: data-parallel attention ranks of a server, such as "2" or "2,4" for prefill
            and decode servers.
        time_scale: factor by which arrivals were multiplied to offer the load.
        start_s: where in the trace the replay begins, seconds.
        span_s: seconds from the first to the last arrival as sent.
        requests: number of requests in the plan.
        slo_set: name of the SLO set.
        tpot_ms: TPOT objective before dilation.
        seed: seed of the plan.
        content_seed: seed of the prompts' token ids.
        profile: latency profile of emulation or predictions, dilated if the run was.
        emulated: whether the profile drove the servers' clock.
        warm_up: requests that were sent before the run and are not in the records.
        interference: how undisturbed the run was. Its name in the file is "quiet".
        device: use of emulated devices; None without their trace.
        allow_disturbed: whether the run counts even if it was disturbed.
        note: the failure of the run as a whole, such as a server that died.
        versions: versions of Python and of packages.
        git_commit: commit of the checkout, with a hash of its changes; empty if unknown.
        timeout_s: limit of a request, seconds.
        budget_s: limit of the run from the first arrival, seconds.
        mini_lb: whether requests of arms without a router passed through upstream's.
        machine: cores and memory.
        command: the command line.
        started: ISO date and time in UTC.
        start_monotonic_s: clock reading from which arrivals count, for the device trace.
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
    dp_attention: str = "1"
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
    interference: InterferenceReport = msgspec.field(default=InterferenceReport(), name="quiet")
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
    def problems(self) -> list[str]:
        """The failure of the run as a whole, and its disturbances."""
        return [text for text in (self.note, *self.interference.problems) if text]

    @property
    def counts(self) -> bool:
        """Whether the run may be used as evidence."""
        return not self.note and (self.allow_disturbed or not self.interference.problems)
