"""The event loop: requests arrive, are prefilled, move and are decoded."""

import heapq
import math
from dataclasses import dataclass, replace

import numpy as np

from kairos.errors import InputError
from kairos.latency import Chunk, PrefillModel, Profile
from kairos.latency.table import StepTable
from kairos.policy.jobs import PrefillJob, PrefillQueue
from kairos.policy.length import LengthEstimator, group_of
from kairos.policy.preallocation import PreallocationRequest, shortest_prefill_s
from kairos.policy.residents import DecodeResident
from kairos.policy.slack import SlackPolicy
from kairos.policy.urgency import UrgencyQueue
from kairos.sim.admission_controller import AdmissionController
from kairos.sim.baselines.decode import ContinuousPolicy, GreedyPolicy
from kairos.sim.baselines.prefill import RankedQueue
from kairos.sim.config import SimConfig
from kairos.sim.decode_server import DecodeServer, RetractingDecodePolicy
from kairos.sim.prefill_server import PrefillServer
from kairos.sim.records import SimRecords
from kairos.sim.reservations import DecodeReservations
from kairos.sim.scenario import Scenario

PREFILLED, READY, STEPPED, SHAKEN = 0, 1, 2, 3
HOLD_MARGIN_S = 1e-3
"""A held first token is released this long before its deadline."""


@dataclass(frozen=True, slots=True)
class SimResult:
    """A simulation that ran until every request was served."""

    scenario: Scenario
    settings: SimConfig
    records: SimRecords
    prefill: list[PrefillServer]
    decode: list[DecodeServer]


def simulate(scenario: Scenario, settings: SimConfig, profile: Profile) -> SimResult:
    """Deterministic: the same arguments give the same bytes.

    Raises:
        InputError: a request is longer than the memory of a decode instance.
    """
    return _Simulation(scenario, settings, profile).run()


def _check_memory(scenario: Scenario, profile: Profile) -> None:
    """Nobody could ever make room for a request that is longer than all memory."""
    tokens = scenario.input_tokens + scenario.output_tokens
    limit = profile.limits.kv_tokens
    if (tokens > limit).any():
        at = int(np.argmax(tokens > limit))
        raise InputError(
            f"scenario, request {at}: prompt and output have {tokens[at]} tokens; "
            f"{profile.name} holds {limit}"
        )


class _Simulation:
    def __init__(self, scenario: Scenario, settings: SimConfig, profile: Profile) -> None:
        if settings.stages != "prefill":
            _check_memory(scenario, profile)
        self.scenario = scenario
        self.settings = settings
        self.profile = profile
        self.records = SimRecords.empty(scenario.output_tokens)
        self._arrival = scenario.arrival_s.tolist()
        self._input: list[int] = scenario.input_tokens.tolist()
        self._done: list[int] = scenario.cached_tokens.tolist()
        self._deadline = (scenario.arrival_s + scenario.ttft_s).tolist()
        self._rng = np.random.default_rng(settings.seed)
        self._events: list[tuple[float, int, int, int]] = []
        self._sequence = 0
        self._link_free_s = [0.0] * settings.shape[0]
        self._shared = settings.routing == "late" and settings.shape[0] > 1
        self._turn = -1
        self._lengths: list[LengthEstimator | None] = []
        self.prefill = [
            PrefillServer(
                self._prefill_queue(),
                profile.prefill,
                profile.limits,
                settings.lookahead,
                self._noise,
                self._done,
                self._input,
                self._started,
            )
            for _ in range(settings.shape[0])
        ]
        self.decode = [
            DecodeServer(
                self._decode_policy(),
                StepTable.from_model(
                    profile.decode, profile.limits.max_batch, profile.limits.kv_tokens
                ),
                profile.limits,
                self.records,
                self._noise,
                settings.lookahead and settings.decode_lookahead,
                settings.change_cost_s,
                profile.kv.wire_s(1),
                settings.preallocate,
                settings.first_token == "decode",
            )
            for _ in range(settings.shape[1])
        ]

        self._rooms = (
            DecodeReservations(
                self.decode,
                profile.limits.kv_tokens,
                self._lengths,
                self._grants_in_order(),
                _rows(self._cap),
                settings.shape[0],
            )
            if settings.preallocate
            else None
        )
        self._door = AdmissionController(profile, self.decode) if settings.admission else None
        self._queued: dict[int, PrefillJob] = {}

    def run(self) -> SimResult:
        n = len(self.scenario)
        arrived = 0
        events = self._events
        while arrived < n or events:
            if arrived < n and (not events or self._arrival[arrived] <= events[0][0]):
                now = self._arrival[arrived]
                while arrived < n and self._arrival[arrived] == now:
                    self._arrive(arrived, now)
                    arrived += 1
                self._wake(now)
                continue
            now, _, kind, what = heapq.heappop(events)
            if kind == STEPPED:
                freed = self.decode[what].finish(now)
                self._step(what, now)
                if freed:
                    self._grant(now)
            elif kind == PREFILLED:
                for request in self.prefill[what].finish():
                    self._prefilled(request, what, now)
                self._launch(what, now)
                self._wake(now)
            elif kind == SHAKEN:
                self._queue(what)
                if not events or events[0][:3:2] != (now, SHAKEN):  # the last that begins now
                    self._wake(now)
            else:
                self._ready(what, now)
        return SimResult(self.scenario, self.settings, self.records, self.prefill, self.decode)

    def _arrive(self, request: int, now: float) -> None:
        if self.settings.stages == "decode":
            self._prefilled(request, 0, now)
        elif self._door is not None and not self._admitted(self._door, request, now):
            self.records.refused[request] = True
        elif self._rooms is not None:
            self._rooms.ask(self._asking(request), self._group(request))
            self._grant(now)
        else:
            self._queue(request)

    def _admitted(self, door: AdmissionController, request: int, now: float) -> bool:
        tpot_s = float(self.scenario.tpot_s[request])
        queued = [
            replace(job, done_tokens=self._done[job.id])
            for job in self._queued.values()
            if self._done[job.id] < job.total_tokens
        ]
        self._queued = {job.id: job for job in queued}
        job = door.verdict(self._job(request), tpot_s, self.prefill[0], queued, now)
        if job is None:
            return False
        self._deadline[request] = job.deadline_s
        self._queued[request] = job
        return True

    def _asking(self, request: int) -> PreallocationRequest:
        tokens = self._input[request]
        arrival_s, deadline_s = self._arrival[request], self._deadline[request]
        whole_s = self.profile.prefill.batch_s([Chunk(0, tokens)])
        min_prefill_s = shortest_prefill_s(whole_s, deadline_s - arrival_s)
        return PreallocationRequest(request, tokens + 1, arrival_s, deadline_s, min_prefill_s)

    def _grants_in_order(self) -> bool:
        grants = self.settings.grants
        return grants == "arrival" or (not grants and self.settings.prefill_policy != "urgency")

    def _group(self, request: int) -> int:
        return group_of(int(self.scenario.group[request]), self._input[request])

    def _grant(self, now: float) -> None:
        if self._rooms is not None:
            for request in self._rooms.grant(now):
                self._push(now + self.settings.handshake_s, SHAKEN, request)

    def _job(self, request: int) -> PrefillJob:
        return PrefillJob(
            request,
            self._arrival[request],
            self._deadline[request],
            self._input[request],
            self._done[request],
        )

    def _queue(self, request: int) -> None:
        job = self._job(request)
        targets = self.prefill if self._shared else [self._route()]
        for server in targets:
            server.add(job)

    def _wake(self, now: float) -> None:
        """Launch what idle prefill instances can do, and compose what the busy ones do next."""
        for p, server in enumerate(self.prefill):
            if server.idle and len(server.queue):
                self._launch(p, now)
        for server in self.prefill:
            server.look_ahead()

    def _route(self) -> PrefillServer:
        if self.settings.routing == "round-robin":
            self._turn += 1
            return self.prefill[self._turn % len(self.prefill)]
        return min(self.prefill, key=lambda server: server.pending_tokens)

    def _started(self, request: int, by: PrefillServer) -> None:
        if not self._shared or self._done[request] > self.scenario.cached_tokens[request]:
            return
        for server in self.prefill:
            if server is not by:
                server.drop(request)

    def _launch(self, p: int, now: float) -> None:
        end = self.prefill[p].start(now)
        if end is not None:
            self._push(end, PREFILLED, p)

    def _prefilled(self, request: int, p: int, now: float) -> None:
        self.records.prefilled_s[request] = now
        self.records.first_s[request] = now
        if self.settings.stages == "prefill" or self.scenario.output_tokens[request] == 1:
            if self.settings.first_token == "decode" and self.settings.stages == "both":
                self.records.first_s[request] += self.profile.kv.transfer_s(self._input[request])
            self.records.last_s[request] = self.records.first_s[request]
            if self._rooms is not None:
                self._rooms.redeem(request)
                self._grant(now)  # no decode step follows that would
            return
        link = self.profile.kv
        tokens = self._input[request]
        begin = now
        if self.settings.contention:
            begin = max(now, self._link_free_s[p])
            self._link_free_s[p] = begin + link.wire_s(tokens)
        self._push(begin + link.transfer_s(tokens), READY, request)

    def _ready(self, request: int, now: float) -> None:
        if self._rooms is not None:
            d = self._rooms.redeem(request)
        else:
            d = min(range(len(self.decode)), key=lambda i: (self.decode[i].load_tokens, i))
        if self.settings.first_token == "decode":
            self.records.first_s[request] = now
        first = float(self.records.first_s[request])
        hold = self._deadline[request] - HOLD_MARGIN_S if self.settings.hold else -math.inf
        self.decode[d].receive(
            DecodeResident(
                request,
                self._input[request] + 1,
                0,
                first,
                first,
                float(self.scenario.tpot_s[request]),
                hold,
                length_group=self._group(request),
            )
        )
        self._grant(now)  # there is less work ahead of those that wait
        if self.decode[d].idle:
            self._step(d, now)

    def _step(self, d: int, now: float) -> None:
        end = self.decode[d].start(now)
        if end is not None:
            self._push(end, STEPPED, d)

    def _push(self, time: float, kind: int, what: int) -> None:
        self._sequence += 1
        heapq.heappush(self._events, (time, self._sequence, kind, what))

    def _noise(self) -> float:
        if self.settings.noise == 0.0:
            return 1.0
        return max(0.1, 1.0 + self.settings.noise * float(self._rng.standard_normal()))

    def _prefill_queue(self) -> PrefillQueue:
        s, m = self.settings, self.profile.prefill
        bias = s.prefill_bias
        model = PrefillModel(
            m.fixed_s * bias,
            m.weight_floor_s * bias,
            m.per_token_s * bias,
            m.per_token_context_s * bias,
        )
        chunk = self.profile.limits.chunk_tokens
        if s.prefill_policy == "urgency":
            return UrgencyQueue(model, chunk, s.urgency)
        return RankedQueue(model, chunk, s.prefill_policy)

    @property
    def _cap(self) -> int:
        most = self.profile.limits.max_batch
        return min(self.settings.decode_cap or most, most)

    def _decode_policy(self) -> RetractingDecodePolicy:
        s, limits = self.settings, self.profile.limits
        self._lengths.append(None)
        table = StepTable.from_model(self.profile.decode, limits.max_batch, limits.kv_tokens)
        table = table._replace(seconds=table.seconds * s.decode_bias)
        cap = self._cap
        if s.decode_policy == "continuous":
            return ContinuousPolicy(table, cap)
        if s.decode_policy == "greedy":
            return GreedyPolicy(table, cap)
        classes = int(self.scenario.group.max()) + 1
        lengths = LengthEstimator(classes) if s.lengths else None
        self._lengths[-1] = lengths
        return SlackPolicy(table, cap, s.slack, lengths)


def _rows(cap: int) -> int:
    """Rows of an SGLang decode server: requests in its batch, and before it. A small one has more
    for those that are being prefilled."""
    return cap if cap > 32 else 3 * cap
