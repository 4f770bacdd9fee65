"""Decode back-pressure: a prompt is prefilled only once a decode instance has memory for its KV."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from kairos.policy.length import LengthEstimator
from kairos.policy.preallocation import (
    DecodeMemory,
    Preallocation,
    PreallocationParams,
    PreallocationRequest,
)
from kairos.sim.decode_server import DecodeServer

RESERVED_TOKENS = 512
"""Tokens that SGLang keeps free for the output of every request."""


class QueuedPrompt(NamedTuple):
    """A prompt that waits for decode memory.

    Attributes:
        request: its form for the policy.
        length_group: row of the length estimator's table.
    """

    request: PreallocationRequest
    length_group: int


@dataclass(frozen=True, slots=True)
class Reservation:
    """Memory reserved for a prompt whose KV has not arrived on the decode instance.

    Attributes:
        server: index of the decode instance.
        prompt: the prompt.
    """

    server: int
    prompt: QueuedPrompt


class DecodeReservations:
    """Prompts that wait for memory on a decode instance, and the memory reserved for prompts.

    Args:
        servers: the decode instances. A prompt is bound to one when it asks for memory.
        capacity_tokens: KV of each instance.
        lengths: expected outputs by instance; None: unknown.
        in_order: SGLang's order, by arrival, in which a prompt that does not fit blocks those
            behind it; otherwise the policy's order.
        max_rows: requests that each instance can hold, in its batch or before.
        prefill_servers: number of prefill instances that share the granted work.
    """

    def __init__(
        self,
        servers: Sequence[DecodeServer],
        capacity_tokens: int,
        lengths: Sequence[LengthEstimator | None],
        in_order: bool,
        max_rows: int,
        prefill_servers: int,
    ) -> None:
        self._servers = servers
        self._capacity_tokens = capacity_tokens
        self._lengths = lengths
        self._in_order = in_order
        self._max_rows = max_rows
        # The prefill server of a prompt is not known yet, so all of them count as one that is as
        # fast as all together.
        horizon_s = prefill_servers * PreallocationParams().horizon_s
        params = PreallocationParams(horizon_s=horizon_s)
        self._policies = [Preallocation(params) for _ in servers]
        self._queued: list[dict[int, QueuedPrompt]] = [{} for _ in servers]
        self._queued_tokens = [0] * len(servers)
        self._reserved: dict[int, Reservation] = {}

    def ask(self, request: PreallocationRequest, length_group: int) -> None:
        """Queue a prompt on the instance with the least load."""
        loads = [
            server.load_tokens + queued
            for server, queued in zip(self._servers, self._queued_tokens, strict=True)
        ]
        at = int(np.argmin(loads))
        self._queued[at][request.id] = QueuedPrompt(request, length_group)
        self._queued_tokens[at] += request.tokens

    def grant(self, now_s: float) -> list[int]:
        """Reserve memory for queued prompts; returns the ids of those that have it now."""
        return [request for at in range(len(self._servers)) for request in self._grant(at, now_s)]

    def redeem(self, request: int) -> int:
        """End a reservation because the KV of `request` has arrived.

        Returns:
            Index of the decode instance.
        """
        reservation = self._reserved.pop(request)
        tokens = reservation.prompt.request.tokens
        self._servers[reservation.server].reserved_tokens -= tokens
        return reservation.server

    def _grant(self, at: int, now_s: float) -> list[int]:
        if not self._queued[at]:
            return []
        memory = self._memory(at)
        if self._in_order:
            requests = [prompt.request for prompt in self._queued[at].values()]
            granted = self._first_come(requests, memory)
        else:
            requests = self._with_expected_outputs(at)
            grants = self._policies[at].grant(requests, memory, now_s)
            granted = [requests[grant.at] for grant in grants]
        if not granted and self._servers[at].load_tokens == 0:
            granted = requests[:1]  # an empty server frees no more memory
        for request in granted:
            _, length_group = self._queued[at].pop(request.id)
            self._queued_tokens[at] -= request.tokens
            self._servers[at].reserved_tokens += request.tokens
            self._reserved[request.id] = Reservation(at, QueuedPrompt(request, length_group))
        return [request.id for request in granted]

    @staticmethod
    def _first_come(
        requests: list[PreallocationRequest], memory: DecodeMemory
    ) -> list[PreallocationRequest]:
        granted: list[PreallocationRequest] = []
        free_tokens = memory.free_tokens
        for request in requests:
            free_tokens -= request.tokens + memory.reserve_tokens
            if free_tokens < 0.0 or len(granted) == memory.slots:
                break
            granted.append(request)
        return granted

    def _with_expected_outputs(self, at: int) -> list[PreallocationRequest]:
        """Requests queued for this instance, with their expected output tokens."""
        requests = [prompt.request for prompt in self._queued[at].values()]
        lengths = self._lengths[at]
        if lengths is None:
            return requests
        groups = np.array([prompt.length_group for prompt in self._queued[at].values()], np.int64)
        made, limits = np.zeros(len(groups), np.int64), np.full(len(groups), np.inf)
        outputs = lengths.remaining(groups, made, limits).tolist()
        return [
            request._replace(expected_output_tokens=tokens)
            for request, tokens in zip(requests, outputs, strict=True)
        ]

    def _memory(self, at: int) -> DecodeMemory:
        server, lengths = self._servers[at], self._lengths[at]
        reserved = [each.prompt for each in self._reserved.values() if each.server == at]
        rows = np.concatenate([server.running.rows, server.waiting.rows])
        holders = len(rows) + len(reserved)
        free_tokens = self._capacity_tokens - server.load_tokens - RESERVED_TOKENS * holders
        contexts = remaining = np.empty(0)
        if lengths is not None:
            groups = np.array([prompt.length_group for prompt in reserved], np.int64)
            made = np.zeros(len(reserved), np.int64)
            limits = np.full(len(reserved), np.inf)
            tokens = [prompt.request.tokens for prompt in reserved]
            contexts = np.append(rows["context_tokens"], tokens)
            remaining = lengths.remaining(
                np.append(rows["length_group"], groups),
                np.append(rows["output_tokens"], made),
                np.append(rows["max_new_tokens"], limits),
            )
        return DecodeMemory(
            float(self._capacity_tokens),
            float(free_tokens),
            float(RESERVED_TOKENS),
            [prompt.request for prompt in reserved],
            contexts.astype(np.float64),
            remaining,
            self._max_rows - holders,
        )
