"""The router's account of one prefill worker."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from kairos.latency import Chunk, Profile
from kairos.router.placement.backlog import Backlog, SentPrompt
from kairos.router.placement.load import STALE_S, WorkerLoad
from kairos.router.placement.prefix_index import PrefixIndex
from kairos.router.placement.speed import Speed

TOKEN_S = 2e-5
"""Unit of work without a profile: the assumed cost of a token until it is learned."""
EARLY_REQUESTS = 32
"""Requests that a worker of unknown speed is given at once."""
_PERIOD_S = 2.0
"""Busy periods are cut after this long, so that a saturated worker teaches something."""
_BEGUN = 0.1
"""Share of a part of a busy period that unfinished prompts may have had."""
_BLOCK_TOKENS = 64
_MAX_BLOCKS = 131_072


class PrefillTarget:
    """Backlog, speed and prefix cache of one worker.

    The account follows from the requests that were sent, the answers that came back, and reports
    where there are any.

    Args:
        profile: None: speed is learned.
        preemptive: the worker serves by deadline; otherwise in the order of arrival.
        kv_tokens: its KV capacity, which bounds the prefix cache; None: the profile's.

    Attributes:
        available: whether requests may be sent to it.
        cache: prefix blocks that it probably holds.
    """

    def __init__(
        self,
        key: str,
        profile: Profile | None,
        preemptive: bool,
        kv_tokens: int | None,
    ) -> None:
        self.key = key
        self.available = True
        self.preemptive = preemptive
        self.speed = Speed(trusted=profile is not None)
        self._model = None if profile is None else profile.prefill
        self._chunk_tokens = 8192 if profile is None else profile.limits.chunk_tokens
        self._fixed_s, self._batch_s = 0.0, self._chunk_tokens * TOKEN_S
        if self._model is not None:
            self._fixed_s = self._model.fixed_s + self._model.weight_floor_s
            self._batch_s = self._model.batch_s([Chunk(0, self._chunk_tokens)])
        tokens = kv_tokens or (None if profile is None else profile.limits.kv_tokens)
        held = _MAX_BLOCKS if tokens is None else min(_MAX_BLOCKS, tokens // _BLOCK_TOKENS)
        self.cache = PrefixIndex(held)
        self._backlog = Backlog()
        self._epoch: str | None = None
        self._sent = 0
        self._others_until_s = -math.inf
        self._period: tuple[float, bool] | None = None  # its begin, whether it started idle
        self._period_work_s = 0.0

    def __len__(self) -> int:
        return len(self._backlog)

    def work_s(self, cached: int, tokens: int) -> float:
        """Return the marginal prefill time of a prompt, uncalibrated, seconds."""
        if self._model is None:
            return max(tokens - cached, 1) * TOKEN_S
        return self._model.remaining_s(min(cached, tokens - 1), tokens, self._chunk_tokens)

    @property
    def base_latency_s(self) -> float:
        """Time that a prompt needs beside its work: hand-over and the fixed cost of its batch."""
        return self.speed.handover_s + self._fixed_s * self.speed.factor

    @property
    def window_s(self) -> float:
        """A request is sent when the work before it ends within this time, seconds.

        It covers the hand-over of the request and two batches, because an engine composes one
        batch while another runs.
        """
        return self.speed.handover_s + 2.0 * self._batch_s * self.speed.factor

    def ahead_s(self, now_s: float, deadline_s: float, work_s: float = math.inf) -> float:
        """Return the seconds of work that would run before a request.

        Args:
            deadline_s: infinite for an infeasible or deferred request: in order of urgency
                it waits for all feasible ones, and for shorter ones of its kind.
            work_s: its own work, calibrated.
        """
        others_s = max(0.0, self._others_until_s - now_s)
        if not len(self._backlog):
            return others_s
        self._advance(now_s)
        slice_s = (self.window_s - self.speed.handover_s) / 2.0
        return others_s + self._backlog.ahead_s(now_s, deadline_s, work_s, self.preemptive, slice_s)

    def idle(self, now_s: float) -> bool:
        """Whether it holds no work."""
        return not len(self._backlog) and self._others_until_s <= now_s

    def committed_work(self, now_s: float) -> npt.NDArray[np.float64]:
        """Return (deadline, seconds) of the work that no request due later can pass.

        Work that cannot be passed at all is due at minus infinity. Shape (prompts + 1, 2).
        """
        self._advance(now_s)
        others = [(-math.inf, max(0.0, self._others_until_s - now_s))]
        return np.concatenate([others, self._backlog.committed_work(now_s, self.preemptive)])

    def backlog_s(self, now_s: float) -> float:
        """Return the seconds of work that it holds."""
        return self._held_s(now_s) + max(0.0, self._others_until_s - now_s)

    def runs_dry(self, ahead_s: float) -> bool:
        """Whether a request with this work ahead of it should be sent now."""
        if not self.speed.known:
            return len(self._backlog) < EARLY_REQUESTS
        return ahead_s < self.window_s

    def dry_at_s(self, now_s: float) -> float:
        """Return when its backlog will end within the window, if nothing happens before."""
        if not self.speed.known:
            return now_s if len(self._backlog) < EARLY_REQUESTS else math.inf
        return now_s + self.backlog_s(now_s) - self.window_s

    @property
    def tokens(self) -> int:
        """Prompt tokens it holds, computed or not."""
        return self._backlog.tokens

    def send(self, id: int, deadline_s: float, work_s: float, tokens: int, now_s: float) -> None:
        """Note a dispatched request; `work_s` is uncalibrated."""
        self._advance(now_s)
        if not len(self._backlog):
            self._period, self._period_work_s = (now_s, True), 0.0
        self._sent += 1
        rest = work_s * self.speed.factor
        rank = float(self._sent)
        if self.preemptive and now_s + rest <= deadline_s:
            rank = deadline_s - 1e12  # before those that came too late
        longest_s = max(work_s, self.work_s(0, tokens))
        prompt = SentPrompt(deadline_s, work_s, longest_s, rest, tokens)
        self._backlog.add(rank, id, prompt)

    def done(self, id: int, now_s: float) -> None:
        """Note that a prompt is computed; unknown ones are ignored."""
        work_s = self._remove(id, now_s)
        if work_s is not None:
            self._period_work_s += work_s
            self._measure(now_s)

    def drop(self, id: int, now_s: float) -> None:
        """Note that a prompt left before its end; its busy period teaches nothing."""
        if self._remove(id, now_s) is not None:
            self._period = (now_s, False) if self._period is not None else None
            self._period_work_s = 0.0

    def report(self, load: WorkerLoad, now_s: float) -> None:
        """Take a report over, if it tells the backlog.

        A shorter backlog shortens the prompts that it holds. A longer one is work of others, and is
        believed for `STALE_S`.
        """
        if self._epoch not in (None, load.epoch) and load.epoch is not None:
            self.cache.clear()
        self._epoch = load.epoch or self._epoch
        age_s = max(0.0, now_s - load.measured_s)
        held = self._held_s(now_s)
        backlog = load.backlog_s
        if backlog is None and load.uncached_tokens is not None:
            backlog = load.uncached_tokens * TOKEN_S * self.speed.factor
            if self._model is not None:
                backlog = self.work_s(0, load.uncached_tokens + 1) * self.speed.factor
            # A plain report counts what waits, not what runs: it can only lengthen.
            backlog = max(backlog, held + age_s)
        if backlog is None:
            return
        believed = max(0.0, backlog - age_s)
        self._others_until_s = now_s + min(max(0.0, believed - held), STALE_S)
        if held > 0.0 and believed < held:
            # Prompts on their way are not in the report: leave the hand-over's worth.
            keep = max(believed, min(held, self.speed.handover_s)) / held
            self._backlog.scale(keep)

    def snapshot(self, now_s: float) -> dict[str, Any]:
        """Return plain values for /workers and /metrics."""
        return {
            "available": self.available,
            "dispatched": len(self),
            "backlog_s": self.backlog_s(now_s),
            "window_s": self.window_s,
            "speed_factor": self.speed.factor if self.speed.known else None,
            "handover_s": self.speed.handover_s,
            "prefix_blocks": len(self.cache),
        }

    def _held_s(self, now_s: float) -> float:
        if not len(self._backlog):
            return 0.0
        self._advance(now_s)
        return self._backlog.rest_s()

    def _measure(self, now_s: float) -> None:
        """Learn from the busy period, if it ends here or can be cut here.

        It can be cut where little of the remaining work is begun: the done part of such work is an
        estimate, and a speed learned from estimates confirms itself.
        """
        if self._period is None:
            return
        begin, started = self._period
        passed = now_s - begin
        factor = self.speed.factor
        if not len(self._backlog) or (
            passed > _PERIOD_S and self._backlog.begun_s(factor) * factor < _BEGUN * passed
        ):
            self.speed.observe(started, self._period_work_s, passed)
            self._period, self._period_work_s = (now_s, False), 0.0

    def _remove(self, id: int, now_s: float) -> float | None:
        self._advance(now_s)
        return self._backlog.pop(id)

    def _advance(self, now_s: float) -> None:
        self._backlog.advance(now_s, self.speed.factor, not self.preemptive)
