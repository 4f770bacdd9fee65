"""The router's account of one decode worker."""

from typing import Any, NamedTuple

from kairos.latency import Profile
from kairos.router.placement.load import STALE_S, WorkerLoad

_FRESH_SHARE = 0.96
"""Share of the KV that may be promised while reports are fresh; the rest is pages and growth."""
_BLIND_SHARE = 0.9
"""The same without reports."""


class Resident(NamedTuple):
    """A request's claim, from its dispatch to its end.

    Attributes:
        reserved: KV tokens promised to it.
        context: tokens read per step, on average over its life.
        sequences: rows in the batch.
    """

    reserved: int
    context: float
    sequences: int


class DecodeTarget:
    """KV and step time of one worker.

    A request holds KV from its dispatch on: the engine allocates before prefill starts. The sum of
    the promises never exceeds the usable KV, except that an empty worker takes any request whose
    prompt fits.

    Args:
        profile: None: step times are not predicted.
        kv_tokens: None: the profile's or the reports'; without these KV is not limited here.
        max_running: requests in its batch at most; None as for `kv_tokens`.

    Attributes:
        available: whether requests may be sent to it.
        reserved: KV tokens promised to requests.
    """

    def __init__(
        self,
        key: str,
        profile: Profile | None,
        kv_tokens: int | None,
        max_running: int | None,
    ) -> None:
        limits = None if profile is None else profile.limits
        self.key = key
        self.available = True
        self.kv_tokens = kv_tokens or (None if limits is None else limits.kv_tokens)
        self.max_running = max_running or (None if limits is None else limits.max_batch)
        self.reserved = 0
        self._model = None if profile is None else profile.decode
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

    def free(self, now_s: float) -> float:
        """Return the KV tokens that may be promised; infinite where the capacity is unknown."""
        if self.kv_tokens is None:
            return float("inf")
        if self.fresh(now_s):
            return self.kv_tokens * _FRESH_SHARE - self.reserved - self._others_tokens
        return self.kv_tokens * _BLIND_SHARE - self.reserved

    def has_room(self, prompt: int, tokens: int, sequences: int, now_s: float) -> bool:
        """Whether it can take a request.

        Args:
            prompt: tokens that the request holds at its start.
            tokens: tokens that it is expected to hold at its end.
            sequences: its rows in the batch.
        """
        fresh = self.fresh(now_s)
        if not self._residents and not (fresh and self._others_tokens):
            return self.could_hold(prompt)
        rows = self._sequences + sequences + (self._others_running if fresh else 0)
        if self.max_running is not None and rows > self.max_running:
            return False
        return tokens <= self.free(now_s)

    def slack_s(self, now_s: float) -> float:
        """Return the smallest reported slack of its residents; 0 where nothing is known."""
        return self._slack_s if self.fresh(now_s) else 0.0

    def step_s(self, context: float, sequences: int, now_s: float) -> float | None:
        """Predict the step time with one more request; None without a model.

        `context` are the tokens that the request reads per step, `sequences` its rows in the batch.
        """
        if self._model is None:
            return None
        fresh = self.fresh(now_s)
        rows = self._sequences + sequences + (self._others_running if fresh else 0)
        total = self._context + context + (self._others_tokens if fresh else 0)
        return self._model.step_s(rows, total) * self._calibration

    def send(self, id: int, tokens: int, context: float, sequences: int, now_s: float) -> None:
        """Note a dispatched request; its promise is cut to the usable KV."""
        reserved = int(min(tokens, max(self.free(now_s), 0.0)))
        self._residents[id] = Resident(reserved, context, sequences)
        self.reserved += reserved
        self._context += context
        self._sequences += sequences

    def end(self, id: int) -> None:
        """Note that a request left; unknown ones are ignored."""
        resident = self._residents.pop(id, None)
        if resident is not None:
            self.reserved -= resident.reserved
            self._sequences -= resident.sequences
            self._context = self._context - resident.context if self._residents else 0.0

    def report(self, load: WorkerLoad) -> None:
        """Take a report over. Use beyond the promises counts as that of others."""
        self._reported_s = load.measured_s
        self.kv_tokens = load.kv_capacity_tokens or self.kv_tokens
        self.max_running = load.max_running or self.max_running
        if load.calibration is not None:
            self._calibration = min(max(load.calibration, 0.1), 10.0)
        self._slack_s = load.slack_s or 0.0
        if load.kv_used_tokens is not None:
            self._others_tokens = max(0, load.kv_used_tokens - self.reserved)
        if load.running is not None:
            self._others_running = max(0, load.running + (load.waiting or 0) - self._sequences)

    def fresh(self, now_s: float) -> bool:
        """Whether its last report is believed."""
        return self._reported_s is not None and now_s - self._reported_s <= STALE_S

    def snapshot(self, now_s: float) -> dict[str, Any]:
        """Return plain values for /workers and /metrics."""
        reported_s = self._reported_s
        return {
            "available": self.available,
            "dispatched": len(self),
            "kv_reserved_tokens": self.reserved,
            "kv_capacity_tokens": self.kv_tokens,
            "step_s": self.step_s(0.0, 0, now_s),
            "report_age_s": None if reported_s is None else max(0.0, now_s - reported_s),
            "stale": not self.fresh(now_s),
        }
