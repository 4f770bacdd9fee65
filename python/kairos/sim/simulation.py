"""The event loop: requests arrive, are prefilled, move and are decoded."""

import math
from dataclasses import dataclass

import numpy as np

from kairos.errors import InputError
from kairos.latency import Chunk, Profile
from kairos.policy.jobs import PrefillJob
from kairos.policy.length import group_of
from kairos.policy.preallocation import PreallocationRequest, shortest_prefill_s
from kairos.policy.residents import DecodeResident
from kairos.sim.admission_controller import AdmissionController
from kairos.sim.config import SimConfig
from kairos.sim.decode_server import SimulatedStep
from kairos.sim.event_queue import EventQueue
from kairos.sim.prefill_server import PrefillServer, PromptProgress, SimulatedBatch
from kairos.sim.records import SimRecords
from kairos.sim.result import SimResult
from kairos.sim.scenario import Scenario
from kairos.sim.server_factory import ServerFactory

HOLD_MARGIN_S = 1e-3
"""A held first token is released this long before its deadline."""


def simulate(scenario: Scenario, config: SimConfig, profile: Profile) -> SimResult:
    """Run a simulation; the same arguments give the same bytes.

    Args:
        scenario: the requests.
        config: policies, instances and model errors.
        profile: latencies and limits of every instance.

    Raises:
        InputError: a request is longer than the memory of a decode instance.
    """
    if config.stages != "prefill":
        _check_memory(scenario, profile)
    return _Simulation(scenario, config, profile).run()


def _check_memory(scenario: Scenario, profile: Profile) -> None:
    tokens = scenario.input_tokens + scenario.output_tokens
    limit = profile.limits.kv_tokens
    if (tokens > limit).any():
        at = int(np.argmax(tokens > limit))
        raise InputError(
            f"scenario, request {at}: prompt and output have {tokens[at]} tokens; a decode "
            f"instance of profile {profile.name} holds {limit}; leave the request out"
        )


@dataclass(frozen=True, slots=True)
class _BatchEnded:
    """A prefill instance has finished a batch."""

    server: int
    batch: SimulatedBatch


@dataclass(frozen=True, slots=True)
class _StepEnded:
    """A decode instance has finished a step."""

    server: int
    step: SimulatedStep


@dataclass(frozen=True, slots=True)
class _KvArrived:
    """The KV of a request has arrived on its decode instance."""

    request: int


@dataclass(frozen=True, slots=True)
class _HandshakeEnded:
    """Both servers of a request know of its decode memory, so its prefill may begin."""

    request: int


_Event = _BatchEnded | _StepEnded | _KvArrived | _HandshakeEnded


class _Simulation:
    """State and event handlers of one run."""

    def __init__(self, scenario: Scenario, config: SimConfig, profile: Profile) -> None:
        self.scenario = scenario
        self.config = config
        self.profile = profile
        self.records = SimRecords.empty(scenario.output_tokens)
        self._arrival: list[float] = scenario.arrival_s.tolist()
        self._prompts = PromptProgress(
            scenario.cached_tokens.tolist(), scenario.input_tokens.tolist()
        )
        self._deadline: list[float] = (scenario.arrival_s + scenario.ttft_s).tolist()
        self._events: EventQueue[_Event] = EventQueue()
        prefill_instances, decode_instances = config.shape
        self._link_free_s = [0.0] * prefill_instances
        self._late_binding = config.routing == "late" and prefill_instances > 1
        self._last_routed = -1
        factory = ServerFactory(config, profile, int(scenario.slo_class.max()) + 1)
        self.prefill = [
            factory.prefill_server(self._prompts, self._bind) for _ in range(prefill_instances)
        ]
        self.decode = [factory.decode_server(self.records) for _ in range(decode_instances)]
        self._ranks = [rank for server in self.decode for rank in server.ranks]
        self._placements = [factory.placement() for _ in self.decode]
        self._reservations = factory.reservations(self.decode) if config.preallocate else None
        self._admission = (
            AdmissionController(profile, self.prefill[0], self._ranks, self._prompts)
            if config.admission
            else None
        )

    def run(self) -> SimResult:
        """Serve all requests."""
        n = len(self.scenario)
        arrived = 0
        while arrived < n or self._events:
            if arrived < n and self._arrival[arrived] <= self._events.next_s:
                now_s = self._arrival[arrived]
                while arrived < n and self._arrival[arrived] == now_s:
                    self._arrive(arrived, now_s)
                    arrived += 1
                self._wake(now_s)
            else:
                now_s, event = self._events.pop()
                self._handle(event, now_s)
        return SimResult(self.scenario, self.config, self.records, self.prefill, self.decode)

    def _handle(self, event: _Event, now_s: float) -> None:
        if isinstance(event, _StepEnded):
            finished = self.decode[event.server].finish(event.step, now_s)
            self._start_step(event.server, now_s)
            if finished:
                self._grant(now_s)
        elif isinstance(event, _BatchEnded):
            self.prefill[event.server].finish()
            for request in event.batch.completed:
                self._complete_prefill(request, event.server, now_s)
            self._start_batch(event.server, now_s)
            self._wake(now_s)
        elif isinstance(event, _HandshakeEnded):
            self._queue_prefill(event.request)
            # Prompts that may begin at the same time are queued before a batch is composed.
            more = isinstance(self._events.next_event, _HandshakeEnded)
            if not more or self._events.next_s != now_s:
                self._wake(now_s)
        else:
            self._receive_kv(event.request, now_s)

    def _arrive(self, request: int, now_s: float) -> None:
        if self.config.stages == "decode":
            self._complete_prefill(request, 0, now_s)
        elif not self._admit(request, now_s):
            self.records.refused[request] = True
        elif self._reservations is not None:
            memory, (server, rank) = self._memory_request(request), self._choose_rank()
            at = server * len(self.decode[0].ranks) + (rank or 0)
            self._reservations.ask(memory, self._length_group(request), at)
            self._grant(now_s)
        else:
            self._queue_prefill(request)

    def _admit(self, request: int, now_s: float) -> bool:
        if self._admission is None:
            return True
        tpot_s = float(self.scenario.tpot_s[request])
        job = self._admission.admit(self._job(request), tpot_s, now_s)
        if job is None:
            return False
        self._deadline[request] = job.deadline_s
        return True

    def _memory_request(self, request: int) -> PreallocationRequest:
        tokens = self._prompts.total[request]
        arrival_s, deadline_s = self._arrival[request], self._deadline[request]
        uncached_s = self.profile.prefill.batch_s([Chunk(0, tokens)])
        shortest_s = shortest_prefill_s(uncached_s, deadline_s - arrival_s)
        return PreallocationRequest(
            *(request, tokens + 1, arrival_s, deadline_s, shortest_s),
            best_effort=math.isinf(deadline_s),
        )

    def _length_group(self, request: int) -> int:
        return group_of(int(self.scenario.slo_class[request]), self._prompts.total[request])

    def _grant(self, now_s: float) -> None:
        if self._reservations is not None:
            for request in self._reservations.grant(now_s):
                self._events.add(now_s + self.config.handshake_s, _HandshakeEnded(request))

    def _job(self, request: int) -> PrefillJob:
        return PrefillJob(
            request,
            self._arrival[request],
            self._deadline[request],
            self._prompts.total[request],
            self._prompts.done[request],
        )

    def _queue_prefill(self, request: int) -> None:
        """Queue a request on its prefill instance; with late binding on all of them."""
        job = self._job(request)
        servers = self.prefill if self._late_binding else [self._route()]
        for server in servers:
            server.add(job)

    def _route(self) -> PrefillServer:
        if self.config.routing == "round-robin":
            self._last_routed += 1
            return self.prefill[self._last_routed % len(self.prefill)]
        return min(self.prefill, key=lambda server: server.pending_tokens)

    def _bind(self, request: int, to: PrefillServer) -> None:
        """Withdraw a request that gets its first chunk from all other instances."""
        started = self._prompts.done[request] > self.scenario.cached_tokens[request]
        if not self._late_binding or started:
            return
        for server in self.prefill:
            if server is not to:
                server.drop(request)

    def _wake(self, now_s: float) -> None:
        """Start batches on idle prefill instances, and compose the next ones of busy instances."""
        for at, server in enumerate(self.prefill):
            if server.idle and len(server.queue):
                self._start_batch(at, now_s)
        for server in self.prefill:
            server.look_ahead()

    def _start_batch(self, server: int, now_s: float) -> None:
        batch = self.prefill[server].start(now_s)
        if batch is not None:
            self._events.add(now_s + batch.true_s, _BatchEnded(server, batch))

    def _complete_prefill(self, request: int, server: int, now_s: float) -> None:
        self.records.prefilled_s[request] = now_s
        self.records.first_s[request] = now_s
        if self.config.stages == "prefill" or self.scenario.output_tokens[request] == 1:
            self._complete_without_decode(request, now_s)
            return
        link = self.profile.kv
        tokens = self._prompts.total[request]
        begin_s = now_s
        if self.config.contention:
            begin_s = max(now_s, self._link_free_s[server])
            self._link_free_s[server] = begin_s + link.wire_s(tokens)
        self._events.add(begin_s + link.transfer_s(tokens), _KvArrived(request))

    def _complete_without_decode(self, request: int, now_s: float) -> None:
        records = self.records
        if self.config.first_token == "decode" and self.config.stages == "both":
            records.first_s[request] += self.profile.kv.transfer_s(self._prompts.total[request])
        records.last_s[request] = records.first_s[request]
        if self._reservations is not None:
            self._reservations.redeem(request)
            self._grant(now_s)  # no decode step follows that would grant the memory

    def _choose_rank(self) -> tuple[int, int | None]:
        """Choose the least loaded decode instance, and a rank of it; None: chosen later."""
        loads = [server.bound_tokens for server in self.decode]
        server = loads.index(min(loads))
        place = self._placements[server]
        return server, None if place is None else place(self.decode[server].ranks)

    def _receive_kv(self, request: int, now_s: float) -> None:
        chosen: tuple[int, int | None]
        if self._reservations is not None:
            at = self._reservations.redeem(request)
            chosen = divmod(at, len(self.decode[0].ranks))
        else:
            chosen = self._choose_rank()
        server, rank = chosen
        if self.config.first_token == "decode":
            self.records.first_s[request] = now_s
        first_s = float(self.records.first_s[request])
        holds = self.config.hold
        self.decode[server].receive(
            DecodeResident(
                request,
                self._prompts.total[request] + 1,
                0,
                first_s,
                first_s,
                float(self.scenario.tpot_s[request]),
                self._deadline[request] - HOLD_MARGIN_S if holds else -math.inf,
                length_group=self._length_group(request),
            ),
            rank,
        )
        self._grant(now_s)  # less prefill work is ahead of the prompts that wait
        if self.decode[server].idle:
            self._start_step(server, now_s)

    def _start_step(self, server: int, now_s: float) -> None:
        step = self.decode[server].start(now_s)
        if step is not None:
            self._events.add(now_s + step.true_s, _StepEnded(server, step))
