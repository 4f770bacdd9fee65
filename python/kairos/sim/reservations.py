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
from kairos.sim.decode_rank import DecodeRank

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
        rank: index of the rank, counted over all decode instances.
        prompt: the prompt.
    """

    rank: int
    prompt: QueuedPrompt


class DecodeReservations:
    """Prompts that wait for memory on a decode instance, and the memory reserved for prompts.

    Args:
        ranks: the ranks of all decode instances. A prompt is bound to one when it asks for memory.
        capacity_tokens: KV of each rank.
        lengths: expected outputs by rank; None: unknown.
        in_order: SGLang's order, by arrival, in which a prompt that does not fit blocks those
            behind it; otherwise the policy's order.
        max_rows: requests that each rank can hold, in its batch or before.
        prefill_servers: number of prefill instances that share the granted work.
    """

    def __init__(
        self,
        ranks: Sequence[DecodeRank],
        capacity_tokens: int,
        lengths: Sequence[LengthEstimator | None],
        in_order: bool,
        max_rows: int,
        prefill_servers: int,
    ) -> None:
        self._ranks = ranks
        self._capacity_tokens = capacity_tokens
        self._lengths = lengths
        self._in_order = in_order
        self._max_rows = max_rows
        # The prefill server of a prompt is not known yet, so all of them count as one that is as
        # fast as all together.
        horizon_s = prefill_servers * PreallocationParams().horizon_s
        params = PreallocationParams(horizon_s=horizon_s)
        self._policies = [Preallocation(params) for _ in ranks]
        self._queued: list[dict[int, QueuedPrompt]] = [{} for _ in ranks]
        self._reserved: dict[int, Reservation] = {}

    def ask(self, request: PreallocationRequest, length_group: int, rank: int) -> None:
        """Queue a prompt on a rank."""
        self._queued[rank][request.id] = QueuedPrompt(request, length_group)
        self._ranks[rank].queued_tokens += request.tokens
        self._ranks[rank].queued_requests += 1

    def grant(self, now_s: float) -> list[int]:
        """Reserve memory for queued prompts; returns the ids of those that have it now."""
        return [request for at in range(len(self._ranks)) for request in self._grant(at, now_s)]

    def redeem(self, request: int) -> int:
        """End a reservation because the KV of `request` has arrived.

        Returns:
            Index of the rank.
        """
        reservation = self._reserved.pop(request)
        rank = self._ranks[reservation.rank]
        rank.reserved_tokens -= reservation.prompt.request.tokens
        rank.reserved_requests -= 1
        return reservation.rank

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
        if not granted and self._ranks[at].load_tokens == 0:
            granted = requests[:1]  # an empty rank frees no more memory
        for request in granted:
            _, length_group = self._queued[at].pop(request.id)
            rank = self._ranks[at]
            rank.queued_tokens -= request.tokens
            rank.queued_requests -= 1
            rank.reserved_tokens += request.tokens
            rank.reserved_requests += 1
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
        """Requests queued for a rank, with their expected output tokens."""
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
        rank, lengths = self._ranks[at], self._lengths[at]
        reserved = [each.prompt for each in self._reserved.values() if each.rank == at]
        rows = np.concatenate([rank.running.rows, rank.waiting.rows])
        holders = len(rows) + len(reserved)
        free_tokens = self._capacity_tokens - rank.load_tokens - RESERVED_TOKENS * holders
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
