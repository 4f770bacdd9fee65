"""Successors of tokens in the emulated model, and their representation as logits. Pure torch."""

import torch

# Logits of two tokens differ by at least twice this: sampling at any usual temperature agrees
# with greedy decoding.
LOGIT_SCALE = 20.0


def successors(
    tokens: torch.Tensor, positions: torch.Tensor, first: int, last: int
) -> torch.Tensor:
    """Return the token id that follows each token.

    The result depends on one token and its position only, so neither chunking nor the rest of a
    batch matters. The function mixes both well enough that texts do not fall into short cycles.

    Args:
        tokens: token ids, int64, of any shape.
        positions: positions in the sequence, int64, of the same shape.
        first: smallest id that is returned.
        last: largest id that is returned.

    Returns:
        Ids, int64, of the shape of the arguments.
    """
    mixed = tokens * 2_654_435_761 + positions * 40_503
    return (mixed ^ (mixed >> 15)) % (last - first + 1) + first


def binary_codes(count: int) -> torch.Tensor:
    """Return `count` different rows of +1 and -1, float32, [count, bits].

    The product of two rows is largest, `bits`, for equal ones. With the code of a token as hidden
    state and the scaled codes of all tokens as head, that token has the largest logit.
    """
    bits = max(1, (count - 1).bit_length())
    numbers = torch.arange(count).unsqueeze(1)
    return ((numbers >> torch.arange(bits)) & 1).float() * 2 - 1
