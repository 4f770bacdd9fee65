"""A request on its way through the queue: its demand, its place, and its assignment."""

import math
import sys
from dataclasses import dataclass

import msgspec

from kairos.slo import Slo
from kairos.validation import Range, check_range, check_ranges

_POSITIVE = Range(sys.float_info.min, math.inf)
_RANGES = {
    "arrival_s": Range(-sys.float_info.max, sys.float_info.max),
    "input_tokens": Range(1, sys.maxsize),
    "max_output_tokens": Range(0, sys.maxsize),
    "sequences": Range(1, sys.maxsize),
    "body_bytes": Range(0, sys.maxsize),
    "block_tokens": Range(1, sys.maxsize),
}


class RequestDemand(msgspec.Struct, frozen=True, gc=False):
    """The needs of one request that waits for a pair.

    Attributes:
        id: the request's number in this router; breaks ties.
        arrival_s: when it arrived; earlier than its receipt if it says so (`elapsed_ms`).
        input_tokens: length of its prompts together, counted or estimated.
        max_output_tokens: tokens it may generate at most, all sequences together.
        sequences: generations it asks for (`n`, lists of prompts).
        body_bytes: memory its body holds while it waits.
        blocks: hashes of the prompt's leading token (or text) blocks, for prefix affinity; each
            includes the ones before it and the cache salt.
        block_tokens: tokens of one block.
        best_effort: it has no TTFT objective, or one that was judged infeasible on admission; it
            yields to all other requests.
    """

    id: int
    tenant: str
    slo: Slo
    arrival_s: float
    input_tokens: int
    max_output_tokens: int
    sequences: int = 1
    body_bytes: int = 0
    blocks: tuple[int, ...] = ()
    block_tokens: int = 64
    best_effort: bool = False

    @property
    def deadline_s(self) -> float:
        """When its first token is due; infinite without an objective."""
        return self.arrival_s + self.slo.ttft_s

    @property
    def mean_prompt_tokens(self) -> int:
        """Mean length of its prompts, rounded up. The longest one has at least as many tokens."""
        return self.input_tokens // self.sequences + 1

    def check(self) -> None:
        """Raise `InputError` for a number that makes no sense."""
        where = f"request {self.id}"
        check_ranges(where, self, _RANGES)
        check_range(f"{where}: TTFT objective", self.slo.ttft_s, _POSITIVE)


class Assignment(msgspec.Struct, frozen=True, gc=False):
    """The pair to which a request is dispatched, by keys, `host:port`.

    Attributes:
        cached_tokens: tokens expected in the prefill worker's prefix cache.
    """

    id: int
    prefill: str
    decode: str
    cached_tokens: int = 0


@dataclass(slots=True)
class QueuedRequest:
    """A request and what the dispatcher adds to it.

    Attributes:
        work_s: predicted marginal prefill time with the best prefix hit, uncalibrated, seconds.
        flow: index of its (class, tenant) in `FairQueueing`.
        charged_s: the charge of its flow for it, seconds.
        tried: keys of workers at which an attempt failed.
    """

    work: RequestDemand
    work_s: float = 0.0
    flow: int = -1
    charged_s: float = 0.0
    tried: frozenset[str] = frozenset()
