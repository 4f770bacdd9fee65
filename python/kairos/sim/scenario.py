"""The requests of a simulation as arrays, and the load they offer to the decode stage."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from kairos.errors import InputError
from kairos.latency import Profile
from kairos.sim.records import Floats, Ints
from kairos.slo import Slo
from kairos.validation import check_range
from kairos.workload.load import LOADS
from kairos.workload.trace import TraceRequest


@dataclass(frozen=True, slots=True)
class Scenario:
    """Arrays with one entry per request in order of arrival, shape [requests].

    Attributes:
        arrival_s: arrival, seconds, ascending.
        input_tokens: prompt length, at least 1.
        output_tokens: tokens generated, at least 1.
        cached_tokens: prompt tokens that the prefix cache holds, below `input_tokens`.
        ttft_s: TTFT objective, seconds; infinite for a best-effort request.
        tpot_s: TPOT objective, seconds; infinite for a best-effort request.
        slo_class: index of the SLO class.
    """

    arrival_s: Floats
    input_tokens: Ints
    output_tokens: Ints
    cached_tokens: Ints
    ttft_s: Floats
    tpot_s: Floats
    slo_class: Ints

    def __post_init__(self) -> None:
        n = len(self.arrival_s)
        if n == 0:
            raise InputError("scenario: no requests")
        for name in self.__slots__:
            if len(getattr(self, name)) != n:
                raise InputError(f"scenario: {name} has {len(getattr(self, name))} of {n} values")
        steps = np.diff(self.arrival_s, prepend=0.0)
        self._require(
            "arrival_s",
            self.arrival_s,
            np.isfinite(self.arrival_s) & (steps >= 0.0),
            "finite, not negative, in ascending order",
        )
        for name in ("input_tokens", "output_tokens"):
            self._require(name, getattr(self, name), getattr(self, name) >= 1, "at least 1")
        fits = (self.cached_tokens >= 0) & (self.cached_tokens < self.input_tokens)
        self._require("cached_tokens", self.cached_tokens, fits, "0 to one less than input_tokens")
        for name in ("ttft_s", "tpot_s"):
            values = getattr(self, name)
            self._require(name, values, values > 0.0, "positive")

    def __len__(self) -> int:
        return len(self.arrival_s)

    @classmethod
    def of(
        cls, requests: Sequence[TraceRequest], cached_tokens: Sequence[int], slos: Sequence[Slo]
    ) -> "Scenario":
        """Combine the requests of a trace, their expected prefix hits and their SLOs."""
        names = sorted({slo.slo_class for slo in slos})
        return cls(
            np.array([r.arrival_s for r in requests], np.float64),
            np.array([r.input_tokens for r in requests], np.int64),
            np.array([r.output_tokens for r in requests], np.int64),
            np.array(cached_tokens, np.int64),
            np.array([slo.ttft_s for slo in slos], np.float64),
            np.array([slo.tpot_s for slo in slos], np.float64),
            np.array([names.index(slo.slo_class) for slo in slos], np.int64),
        )

    def at_decode_load(self, load: float, profile: Profile, ranks: int = 1) -> "Scenario":
        """Rescale the arrivals to a load of the decode stage.

        Args:
            load: arrival rate, relative to `decode_capacity_per_s`.
            profile: latencies and limits of one decode instance.
            ranks: data-parallel ranks of that instance.

        Raises:
            InputError: the load, or the span of the arrivals, is not positive and finite.
        """
        span = float(self.arrival_s[-1] - self.arrival_s[0])
        if span <= 0.0 or not 0.0 < load < math.inf:
            raise InputError(
                f"decode load {load:g} over {span:g} s: both must be positive and finite"
            )
        wanted = load * decode_capacity_per_s(self, profile, ranks)
        return replace(self, arrival_s=self.arrival_s * (len(self) / span / wanted))

    def at_busier_load(self, load: float, profile: Profile, ranks: int = 1) -> "Scenario":
        """Rescale arrivals at prefill load 1 so that the busier stage has `load`.

        Args:
            load: of the stage with the higher load; both have one instance.
            profile: latencies and limits of an instance.
            ranks: data-parallel ranks of the decode instance.

        Raises:
            InputError: the load is out of range.
        """
        check_range("load", load, LOADS)
        stretch = max(1.0, decode_load(self, profile, ranks)) / load
        return replace(self, arrival_s=self.arrival_s * stretch)

    def only(self, kept: npt.NDArray[np.int64]) -> "Scenario":
        """Keep the requests at the ascending indices `kept`, with their arrival times."""
        return Scenario(*(getattr(self, name)[kept] for name in self.__slots__))

    def _require(
        self, name: str, values: npt.NDArray[np.generic], good: npt.NDArray[np.bool_], allowed: str
    ) -> None:
        if not good.all():
            at = int(np.argmin(good))
            raise InputError(f"scenario, request {at}: {name} = {values[at]}; allowed: {allowed}")


def decode_load(scenario: Scenario, profile: Profile, ranks: int = 1) -> float:
    """Load that the arrivals offer to one decode instance; 1 is its capacity."""
    rate = len(scenario) / float(scenario.arrival_s[-1])
    return rate / decode_capacity_per_s(scenario, profile, ranks)


def decode_capacity_per_s(scenario: Scenario, profile: Profile, ranks: int = 1) -> float:
    """Capacity of one decode instance, requests per second.

    At this rate, the batch that Little's law gives has steps as long as the smallest TPOT
    objective, or fills the KV memory. Data-parallel ranks are equally loaded and never wait.
    """
    out = scenario.output_tokens.astype(float)
    mean_context = float((out * (scenario.input_tokens + out / 2)).sum() / out.sum())
    tpot_s = float(scenario.tpot_s.min())
    low, high = 0.0, min(profile.limits.max_batch, 0.95 * profile.limits.kv_tokens / mean_context)
    model = profile.decode

    def step(batch: float) -> float:
        share: float = 1.0 - (1.0 - model.expert_fraction) ** (ranks * batch)
        linear = model.per_context_token_s * mean_context + model.per_request_s
        return model.fixed_s + model.experts_s * share + linear * batch

    if step(high) > tpot_s:
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if step(middle) <= tpot_s else (low, middle)
    batch = high
    return ranks * batch / (min(step(batch), tpot_s) * float(out.mean()))
