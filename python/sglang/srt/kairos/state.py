"""Kairos' side of one scheduler process."""

import logging
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from sglang.srt.kairos.config import KairosConfig
from sglang.srt.kairos.decode.scheduler import DecodeScheduler
from sglang.srt.kairos.decode.turns import DecodeTurns
from sglang.srt.kairos.engine_key import engine_key
from sglang.srt.kairos.parallel import attention_rank, attention_ranks, first_rank
from sglang.srt.kairos.prefill.observer import state_file
from sglang.srt.kairos.prefill.planner import PrefillPlanner
from sglang.srt.kairos.prefill.scheduler import PrefillScheduler
from sglang.srt.kairos.prometheus import engine_metrics
from sglang.srt.kairos.rank_batches import RankBatches
from sglang.srt.kairos.request_slo import RequestSlo, of_request
from sglang.srt.kairos.request_state import RequestState
from sglang.srt.kairos.shared_clock import SharedClock
from sglang.srt.kairos.support import planning_refusal
from sglang.srt.kairos.telemetry import publisher_for
from sglang.srt.kairos.upstream import Req, ScheduleBatch, SchedulePolicy, Scheduler

from kairos.errors import InputError
from kairos.latency import Profile, load_profile

# Requests shown in /server_info: enough to see the traffic, too few to cost anything.
RECENT = 32

# Seconds for which an order of the handshake queue is good enough.
HANDSHAKE_ORDER_S = 0.02

_log = logging.getLogger(__name__)


class KairosState:
    """Kairos' side of one upstream scheduler.

    Attributes:
        role: `prefill`, `decode` or `null` for a server that does both.
        clock: time and learned values for decisions, the same on every tensor-parallel rank.
        prefill: orders the waiting queue; None on a decode server.
        planner: decides prefill batches; None where only the order is Kairos'.
        decode: decides decode batches and memory; None where there is no decode server.
        turns: decides when decode goes before prefill; None on disaggregated servers.
        telemetry: publishes the load for routers; None where nothing is published.
    """

    def __init__(self, config: KairosConfig, scheduler: Scheduler) -> None:
        """Begin on an idle scheduler.

        Args:
            config: the validated flags.
            scheduler: just constructed.
        """
        self.role: str = scheduler.disaggregation_mode.value
        ranks = attention_ranks(scheduler.server_args)
        # Data-parallel ranks have waiting queues of their own.
        self.clock = SharedClock(scheduler.tp_size // ranks)
        self._ranks = RankBatches(attention_rank()) if ranks > 1 else None
        self.telemetry = publisher_for(config.telemetry)
        self._config = config
        self._scheduler = scheduler
        self._model = scheduler.model_config
        self._rows = scheduler.req_to_token_pool
        self._all_rows = self._rows.available_size()
        profile = load_profile(config.profile)
        self.prefill = PrefillScheduler(profile) if self.role != "decode" else None
        self.planner: PrefillPlanner | None = None
        self._unplanned = planning_refusal(scheduler)
        if self._unplanned is None:
            self.planner = PrefillPlanner(
                profile,
                scheduler,
                self.clock,
                self._prefill_file(profile, scheduler),
                self._ranks,
            )
        elif self.role == "prefill":
            _log.warning("Kairos orders the prefill queue only: %s", self._unplanned)
        self.decode: DecodeScheduler | None = None
        if self.role == "decode":
            self.decode = DecodeScheduler(config, profile, scheduler, self.clock, ranks=self._ranks)
        self.turns = DecodeTurns(scheduler.enable_overlap) if self.role == "null" else None
        if self.turns is not None:
            _log.warning("Kairos leaves decode batches to upstream: not disaggregated")
        self._by_class: Counter[str] = Counter()
        self._invalid = 0
        self._received = 0
        self._handshakes_ordered_s = -HANDSHAKE_ORDER_S
        self._recent: deque[dict[str, object]] = deque(maxlen=RECENT)
        self._metrics = engine_metrics(scheduler, self.snapshot)

    def admit(self, req: Req) -> None:
        """Attach its SLO to a new request, as `req.kairos`."""
        now = self.clock.now()
        custom_params = getattr(req.sampling_params, "custom_params", None)
        try:
            request = of_request(custom_params, self._config.classes, now)
        except InputError:
            self._invalid += 1
            request = RequestSlo(self._config.classes.default, now)
        self._received += 1
        req.kairos = RequestState(request, self._received)
        self._by_class[request.slo.slo_class] += 1
        self._recent.append(
            {
                "rid": req.rid,
                "bootstrap_room": req.bootstrap_room,
                **request.slo.objectives,
                "class": request.slo.slo_class,
                "elapsed_ms": round((now - request.arrival_s) * 1e3, 3),
            }
        )

    def order(self, waiting: list[Req], policy: SchedulePolicy) -> None:
        """Reorder a waiting queue in place."""
        planned = None if self.planner is None else self.planner.forming.ordered()
        if planned is not None:
            waiting[:] = planned
        elif self.prefill is not None:
            self._admit_all(waiting)
            self.prefill.order(waiting, policy, self.clock.now())

    def receive(
        self,
        original: Callable[[object, Sequence[object] | None], list[object]],
        receiver: object,
        local_reqs: Sequence[object] | None,
    ) -> list[object]:
        """Begin a pass of the event loop.

        Around `SchedulerRequestReceiver.recv_requests`, which precedes everything else in a pass.
        """
        received = self.clock.receive(original, receiver, local_reqs)
        if self.decode is not None:
            self.decode.batcher.merge_launched(self._scheduler)
            self.decode.batcher.settle(self._scheduler)
        elif self.role == "prefill":
            self.order_handshakes()
        if self.telemetry is not None:
            self.telemetry.tick(self._scheduler)
        return received

    def gathered(self, tokens: Sequence[int], pairs: Sequence[int]) -> None:
        """Take what upstream has gathered from all data-parallel ranks for the next batch.

        Args:
            tokens: new ones, by rank; those of a decode step are its requests.
            pairs: of a query and a key, by rank; those of a decode step are its context.
        """
        if self._ranks is not None:
            self._ranks.gathered(self._scheduler.forward_ct + 1, tokens, pairs)

    def order_handshakes(self) -> None:
        """Put the most urgent requests first among those that wait for their handshake.

        Only while metadata buffers are short, and at intervals: upstream looks at this queue in
        every pass of the event loop.
        """
        waiting = self._scheduler.disagg_prefill_bootstrap_queue
        free = waiting.req_to_metadata_buffer_idx_allocator.available_size()
        now = self.clock.now()
        if (
            self.prefill is None
            or free >= len(waiting.queue)
            or now < self._handshakes_ordered_s + HANDSHAKE_ORDER_S
        ):
            return
        self._handshakes_ordered_s = now
        self._admit_all(waiting.queue)
        self.prefill.order_handshakes(waiting.queue, self._scheduler.policy, now)

    def decode_is_due(self, running_batch: ScheduleBatch, last_batch: ScheduleBatch | None) -> bool:
        """Return whether running requests get a step before waiting prompts."""
        return self.turns is not None and self.turns.due(
            running_batch, last_batch, self.clock.now()
        )

    def process_result(self, process: Callable[[], None], batch: ScheduleBatch) -> None:
        """Have upstream process the result of a batch, and learn from it.

        Around `Scheduler.process_batch_result`. A decode step of this pass has been launched by
        then, unless its result has to wait for this one.
        """
        decode = self.decode
        if decode is not None:
            decode.batcher.merge_launched(self._scheduler)
        process()
        if decode is not None and batch.forward_mode.is_decode():
            decode.processed(batch)
            decode.batcher.stream_due(self._scheduler)
        self.measured(batch)

    def measured(self, batch: ScheduleBatch) -> None:
        """Measure a batch whose result has just been processed."""
        if self.planner is not None:
            self.planner.observer.finished(batch)
        if self.turns is not None:
            self.turns.measured(batch, self.clock.now())
        if self._metrics is None:
            return
        # An idle scheduler updates nothing, so the end of a burst is shown at once.
        if self.planner is not None:
            self._metrics.update(force=self.planner.is_idle())
        else:
            self._metrics.update(force=all(req.finished() for req in batch.reqs))

    def snapshot(self) -> dict[str, object]:
        """Return the `kairos` object of /server_info: plain values only."""
        return {
            "role": self.role,
            "decisions": self.clock.decisions,
            "rows_in_use": self._all_rows - self._rows.available_size(),
            "flags": list(self._config.flags),
            # A router refuses token ids and prompts beyond these.
            "vocab_size": self._model.vocab_size,
            "context_length": self._model.context_len,
            "requests_by_class": dict(self._by_class),
            "invalid_slos": self._invalid,
            "prefill": None if self.prefill is None else self.prefill.snapshot(),
            "planner": self._unplanned if self.planner is None else self.planner.snapshot(),
            "decode": None if self.decode is None else self.decode.snapshot(),
            "decode_turns": None if self.turns is None else self.turns.snapshot(),
            "recent": list(self._recent),
            "telemetry": None if self.telemetry is None else self.telemetry.endpoint,
        }

    def _admit_all(self, requests: Iterable[Req]) -> None:
        for req in requests:
            if not hasattr(req, "kairos"):  # embeddings are made without the hook
                self.admit(req)

    def _prefill_file(self, profile: Profile, scheduler: Scheduler) -> Path | None:
        """Return where this rank keeps its learned model: only the first rank's is used."""
        if self._config.state_dir is None:
            return None
        if scheduler.tp_size > 1 and not first_rank():
            return None
        return state_file(self._config.state_dir, profile, engine_key(scheduler))


_state: KairosState | None = None


def install(state: KairosState) -> None:
    """Make `state` the one of this process, which has one scheduler."""
    global _state
    _state = state


def installed() -> KairosState:
    """Return the state of this process's scheduler.

    Raises:
        RuntimeError: no scheduler has been made.
    """
    if _state is None:
        raise RuntimeError("no scheduler is made yet; its state is installed right afterwards")
    return _state
