"""The simulated instances that a configuration describes."""

from collections.abc import Callable

import numpy as np

from kairos.latency import PrefillModel, Profile
from kairos.latency.ranks import LockStep
from kairos.latency.table import StepTable
from kairos.policy.jobs import PrefillQueue
from kairos.policy.length import LengthEstimator
from kairos.policy.rank_placement import lock_step_params
from kairos.policy.slack import SlackPolicy
from kairos.policy.urgency import UrgencyQueue
from kairos.sim.baselines.decode import ContinuousPolicy, GreedyPolicy
from kairos.sim.baselines.placement import Placement, fewest_tokens, placement_of
from kairos.sim.baselines.prefill import RankedQueue
from kairos.sim.config import SimConfig
from kairos.sim.decode_rank import DecodeEngine, DecodeRank, RetractingDecodePolicy
from kairos.sim.decode_server import DecodeServer, StepTiming
from kairos.sim.prefill_server import PrefillEngine, PrefillServer, PromptProgress
from kairos.sim.records import SimRecords
from kairos.sim.reservations import DecodeReservations

_SMALL_CAP = 32


class ServerFactory:
    """Makes the instances of one simulation.

    Args:
        config: the configuration.
        profile: true latencies, and with the biases of `config` the predicted ones.
        slo_classes: number of SLO classes.

    Attributes:
        ranks: data-parallel ranks of a decode instance.
        places_late: whether a request is bound to a rank only when it can join.
        decode_cap: most requests in the decode batch of a rank.
        lengths: length estimator of each decode rank made so far; None: not learned.
    """

    def __init__(self, config: SimConfig, profile: Profile, slo_classes: int) -> None:
        max_batch = profile.limits.max_batch
        self.ranks = config.dp_attention or profile.ranks
        self.places_late = (
            self.ranks > 1 and config.placement == "kairos" and not config.preallocate
        )
        self.decode_cap = min(config.decode_cap or max_batch, max_batch)
        self.lengths: list[LengthEstimator | None] = []
        self._config = config
        self._profile = profile
        self._slo_classes = slo_classes
        self._random = np.random.default_rng(config.seed)
        limits = profile.limits
        self._table = StepTable.from_model(profile.decode, limits.max_batch, limits.kv_tokens)
        biased = self._table.seconds * config.decode_bias
        self._predicted = self._table._replace(seconds=biased)

    def prefill_server(
        self, prompts: PromptProgress, on_chunk: Callable[[int, PrefillServer], None]
    ) -> PrefillServer:
        """A prefill instance; arguments as of `PrefillServer`."""
        engine = PrefillEngine(
            self._profile.prefill,
            self._profile.limits.chunk_tokens,
            self._config.lookahead,
            self._noise,
        )
        return PrefillServer(self._prefill_queue(), engine, prompts, on_chunk)

    def decode_server(self, records: SimRecords) -> DecodeServer:
        """A decode instance that updates `records`."""
        config, model = self._config, self._profile.decode
        timing = StepTiming(
            LockStep(self._table, model, self.ranks),
            LockStep(self._predicted, model, self.ranks, config.decode_bias),
            self._noise,
            lookahead=config.lookahead and config.decode_lookahead,
            change_cost_s=config.change_cost_s,
        )
        return DecodeServer([self._rank(records) for _ in range(self.ranks)], timing)

    def placement(self) -> Placement | None:
        """How one decode instance chooses ranks on arrival; None: as late as possible."""
        if self.places_late:
            return None
        if self.ranks == 1 or self._config.placement == "kairos":
            return fewest_tokens
        return placement_of(self._config.placement, self._config.seed)

    def _rank(self, records: SimRecords) -> DecodeRank:
        config, profile = self._config, self._profile
        within_step = self.ranks > 1 and config.decode_policy == "slack"
        engine = DecodeEngine(
            profile.limits,
            joins_in_order=config.preallocate or self.places_late,
            joins_within_step=within_step and not self.places_late,
            sends_first_token=config.first_token == "decode",
            reload_s_per_token=profile.kv.wire_s(1),
        )
        lengths = None
        if config.decode_policy == "slack" and config.lengths:
            lengths = LengthEstimator(self._slo_classes)
        self.lengths.append(lengths)
        return DecodeRank(self._decode_policy(lengths), engine, records, lengths)

    def reservations(self, decode: list[DecodeServer]) -> DecodeReservations:
        """Reservations on all decode instances made so far."""
        prefill_servers, _ = self._config.shape
        return DecodeReservations(
            [rank for server in decode for rank in server.ranks],
            self._profile.limits.kv_tokens,
            self.lengths,
            self._config.grants_in_order,
            self._max_rows(),
            prefill_servers,
        )

    def _max_rows(self) -> int:
        """Requests that an SGLang decode server holds, in its batch and before it.

        A server with a small batch has more rows for prompts that are being prefilled.
        """
        cap = self.decode_cap
        return cap if cap > _SMALL_CAP else 3 * cap

    def _noise(self) -> float:
        if self._config.noise == 0.0:
            return 1.0
        return max(0.1, 1.0 + self._config.noise * float(self._random.standard_normal()))

    def _prefill_queue(self) -> PrefillQueue:
        true, bias = self._profile.prefill, self._config.prefill_bias
        model = PrefillModel(
            true.fixed_s * bias,
            true.weight_floor_s * bias,
            true.per_token_s * bias,
            true.per_token_context_s * bias,
        )
        chunk_tokens = self._profile.limits.chunk_tokens
        if self._config.prefill_policy == "urgency":
            return UrgencyQueue(model, chunk_tokens, self._config.urgency)
        return RankedQueue(model, chunk_tokens, self._config.prefill_policy)

    def _decode_policy(self, lengths: LengthEstimator | None) -> RetractingDecodePolicy:
        table = self._predicted
        if self._config.decode_policy == "continuous":
            return ContinuousPolicy(table, self.decode_cap)
        if self._config.decode_policy == "greedy":
            return GreedyPolicy(table, self.decode_cap)
        params = self._config.slack
        if self.ranks > 1:
            params = lock_step_params(params)
        return SlackPolicy(table, self.decode_cap, params, lengths)
