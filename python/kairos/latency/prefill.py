"""The time of one prefill batch."""

from collections.abc import Iterable
from typing import NamedTuple

import msgspec


class Chunk(NamedTuple):
    """Part of one request's prompt in a batch.

    Attributes:
        context: tokens of the request whose KV exists already (cached prefix, earlier chunks).
        new: tokens to compute in this batch.
    """

    context: int
    new: int


class PrefillModel(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Predicts t = fixed + max(weight_floor, per_token * new) + per_token_context * area.

    `new` and `area` are sums over the chunks. The area of a chunk is its attention work
    ((context + new)^2 - context^2) / 2, in pairs of tokens. `weight_floor_s` is the time to stream
    the weights once: small batches pay it whole.

    Attributes:
        fixed_s: launch and host cost of a batch, seconds.
        weight_floor_s: lower bound of the linear part, seconds.
        per_token_s: linear part, seconds per new token.
        per_token_context_s: attention part, seconds per (token x context token).
    """

    fixed_s: float
    weight_floor_s: float
    per_token_s: float
    per_token_context_s: float

    def batch_s(self, chunks: Iterable[Chunk]) -> float:
        """Return the predicted seconds of one forward over `chunks`."""
        new = 0
        area = 0.0
        for context, fresh in chunks:
            new += fresh
            area += fresh * (context + fresh / 2)
        return self.work_s(new, area)

    def work_s(self, new: int, area: float) -> float:
        """Return the predicted seconds of one forward, from the sums over its chunks.

        Args:
            new: tokens to compute.
            area: their attention work, in pairs of tokens.
        """
        linear = max(self.weight_floor_s, self.per_token_s * new)
        return self.fixed_s + linear + self.per_token_context_s * area

    def remaining_s(self, context: int, total: int, chunk_tokens: int) -> float:
        """Return the engine time to compute the rest of a prompt, seconds.

        The fixed cost is spread over full chunks, as in a busy server where several requests share
        a batch. This is marginal work, not the latency of a request on an idle server.

        Args:
            context: tokens of the prompt that are computed.
            total: tokens of the prompt.
            chunk_tokens: new tokens of a full batch.
        """
        new = total - context
        if new <= 0:
            return 0.0
        area = new * (context + new / 2)
        per_token = self.per_token_s + self.fixed_s / chunk_tokens
        return per_token * new + self.per_token_context_s * area
