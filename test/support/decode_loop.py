"""A decode scheduler's loop in virtual time, with Kairos' batcher in it.

Upstream's batch is replaced by lists with the same filtering and merging, and upstream's loop by
one that calls the hooks in upstream's order.
"""

import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from sglang.srt.kairos import upstream
from sglang.srt.kairos.decode.batcher import DecodeBatcher
from sglang.srt.kairos.decode.counters import DecodeCounters
from sglang.srt.kairos.decode.held_tokens import HeldTokens
from sglang.srt.kairos.decode.retraction import RetractionOrder
from sglang.srt.kairos.decode.rows import DecodeRows
from sglang.srt.kairos.decode.selection import DecodeSelection
from sglang.srt.kairos.decode.steps import DecodeSteps
from sglang.srt.kairos.request_slo import RequestSlo
from sglang.srt.kairos.request_state import RequestState
from sglang.srt.kairos.shared_clock import SharedClock

from kairos.latency import load_profile
from kairos.latency.steps import CONTEXT_KNOTS
from kairos.latency.table import StepTable
from kairos.policy.length import LengthEstimator
from kairos.policy.slack import SlackParams, SlackPolicy
from kairos.slo import Slo, SloClasses
from support.fake_req import FakeSamplingParams, FakeTimeStats

PROFILE = load_profile("tiny-fast")
MODEL = PROFILE.decode
STARVATION_S = 0.5


@dataclass(frozen=True)
class Finish:
    """Why a request ended."""

    kind: str = "length"

    def to_json(self) -> dict[str, object]:
        return {"type": self.kind}


@dataclass(eq=False)
class DecodeReq:
    """A request of a decode server.

    Attributes:
        length: tokens of context, as upstream counts them.
        token_s: times of the tokens after the first one.
    """

    kairos: RequestState
    origin_input_ids: Sequence[int]
    output_ids: list[int]
    sampling_params: FakeSamplingParams = field(default_factory=FakeSamplingParams)
    length: int = 0
    finished_reason: upstream.BaseFinishReason | None = None
    to_finish: upstream.BaseFinishReason | None = None
    beam_group: object | None = None
    is_retracted: bool = False
    return_logprob: bool = False
    lora_id: str | None = None
    bootstrap_host: str = "10.0.0.1"
    bootstrap_port: int | None = 8998
    time_stats: FakeTimeStats = field(default_factory=FakeTimeStats)
    token_s: list[float] = field(default_factory=list)
    # Read on prefill servers only.
    rid: str = ""
    bootstrap_room: int | None = None
    priority: int | None = None
    num_matched_prefix_tokens: int = 0
    prefix_len: int = 0
    extend_end: int | None = None
    pending_bootstrap: bool = False
    inflight_middle_chunks: int = 0

    def finished(self) -> bool:
        return self.finished_reason is not None

    def update_finish_state(self) -> None:
        self.finished_reason = self.to_finish


class HostLengths:
    """A tensor of lengths in host memory."""

    def __init__(self, lengths: npt.NDArray[np.int64]) -> None:
        self.array = lengths

    def numpy(self) -> npt.NDArray[np.int64]:
        return self.array


@dataclass
class Allocator:
    """Memory for KV, one token a page."""

    free: int = 10**6
    page_size: int = 1

    def available_size(self) -> int:
        return self.free


class EmptyCache:
    def evictable_size(self) -> int:
        return 0


@dataclass(frozen=True)
class Mode:
    """Kind of a batch."""

    name: str = "decode"

    def is_decode(self) -> bool:
        return self.name == "decode"

    def is_mixed(self) -> bool:
        return self.name == "mixed"

    def is_extend_without_speculative(self) -> bool:
        return self.name in ("extend", "mixed")


class Penalizer:
    def __init__(self, orchestrator: upstream.BatchedPenalizerOrchestrator) -> None:
        self._orchestrator_ref = weakref.ref(orchestrator)


class Penalties:
    """The penalizers of a batch; `batch` is the one that they look at."""

    def __init__(self, batch: object) -> None:
        self.is_required = False
        self.batch = batch
        self.penalizers: dict[upstream.PenalizerFactory, upstream.BatchedPenalizer] = {
            Penalizer: Penalizer(self)
        }


class SamplingInfo:
    """A list per request, shared between copies of a batch as upstream's lists are."""

    def __init__(self, batch: object, reqs: Sequence[upstream.Req]) -> None:
        self.rows = list(reqs)
        self.penalizer_orchestrator: upstream.BatchedPenalizerOrchestrator | None = Penalties(batch)


class Batch:
    """Upstream's `ScheduleBatch` of a decode server, as far as Kairos uses it."""

    tree_cache = EmptyCache()
    is_prefill_only = False
    forward_mode = Mode()
    forward_iter = 0
    launch_ts = 0.0
    after_idle_gap = False

    def __init__(self, reqs: Sequence[DecodeReq], allocator: Allocator) -> None:
        self.reqs = list(reqs)
        self.seq_lens_cpu = HostLengths(np.array([req.length for req in reqs], np.int64))
        self.sampling_info: upstream.SamplingBatchInfo = SamplingInfo(self, reqs)
        self.token_to_kv_pool_allocator = allocator
        self.batch_is_full = False

    @property
    def sampling(self) -> SamplingInfo:
        info = self.sampling_info
        assert isinstance(info, SamplingInfo)
        return info

    @property
    def penalties(self) -> Penalties:
        penalties = self.sampling_info.penalizer_orchestrator
        assert isinstance(penalties, Penalties)
        return penalties

    def is_empty(self) -> bool:
        return not self.reqs

    def filter_batch(self, *, keep_indices: list[int] | None = None) -> None:
        if keep_indices is None:
            keep_indices = [i for i, req in enumerate(self.reqs) if not req.finished()]
        if len(keep_indices) == len(self.reqs):
            return
        self.reqs = [self.reqs[i] for i in keep_indices]
        self.sampling.rows = [self.sampling.rows[i] for i in keep_indices]
        self.seq_lens_cpu = HostLengths(self.seq_lens_cpu.numpy()[keep_indices])

    def merge_batch(self, other: "Batch") -> None:
        self.sampling.rows.extend(other.sampling.rows)  # in place, as upstream's lists
        lengths = [self.seq_lens_cpu.numpy(), other.seq_lens_cpu.numpy()]
        self.seq_lens_cpu = HostLengths(np.concatenate(lengths))
        self.reqs = self.reqs + other.reqs

    def check_decode_mem(self, selected_indices: list[int] | None = None) -> bool:
        needed = len(self.reqs if selected_indices is None else selected_indices)
        return self.token_to_kv_pool_allocator.available_size() >= needed

    def check(self) -> None:
        assert self.sampling.rows == self.reqs
        assert self.seq_lens_cpu.numpy().tolist() == [req.length for req in self.reqs]
        assert self.penalties.batch is self
        for penalizer in self.penalties.penalizers.values():
            assert penalizer._orchestrator_ref() is self.penalties


def as_batch(batch: upstream.ScheduleBatch | None) -> Batch:
    """The stand-in behind upstream's type."""
    assert isinstance(batch, Batch)
    return batch


class Loop:
    """Upstream's event loop with virtual time; it is its own scheduler and output streamer."""

    def __init__(self, overlap: bool, hold: bool = False, max_batch: int = 16) -> None:
        self.now = 100.0
        self.clock = SharedClock(1, lambda: self.now)
        prior = StepTable.from_model(MODEL, 64, 50_000, knots=CONTEXT_KNOTS)
        params = SlackParams()._replace(starvation_s=STARVATION_S)
        self.policy = SlackPolicy(prior, max_batch, params, LengthEstimator())
        self.steps = DecodeSteps(prior, self.clock, overlap)
        self.held = HeldTokens() if hold else None
        self.counters = DecodeCounters()
        rows = DecodeRows(SloClasses(Slo(2000, 50)))
        self.batcher = DecodeBatcher(
            DecodeSelection(self.policy, rows, self.steps, self.clock, self.held, self.counters),
            self.clock,
            overlap,
            RetractionOrder(self.policy, rows, reload_s_per_token=1e-6),
        )
        self.allocator = Allocator()
        self.running_batch: upstream.ScheduleBatch = Batch([], self.allocator)
        self.last_batch: Batch | None = None
        self.overlap = overlap
        self.launched: list[list[DecodeReq]] = []
        self.first_s: dict[int, float] = {}
        self.made = 0
        self.forward_ct = 0
        self.sizes: list[int] = []
        self._pause_intervals: list[tuple[float, float]] = []
        self._engine_paused = False

    @property
    def output_streamer(self) -> "Loop":
        return self

    @property
    def reqs(self) -> list[DecodeReq]:
        """The running requests."""
        return as_batch(self.running_batch).reqs

    def stream_output(self, reqs: Sequence[upstream.Req], return_logprob: bool) -> None:
        for req in reqs:
            assert req.kairos.number not in self.first_s
            self.first_s[req.kairos.number] = self.now

    def join(self, prompt: int, new: int, tpot_ms: float, ttft_ms: float = 1e6) -> DecodeReq:
        """A request whose KV has arrived joins the running batch."""
        self.made += 1
        request = RequestState(RequestSlo(Slo(ttft_ms, tpot_ms), self.now), self.made)
        options = FakeSamplingParams(max_new_tokens=new)
        req = DecodeReq(request, [0] * prompt, [0], options, length=prompt)
        if self.held is not None:
            self.held.mark([req], self.now)
        if not request.is_held:
            self.stream_output([req], return_logprob=False)
        joining = Batch([req], self.allocator)
        if self.reqs:
            as_batch(self.running_batch).merge_batch(joining)
        else:
            self.running_batch = joining
        return req

    def upstream_update(self, scheduler: "Loop", batch: upstream.ScheduleBatch) -> Batch:
        """Upstream's `update_running_batch`."""
        updated = as_batch(batch)
        updated.filter_batch()
        for req in updated.reqs:
            req.length += 1
        updated.seq_lens_cpu = HostLengths(updated.seq_lens_cpu.numpy() + 1)
        return updated

    def update(self) -> Batch:
        """Prepare a step."""
        original = self.upstream_update
        return as_batch(self.batcher.update(original, self, self.running_batch))

    def turn(self) -> None:
        """One pass of the event loop; with overlap the result of the step before is processed."""
        self.batcher.settle(self)
        unfinished = {req.kairos.number for req in self.reqs if not req.finished()}
        batch = self.update()
        self.running_batch = batch
        if not batch.reqs:
            self.last_batch = None
            self.launched = []
            return
        ran = list(batch.reqs)
        self.sizes.append(len(ran))
        self.launch(batch)
        as_batch(self.running_batch).check()
        assert {req.kairos.number for req in self.reqs} == unfinished
        assert batch.reqs == ran, "the batch in flight must stay as it is"
        self.launched.append(ran)
        self.last_batch = batch
        lengths = [req.length for req in ran]
        self.now += MODEL.step_s(len(ran), sum(lengths), max(lengths))
        if not self.overlap or len(self.launched) > 1:
            self.process(self.launched.pop(0))
            self.batcher.stream_due(self)

    def launch(self, batch: Batch) -> None:
        """Upstream's `run_batch`, and the hook behind it."""
        self.forward_ct += 1
        batch.forward_iter = self.forward_ct
        self.batcher.merge_launched(self)

    def pause(self, seconds: float) -> None:
        """Upstream's `pause_generation` in place, and `continue_generation`."""
        self._pause_intervals.append((self.now, self.now + seconds))
        self.now += seconds

    def pause_retracting(self, seconds: float) -> list[DecodeReq]:
        """The same with mode `retract`; returns the requests, which do not run any more."""
        retracted = list(self.reqs)
        self._engine_paused = True
        self.running_batch, self.last_batch = Batch([], self.allocator), None
        self.launched = []
        self.batcher.settle(self)
        self.pause(seconds)
        self._engine_paused = False
        return retracted

    def process(self, ran: list[DecodeReq]) -> None:
        """Process the result of a step."""
        for req in ran:
            if req.finished():
                continue  # the one redundant step of overlap
            req.output_ids.append(0)
            req.token_s.append(self.now)
            if req.to_finish or len(req.output_ids) >= req.sampling_params.max_new_tokens:
                req.finished_reason = req.to_finish or Finish()

    def drain(self, limit: int = 20_000) -> None:
        """Turn until all requests have ended."""
        for _ in range(limit):
            if not self.reqs:
                return
            self.turn()
        raise AssertionError("requests never end")
