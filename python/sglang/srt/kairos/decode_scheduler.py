"""Kairos on one decode server: what its parts share, and what they keep between runs."""

import logging
import threading
import time
import zlib
from typing import Any

from sglang.srt.kairos.config import KairosConfig
from sglang.srt.kairos.decode_batcher import DecodeBatcher, skipping_refusal
from sglang.srt.kairos.decode_held_tokens import HeldTokens
from sglang.srt.kairos.decode_preallocation import DecodePreallocation, preallocation_refusal
from sglang.srt.kairos.decode_rows import DecodeRows
from sglang.srt.kairos.decode_steps import DecodeSteps
from sglang.srt.kairos.device_times import device_times
from sglang.srt.kairos.shared_clock import SharedClock

from kairos.errors import InputError
from kairos.latency import Profile
from kairos.latency.steps import CONTEXT_KNOTS
from kairos.latency.store import load_state, save_state
from kairos.latency.table import StepTable
from kairos.policy.length import LengthEstimator
from kairos.policy.slack import SlackPolicy

STATE = "decode"
SAVE_EVERY_S = 30.0

_log = logging.getLogger(__name__)


class DecodeScheduler:
    """Attributes:
    batcher: who runs in a step.
    preallocation: who gets memory.
    held: first tokens held back; None: none are.
    """

    def __init__(
        self, config: KairosConfig, profile: Profile, scheduler: Any, clock: SharedClock
    ) -> None:
        """Args:
        scheduler: the upstream `Scheduler`, just constructed and idle.
        """
        captured = _captured_batches(scheduler)
        rows_limit = scheduler.max_running_requests
        # A step beyond the captured sizes runs without a graph: never by choice.
        max_batch = min(rows_limit, max(captured)) if captured else rows_limit
        prior = StepTable.from_model(
            profile.decode, rows_limit, scheduler.max_total_num_tokens, captured, CONTEXT_KNOTS
        )
        refusal = skipping_refusal(scheduler)
        if refusal is not None:
            _log.warning("Kairos leaves decode batches to upstream: %s", refusal)
            if config.hold:
                _log.warning("--kairos-hold has no effect: %s", refusal)
        elif config.hold:
            _log.info("Kairos holds first tokens back")
        overlap = scheduler.enable_overlap
        rows = DecodeRows(config.classes)
        self._lengths = LengthEstimator(1 + len(config.classes.named))
        self._steps = DecodeSteps(prior, clock, overlap, device_times(scheduler))
        self.held = HeldTokens() if config.hold and refusal is None else None
        policy = SlackPolicy(prior, max_batch, lengths=self._lengths)
        # Out of memory and in again, unless the operator wants upstream's order by priority.
        by_priority = scheduler.server_args.retraction_policy == "priority"
        reload_s = None if by_priority else 2.0 * profile.kv.wire_s(1)
        self.batcher = DecodeBatcher(
            policy, rows, self._steps, clock, overlap, self.held, refusal, reload_s
        )
        self.preallocation = DecodePreallocation(
            profile.prefill,
            rows,
            self._lengths,
            clock,
            scheduler,
            preallocation_refusal(scheduler, refusal),
        )
        self._clock = clock
        self._folder = config.state_dir
        self._key = _engine_key(scheduler, profile, captured, prior)
        self._keeps = self._folder is not None and _first_rank()
        self._saved_s = time.monotonic()
        if self._folder is not None:
            self._load(self._folder)

    def processed(self, batch: Any) -> None:
        """After upstream has processed the result of a decode step."""
        done = time.monotonic()
        self._steps.observe(batch, done, self.batcher.selection_skipped)
        if self._keeps and done - self._saved_s > SAVE_EVERY_S:
            self.save()
            self._saved_s = done

    def save(self) -> None:
        """Keep what is learned in the state folder. A step does not wait for its disk."""
        state = {"steps": self._steps.learner.state(), "lengths": self._lengths.state()}
        threading.Thread(
            target=self._write, args=(state,), name="kairos-state", daemon=True
        ).start()

    def _write(self, state: dict[str, Any]) -> None:
        assert self._folder is not None
        try:
            save_state(self._folder, STATE, self._key, state)
        except InputError as error:
            _log.warning("Kairos: %s", error)

    def snapshot(self) -> dict[str, Any]:
        """Counters for /server_info."""
        return {
            **self.batcher.snapshot(),
            **self._steps.snapshot(),
            "preallocation": self.preallocation.snapshot(),
            "hold": None if self.held is None else self.held.snapshot(),
        }

    def _load(self, folder: str) -> None:
        try:
            state = load_state(folder, STATE, self._key)
        except InputError as error:
            _log.warning("Kairos starts without what was learned before: %s", error)
            return
        if state is None:
            return
        parts = {"steps": self._steps.restore}
        # Ranks may be on hosts with different folders, and lengths are not shared.
        if not self._clock.shared:
            parts["lengths"] = self._lengths.restore
        for name, restore in parts.items():
            try:
                restore(state[name])
            except (InputError, KeyError, TypeError) as error:
                _log.warning("Kairos starts without the %s learned before: %s", name, error)


def _captured_batches(scheduler: Any) -> list[int]:
    """Batch sizes with a captured CUDA graph; empty without graphs."""
    runner = scheduler.tp_worker.model_runner
    return sorted(getattr(runner, "decode_cuda_graph_capture_bs", None) or [])


def _engine_key(scheduler: Any, profile: Profile, captured: list[int], prior: StepTable) -> str:
    """What learned step times depend on; a profile made anew may have its old name."""
    args = scheduler.server_args
    return "|".join(
        str(part)
        for part in (
            args.model_path,
            args.dtype,
            args.quantization,
            args.kv_cache_dtype,
            scheduler.tp_size,
            scheduler.max_running_requests,
            scheduler.max_total_num_tokens,
            captured,
            scheduler.enable_overlap,
            profile.name,
            zlib.crc32(prior.seconds.tobytes()),
        )
    )


def _first_rank() -> bool:
    # Here, because importing it takes seconds; a scheduler has it loaded.
    from sglang.srt.runtime_context import get_parallel

    return bool(get_parallel().tp_rank == 0)
