"""The options of a replay, as its command line gives them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kairos.replay.client.api import SloNames


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayOptions:
    """Values of the flags of `kairos replay`; each attribute has the name of its flag.

    Attributes:
        load: prefill loads.
        slo: name of the SLO set.
        arms: names of arms, separated by commas.
        duration_s: seconds of arrivals; None takes the whole trace.
        budget_s: limit of a run before dilation, seconds; None adds 300 s to the arrivals.
        url: servers that run already; None starts the arms' own.
        max_runs: number of runs after which to stop; None makes all.
    """

    trace: str
    trace_format: str | None
    load: Sequence[float]
    duration_s: float | None
    start_s: float
    slo: str
    tpot_ms: float
    prefix_cache_tokens: int
    seed: int
    arms: str
    instances: str
    dp_attention: str
    profile: str
    router: bool
    dilate: float
    url: str | None
    api: str
    model: str | None
    slo_headers: SloNames
    repeats: int
    resume: bool
    overwrite: bool
    force: bool
    max_runs: int | None
    allow_disturbed: bool
    timeout_s: float
    budget_s: float | None
    goodput: str
    out: Path
