"""A decode scheduler's loop in virtual time, with Kairos' batcher in it.

Upstream's batch is replaced by lists with the same filtering and merging; upstream's loop by one
that calls the hooks in upstream's order.
"""

from types import SimpleNamespace
from typing import Any

import numpy as np
from sglang.srt.kairos.decode_batcher import DecodeBatcher
from sglang.srt.kairos.decode_held_tokens import HeldTokens
from sglang.srt.kairos.decode_rows import DecodeRows
from sglang.srt.kairos.decode_steps import DecodeSteps
from sglang.srt.kairos.request_slo import RequestSlo
from sglang.srt.kairos.shared_clock import SharedClock

from kairos.latency import load_profile
from kairos.latency.steps import CONTEXT_KNOTS
from kairos.latency.table import StepTable
from kairos.policy.length import LengthEstimator
from kairos.policy.slack import SlackParams, SlackPolicy
from kairos.slo import Slo, SloClasses

PROFILE = load_profile("tiny-fast")
MODEL = PROFILE.decode
STARVE_S = 0.5


class Lengths(np.ndarray):
    """An array that answers `numpy()`, as a tensor does."""

    def numpy(self) -> Any:
        return self.view(np.ndarray)


class Penalizer:
    def __init__(self, orchestrator: Any) -> None:
        self.orchestrator = orchestrator


class Batch:
    """What the batcher uses of upstream's `ScheduleBatch`."""

    def __init__(self, reqs: list[Any], free: Any) -> None:
        self.reqs = reqs
        self.seq_lens_cpu = np.array([req.length for req in reqs]).view(Lengths)
        orchestrator = SimpleNamespace(is_required=False, penalizers={Penalizer: None}, batch=self)
        self.sampling_info = SimpleNamespace(rows=list(reqs), penalizer_orchestrator=orchestrator)
        self.token_to_kv_pool_allocator = free
        self.tree_cache = SimpleNamespace(evictable_size=lambda: 0)
        self.batch_is_full = False

    def filter_batch(self, keep_indices: list[int] | None = None) -> None:
        if keep_indices is None:
            keep_indices = [i for i, r in enumerate(self.reqs) if r.finished_reason is None]
        if len(keep_indices) == len(self.reqs):
            return
        self.reqs = [self.reqs[i] for i in keep_indices]
        self.sampling_info.rows = [self.sampling_info.rows[i] for i in keep_indices]
        self.seq_lens_cpu = self.seq_lens_cpu[keep_indices]

    def merge_batch(self, other: "Batch") -> None:
        self.sampling_info.rows.extend(other.sampling_info.rows)  # in place, as upstream's lists
        self.seq_lens_cpu = np.concatenate([self.seq_lens_cpu, other.seq_lens_cpu]).view(Lengths)
        self.reqs = self.reqs + other.reqs

    def check_decode_mem(self, selected_indices: list[int] | None = None) -> bool:
        needed = len(self.reqs if selected_indices is None else selected_indices)
        return self.token_to_kv_pool_allocator.available_size() >= needed

    def check(self) -> None:
        assert self.sampling_info.rows == self.reqs
        assert self.seq_lens_cpu.tolist() == [req.length for req in self.reqs]
        assert self.sampling_info.penalizer_orchestrator.batch is self


class Ended:
    def to_json(self) -> dict[str, str]:
        return {"type": "length"}


class Loop:
    """Upstream's event loop with virtual time."""

    def __init__(self, overlap: bool, hold: bool = False, max_batch: int = 16) -> None:
        self.now = 100.0
        self.clock = SharedClock(1, lambda: self.now)
        prior = StepTable.from_model(MODEL, 64, 50_000, knots=CONTEXT_KNOTS)
        params = SlackParams()._replace(starvation_s=STARVE_S)
        self.policy = SlackPolicy(prior, max_batch, params, LengthEstimator())
        self.steps = DecodeSteps(prior, self.clock, overlap)
        self.held = HeldTokens() if hold else None
        self.batcher = DecodeBatcher(
            self.policy,
            DecodeRows(SloClasses(Slo(2000, 50))),
            self.steps,
            self.clock,
            overlap,
            self.held,
            reload_s_per_token=1e-6,
        )
        self.free = SimpleNamespace(available_size=lambda: 10**6, page_size=1)
        self.running_batch: Any = Batch([], self.free)
        self.last_batch: Any = None
        self.overlap = overlap
        self.launched: list[Any] = []
        self.first_s: dict[int, float] = {}
        self.output_streamer = SimpleNamespace(stream_output=self._stream)
        self.made = 0
        self.sizes: list[int] = []

    def _stream(self, reqs: list[Any], logprob: bool) -> None:
        for req in reqs:
            assert req.kairos.number not in self.first_s
            self.first_s[req.kairos.number] = self.now

    def join(self, prompt: int, new: int, tpot_ms: float, ttft_ms: float = 1e6) -> Any:
        self.made += 1
        request = RequestSlo(Slo(ttft_ms, tpot_ms), self.now, self.made)
        req = SimpleNamespace(
            kairos=request,
            origin_input_ids=[0] * prompt,
            output_ids=[0],
            length=prompt,
            finished_reason=None,
            to_finish=None,
            beam_group=None,
            is_retracted=False,
            return_logprob=False,
            sampling_params=SimpleNamespace(max_new_tokens=new),
            token_s=[],
        )
        if self.held is not None:
            self.held.mark([req], self.now)
        if not request.held:
            self._stream([req], False)
        joining = Batch([req], self.free)
        if self.running_batch.reqs:
            self.running_batch.merge_batch(joining)
        else:
            self.running_batch = joining
        return req

    def upstream_update(self, scheduler: Any, batch: Batch) -> Batch:
        batch.filter_batch()
        for req in batch.reqs:
            req.length += 1
        batch.seq_lens_cpu = batch.seq_lens_cpu + 1
        return batch

    def turn(self) -> None:
        """One pass of the event loop; with overlap the result of the step before is processed."""
        original = self.upstream_update
        everybody = {
            req.kairos.number for req in self.running_batch.reqs if not req.finished_reason
        }
        batch = self.batcher.update(original, self, self.running_batch)
        self.running_batch = batch
        if not batch.reqs:
            self.last_batch = None
            self.launched = []
            return
        ran = list(batch.reqs)
        self.sizes.append(len(ran))
        self.batcher.launched(self, batch)
        self.running_batch.check()
        assert {req.kairos.number for req in self.running_batch.reqs} == everybody
        assert batch.reqs == ran, "the batch in flight must stay as it is"
        self.launched.append(ran)
        self.last_batch = batch
        lengths = [req.length for req in ran]
        self.now += MODEL.step_s(len(ran), sum(lengths), max(lengths))
        if not self.overlap or len(self.launched) > 1:
            self.process(self.launched.pop(0))
            self.batcher.begun(self)

    def process(self, ran: list[Any]) -> None:
        for req in ran:
            if req.finished_reason is not None:
                continue  # the one redundant step of overlap
            req.output_ids.append(0)
            req.token_s.append(self.now)
            if req.to_finish or len(req.output_ids) >= req.sampling_params.max_new_tokens:
                req.finished_reason = req.to_finish or Ended()

    def drain(self, limit: int = 20_000) -> None:
        for _ in range(limit):
            if not self.running_batch.reqs:
                return
            self.turn()
        raise AssertionError("requests never end")
