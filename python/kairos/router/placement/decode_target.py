"""What the router believes of one decode instance."""

from dataclasses import dataclass
from typing import Any

from kairos.latency import Profile
from kairos.router.placement.load import WorkerLoad

_FRESH_SHARE = 0.96
"""Share of the KV that may be promised while reports are fresh; the rest is pages and growth."""
_BLIND_SHARE = 0.9
"""The same without reports."""


@dataclass(frozen=True, slots=True)
class Resident:
    """A request's claim, from its dispatch to its end.

    Attributes:
        reserved: KV tokens promised to it.
        context: tokens read per step, on average over its life.
        sequences: rows in the batch.
        since_s: when it was dispatched.
    """

    reserved: int
    context: float
    sequences: int
    since_s: float


class DecodeTarget:
    """KV and step time of one instance.

    A request holds KV from its dispatch on: the instance allocates before prefill starts. The sum
    of what is promised never exceeds the usable KV, except that an instance which holds nothing
    takes any request whose prompt fits.

    Args:
        profile: None: step times are not predicted.
        kv_tokens: None: the profile's or the reports'; without these KV is not limited here.
    """

    def __init__(
        self,
        key: str,
        profile: Profile | None,
        kv_tokens: int | None,
        max_running: int | None,
    ) -> None:
        self.key = key
        self.available = True
        self._model = None if profile is None else profile.decode
        limits = None if profile is None else profile.limits
        self.kv_tokens = kv_tokens or (None if limits is None else limits.kv_tokens)
        self.max_running = max_running or (None if limits is None else limits.max_batch)
        self.reserved = 0
        self._context = 0.0
        self._sequences = 0
        self._residents: dict[int, Resident] = {}
        self._calibration = 1.0
        self._slack_s = 0.0
        self._reported_s: float | None = None
        self._others_tokens = 0
        self._others_running = 0

    def __len__(self) -> int:
        return len(self._residents)

    def could_hold(self, tokens: int) -> bool:
        """Whether it could ever hold this number of tokens at once."""
        return self.kv_tokens is None or tokens <= self.kv_tokens

    def usable(self, fresh: bool) -> float:
        """KV tokens that may be promised; infinite where the capacity is unknown."""
        if self.kv_tokens is None:
            return float("inf")
        return self.kv_tokens * (_FRESH_SHARE if fresh else _BLIND_SHARE)

    def free(self, fresh: bool) -> float:
        """KV tokens not promised and not in use by others."""
        return self.usable(fresh) - self.reserved - (self._others_tokens if fresh else 0)

    def has_room(self, prompt: int, tokens: int, sequences: int, fresh: bool) -> bool:
        """Whether it can take a request of `prompt` tokens that will hold `tokens` in the end."""
        if not self._residents and not (fresh and self._others_tokens):
            return self.could_hold(prompt)
        others = self._others_running if fresh else 0
        limit = self.max_running
        if limit is not None and self._sequences + others + sequences > limit:
            return False
        return tokens <= self.free(fresh)

    def slack_s(self, fresh: bool) -> float:
        """The smallest slack among its residents, as reported; 0 where nothing is known."""
        return self._slack_s if fresh else 0.0

    def step_s(self, context: float, sequences: int, fresh: bool) -> float | None:
        """Predicted step time with one more request; None without a model."""
        if self._model is None:
            return None
        batch = self._sequences + sequences + (self._others_running if fresh else 0)
        total = self._context + context + (self._others_tokens if fresh else 0)
        return self._model.step_s(batch, total) * self._calibration

    def send(
        self, id: int, tokens: int, context: float, sequences: int, now_s: float, fresh: bool
    ) -> None:
        """A request was dispatched to it. What it is promised is cut to what is usable."""
        reserved = int(min(tokens, max(self.free(fresh), 0.0)))
        self._residents[id] = Resident(reserved, context, sequences, now_s)
        self.reserved += reserved
        self._context += context
        self._sequences += sequences

    def end(self, id: int) -> bool:
        """A request left; False if it is not here."""
        resident = self._residents.pop(id, None)
        if resident is None:
            return False
        self.reserved -= resident.reserved
        self._sequences -= resident.sequences
        self._context = self._context - resident.context if self._residents else 0.0
        return True

    def report(self, load: WorkerLoad) -> None:
        """Use beyond what is promised here counts as that of others."""
        self._reported_s = load.measured_s
        if load.kv_capacity_tokens:
            self.kv_tokens = load.kv_capacity_tokens
        if load.max_running:
            self.max_running = load.max_running
        if load.calibration is not None:
            self._calibration = min(max(load.calibration, 0.1), 10.0)
        self._slack_s = load.slack_s or 0.0
        if load.kv_used_tokens is not None:
            self._others_tokens = max(0, load.kv_used_tokens - self.reserved)
        if load.running is not None:
            here = load.running + (load.waiting or 0)
            self._others_running = max(0, here - self._sequences)

    def age_s(self, now_s: float) -> float | None:
        """Of its last report; None without any."""
        return None if self._reported_s is None else max(0.0, now_s - self._reported_s)

    def fresh(self, now_s: float, stale_s: float) -> bool:
        age = self.age_s(now_s)
        return age is not None and age <= stale_s

    def snapshot(self, now_s: float, stale_s: float) -> dict[str, Any]:
        """Plain values for /workers and /metrics."""
        fresh = self.fresh(now_s, stale_s)
        return {
            "available": self.available,
            "dispatched": len(self),
            "kv_reserved_tokens": self.reserved,
            "kv_capacity_tokens": self.kv_tokens,
            "step_s": self.step_s(0.0, 0, fresh),
            "report_age_s": self.age_s(now_s),
            "stale": not fresh,
        }
