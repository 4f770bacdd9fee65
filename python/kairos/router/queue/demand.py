"""What the scheduling side of the router sees of a request, and what it answers."""

from dataclasses import dataclass

from kairos.slo import Slo


@dataclass(frozen=True, slots=True)
class RequestDemand:
    """One request that waits for a pair.

    Attributes:
        id: the request's number in this router; breaks ties.
        tenant: whose share it is charged to.
        slo: what applies to it.
        arrival_s: when it arrived; earlier than its receipt if it says so (`elapsed_ms`).
        input_tokens: length of its prompts together, counted or estimated.
        max_output_tokens: tokens it may generate at most, all sequences together.
        sequences: generations it asks for (`n`, lists of prompts).
        body_bytes: memory its body holds while it waits.
        blocks: hashes of the prompt's leading token (or text) blocks, for prefix affinity; each
            includes the ones before it and the cache salt.
        block_tokens: tokens of one block.
        best_effort: its SLO was judged infeasible on admission; it yields to all other requests.
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
        """When its first token is due."""
        return self.arrival_s + self.slo.ttft_s


@dataclass(frozen=True, slots=True)
class Assignment:
    """Dispatch request `id` now, to these two instances (their keys, `host:port`)."""

    id: int
    prefill: str
    decode: str
    cached_tokens: int = 0  # expected in the prefill instance's prefix cache
