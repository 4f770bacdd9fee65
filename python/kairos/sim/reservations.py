"""Decode back-pressure: a prompt is prefilled only once its decode instance has room for its KV."""

from collections.abc import Sequence
from dataclasses import dataclass

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
"""Upstream keeps so many tokens free for the output of every request."""


@dataclass(slots=True)
class Reservation:
    """Room given to a prompt that is not on the decode instance yet."""

    at: int
    asking: PreallocationRequest
    group: int


class DecodeReservations:
    """Prompts that wait for room on a decode instance, and the room that was promised.

    Args:
        servers: the decode instances. A prompt is bound to one when it asks.
        capacity_tokens: KV of each.
        lengths: expected outputs; None: unknown.
        in_order: upstream's order, by arrival, and nobody passes one that does not fit; otherwise
            the policy's.
        rows: requests that each can hold, in its batch or before.
        prefill_servers: how many share the work that is granted.
    """

    def __init__(
        self,
        servers: Sequence[DecodeServer],
        capacity_tokens: int,
        lengths: Sequence[LengthEstimator | None],
        in_order: bool,
        rows: int,
        prefill_servers: int,
    ) -> None:
        self._servers = servers
        self._capacity = capacity_tokens
        self._lengths = lengths
        self._in_order = in_order
        self._rows = rows
        # Nobody knows yet which of them takes a prompt, so they count as one that is as fast.
        horizon_s = prefill_servers * PreallocationParams().horizon_s
        params = PreallocationParams(horizon_s=horizon_s)
        self._policies = [Preallocation(params) for _ in servers]
        self._asking: list[dict[int, tuple[PreallocationRequest, int]]] = [{} for _ in servers]
        self._asking_tokens = [0] * len(servers)
        self._promised: dict[int, Reservation] = {}

    def ask(self, prompt: PreallocationRequest, group: int) -> None:
        """Queue a prompt; `group` as of its length estimate."""
        loads = [
            server.load_tokens + asking
            for server, asking in zip(self._servers, self._asking_tokens, strict=True)
        ]
        at = int(np.argmin(loads))
        self._asking[at][prompt.id] = (prompt, group)
        self._asking_tokens[at] += prompt.tokens

    def grant(self, now_s: float) -> list[int]:
        """Ids of the prompts that have room now."""
        return [request for at in range(len(self._servers)) for request in self._grant(at, now_s)]

    def redeem(self, request: int) -> int:
        """The KV of `request` has arrived: index of the instance that it was promised to."""
        promise = self._promised.pop(request)
        self._servers[promise.at].reserved_tokens -= promise.asking.tokens
        return promise.at

    def _grant(self, at: int, now_s: float) -> list[int]:
        if not self._asking[at]:
            return []
        room = self._room(at)
        if self._in_order:
            asking = [prompt for prompt, _ in self._asking[at].values()]
            granted = self._first_come(asking, room)
        else:
            asking = self._expecting(at)
            grants = self._policies[at].grant(asking, room, now_s)
            granted = [asking[grant.at] for grant in grants]
        if not granted and self._servers[at].load_tokens == 0:
            granted = asking[:1]  # nothing will ever be freed
        for prompt in granted:
            _, group = self._asking[at].pop(prompt.id)
            self._asking_tokens[at] -= prompt.tokens
            self._servers[at].reserved_tokens += prompt.tokens
            self._promised[prompt.id] = Reservation(at, prompt, group)
        return [prompt.id for prompt in granted]

    @staticmethod
    def _first_come(
        asking: list[PreallocationRequest], room: DecodeMemory
    ) -> list[PreallocationRequest]:
        granted: list[PreallocationRequest] = []
        free = room.free_tokens
        for prompt in asking:
            free -= prompt.tokens + room.reserve_tokens
            if free < 0.0 or len(granted) == room.slots:
                break
            granted.append(prompt)
        return granted

    def _expecting(self, at: int) -> list[PreallocationRequest]:
        """Those that wait for this instance, with the outputs expected of them."""
        prompts = [prompt for prompt, _ in self._asking[at].values()]
        lengths = self._lengths[at]
        if lengths is None:
            return prompts
        groups = np.array([group for _, group in self._asking[at].values()], np.int64)
        made, limits = np.zeros(len(groups), np.int64), np.full(len(groups), np.inf)
        outputs = lengths.remaining(groups, made, limits).tolist()
        return [p._replace(expected_output_tokens=n) for p, n in zip(prompts, outputs, strict=True)]

    def _room(self, at: int) -> DecodeMemory:
        server, lengths = self._servers[at], self._lengths[at]
        promised = [promise for promise in self._promised.values() if promise.at == at]
        held = np.concatenate([server.running.rows, server.waiting.rows])
        free = self._capacity - server.load_tokens - RESERVED_TOKENS * (len(held) + len(promised))
        contexts = remaining = np.empty(0)
        if lengths is not None:
            groups = np.array([promise.group for promise in promised], np.int64)
            made = np.zeros(len(promised), np.int64)
            contexts = np.append(held["context_tokens"], [p.asking.tokens for p in promised])
            remaining = lengths.remaining(
                np.append(held["length_group"], groups),
                np.append(held["output_tokens"], made),
                np.append(held["max_new_tokens"], np.full(len(promised), np.inf)),
            )
        return DecodeMemory(
            float(self._capacity),
            float(free),
            float(RESERVED_TOKENS),
            [promise.asking for promise in promised],
            contexts.astype(np.float64),
            remaining,
            self._rows - len(held) - len(promised),
        )
