"""Kairos on one decode server: its parts, and what they share."""

import logging
import time
import zlib
from collections.abc import Callable, Sequence

from sglang.srt.kairos.config import KairosConfig
from sglang.srt.kairos.decode.batcher import DecodeBatcher
from sglang.srt.kairos.decode.counters import DecodeCounters
from sglang.srt.kairos.decode.device_times import device_step_times
from sglang.srt.kairos.decode.held_tokens import HeldTokens
from sglang.srt.kairos.decode.preallocation import DecodePreallocation, preallocation_refusal
from sglang.srt.kairos.decode.ranks import DecodeRanks
from sglang.srt.kairos.decode.retraction import RetractionOrder
from sglang.srt.kairos.decode.rows import DecodeRows
from sglang.srt.kairos.decode.selection import DecodeSelection
from sglang.srt.kairos.decode.skipping import skipping_refusal
from sglang.srt.kairos.decode.state import DecodeStateFile, Restore
from sglang.srt.kairos.decode.steps import DecodeSteps
from sglang.srt.kairos.engine_key import engine_key
from sglang.srt.kairos.parallel import attention_ranks, first_rank
from sglang.srt.kairos.rank_batches import RankBatches
from sglang.srt.kairos.shared_clock import SharedClock
from sglang.srt.kairos.upstream import ScheduleBatch, Scheduler

from kairos.latency import Profile
from kairos.latency.steps import CONTEXT_KNOTS
from kairos.latency.table import StepTable
from kairos.policy.length import LengthEstimator
from kairos.policy.rank_placement import lock_step_params
from kairos.policy.slack import SlackParams, SlackPolicy

_log = logging.getLogger(__name__)


class DecodeScheduler:
    """Kairos on one decode server.

    Args:
        config: the validated flags.
        profile: latency models behind predictions.
        scheduler: the upstream `Scheduler`, just constructed and idle.
        clock: time and learned values for decisions.
        local_time: the local clock, monotonic seconds.
        ranks: what the data-parallel attention ranks of the server run; None: there is one.

    Attributes:
        batcher: prepares decode steps.
        preallocation: gives memory to waiting prompts.
        held: first tokens held back; None: first tokens are streamed at once.
        lengths: predicts output lengths.
    """

    def __init__(
        self,
        config: KairosConfig,
        profile: Profile,
        scheduler: Scheduler,
        clock: SharedClock,
        local_time: Callable[[], float] = time.monotonic,
        ranks: RankBatches | None = None,
    ) -> None:
        captured = _captured_batches(scheduler)
        rows_limit = scheduler.max_running_requests
        # A step beyond the captured sizes runs without a graph: never by choice.
        max_batch = min(rows_limit, max(captured)) if captured else rows_limit
        prior = StepTable.from_model(
            profile.decode, rows_limit, scheduler.max_total_num_tokens, captured, CONTEXT_KNOTS
        )
        refusal = skipping_refusal(scheduler)
        _log_modes(refusal, config.hold)
        overlap = scheduler.enable_overlap
        rows = DecodeRows(config.classes)
        self.lengths = LengthEstimator(1 + len(config.classes.named))
        self._steps = _decode_steps(scheduler, profile, prior, clock, ranks)
        self.held = HeldTokens() if config.hold and refusal is None else None
        params = SlackParams() if ranks is None else lock_step_params(SlackParams())
        policy = SlackPolicy(prior, max_batch, params, self.lengths)
        # An operator who asks for retraction by priority gets upstream's order.
        by_priority = scheduler.server_args.retraction_policy == "priority"
        # A retracted request's KV travels twice.
        reload_s = 2.0 * profile.kv.wire_s(1)
        self.batcher = DecodeBatcher(
            DecodeSelection(policy, rows, self._steps, clock, self.held, DecodeCounters()),
            clock,
            overlap,
            None if by_priority else RetractionOrder(policy, rows, reload_s),
            refusal,
        )
        self.preallocation = DecodePreallocation(
            profile.prefill,
            rows,
            self.lengths,
            clock,
            scheduler,
            preallocation_refusal(scheduler, refusal),
        )
        self._clock = clock
        self._local_time = local_time
        self._state_file: DecodeStateFile | None = None  # where this rank keeps what it learns
        if config.state_dir is not None:
            key = _engine_key(scheduler, profile, captured, prior)
            state_file = DecodeStateFile(config.state_dir, key, local_time)
            state_file.restore(self._parts())
            if first_rank():
                self._state_file = state_file

    def processed(self, batch: ScheduleBatch) -> None:
        """Learn from a decode step whose result upstream has just processed."""
        self._steps.observe(batch, self._local_time(), self.batcher.selection_skipped)
        if self._state_file is not None and self._state_file.due():
            self._state_file.save(
                {"steps": self._steps.learner.state(), "lengths": self.lengths.state()}
            )

    def snapshot(self) -> dict[str, object]:
        """Return counters for /server_info."""
        return {
            **self.batcher.snapshot(),
            **self._steps.snapshot(),
            "preallocation": self.preallocation.snapshot(),
            "hold": None if self.held is None else self.held.snapshot(),
            "ranks": None if self._steps.ranks is None else self._steps.ranks.snapshot(),
        }

    def _parts(self) -> dict[str, Restore]:
        parts: dict[str, Restore] = {"steps": self._steps.restore}
        # Ranks may be on hosts with different folders, and lengths are not shared.
        if not self._clock.shared:
            parts["lengths"] = self.lengths.restore
        return parts


def _decode_steps(
    scheduler: Scheduler,
    profile: Profile,
    prior: StepTable,
    clock: SharedClock,
    batches: RankBatches | None,
) -> DecodeSteps:
    """Return the measurement of steps, of all ranks where there are several."""
    count = attention_ranks(scheduler.server_args)
    overlap = scheduler.enable_overlap
    if batches is None:
        return DecodeSteps(prior, clock, overlap, device_step_times(scheduler))
    if profile.ranks != count:
        _log.warning(
            "profile %s describes a server of %d data-parallel attention ranks, and this one has "
            "%d: step times are learned from there",
            *(profile.name, profile.ranks, count),
        )
    ranks = DecodeRanks(prior, profile.decode, count, batches)
    # On the device, a step includes the wait for the slowest rank: only its pace is learned.
    return DecodeSteps(prior, clock, overlap, ranks=ranks)


def _log_modes(refusal: str | None, hold: bool) -> None:
    """Log what is in effect on this server."""
    if refusal is not None:
        _log.warning("Kairos leaves decode batches to upstream: %s", refusal)
        if hold:
            _log.warning("--kairos-hold has no effect: %s", refusal)
    elif hold:
        _log.info("Kairos holds first tokens back")


def _captured_batches(scheduler: Scheduler) -> list[int]:
    """Batch sizes with a captured CUDA graph; empty without graphs."""
    runner = scheduler.tp_worker.model_runner
    captured: Sequence[int] | None = getattr(runner, "decode_cuda_graph_capture_bs", None)
    return sorted(captured or [])


def _engine_key(
    scheduler: Scheduler, profile: Profile, captured: list[int], prior: StepTable
) -> str:
    """Description of the engine that learned step times depend on.

    It includes the prior, because a new profile may have the name of an old one.
    """
    return "|".join(
        str(part)
        for part in (
            engine_key(scheduler),
            scheduler.max_running_requests,
            scheduler.max_total_num_tokens,
            captured,
            scheduler.enable_overlap,
            profile.name,
            zlib.crc32(prior.seconds.tobytes()),
        )
    )
