"""Prompts as token ids: exact lengths, and equal leading blocks where the trace has equal ones."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kairos.errors import InputError
from kairos.workload.trace import BLOCK_TOKENS, TraceRequest

VOCABULARY = 1024
"""Token ids of replayed prompts lie below this, which is in the vocabulary of any model."""
_PRIVATE = np.uint64(1 << 63)  # keeps blocks of unshared prompts apart from any hash id


@dataclass(frozen=True, slots=True)
class Prompts:
    """Token ids as a pure function of (seed, block id, position in the block).

    No state is kept: any prompt can be made at any time. A prompt of 100,000 tokens takes about a
    millisecond.

    Attributes:
        vocab_size: upper end of the ids, which are in [reserved, vocab_size).
        seed: another seed gives other ids at every position.
        reserved: number of low ids left out, where tokenizers keep their special tokens.

    Raises:
        InputError: `vocab_size` is out of range.
    """

    vocab_size: int
    seed: int = 0
    reserved: int = 16

    def __post_init__(self) -> None:
        if not self.reserved + 2 <= self.vocab_size <= 2**31:
            raise InputError(
                f"vocabulary size: {self.vocab_size} is out of range, allowed are "
                f"{self.reserved + 2} to {2**31}"
            )

    def token_ids(self, request: TraceRequest, index: int) -> NDArray[np.int64]:
        """Return the prompt of the request at `index` of the replay, shape [input_tokens].

        Blocks beyond the request's `hash_ids` are unique to this request.
        """
        length = request.input_tokens
        blocks = -(-length // BLOCK_TOKENS)
        keys = np.empty(blocks, np.uint64)
        shared = min(len(request.hash_ids), blocks)
        keys[:shared] = request.hash_ids[:shared]
        keys[shared:] = _PRIVATE | (np.uint64(index) << np.uint64(32))
        keys[shared:] += np.arange(shared, blocks, dtype=np.uint64)
        # Two rounds of mixing: after one, neighbouring block ids would give overlapping sequences.
        starts = _mix(_mix(keys) ^ np.uint64(self.seed))
        places = starts[:, None] + np.arange(BLOCK_TOKENS, dtype=np.uint64)
        mixed = _mix(places.astype(np.uint64, copy=False).ravel()[:length])
        span = np.uint64(self.vocab_size - self.reserved)
        return (mixed % span).astype(np.int64) + self.reserved


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finaliser (Steele, Lea and Flood, OOPSLA 2014); wraps modulo 2^64."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
