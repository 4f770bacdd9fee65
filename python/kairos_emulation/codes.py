"""Which token follows which in the emulated model, and how logits say so. Pure torch."""

import torch

# Logits of two tokens differ by at least twice this: sampling at any sane temperature agrees
# with greedy.
LOGIT_SCALE = 20.0


def successors(
    tokens: torch.Tensor, positions: torch.Tensor, first: int, last: int
) -> torch.Tensor:
    """Next token ids in [first, last], int64, of the shape of both arguments.

    A function of one token and its position only, so neither chunking nor the rest of a batch
    matters. Both are mixed well enough that texts do not fall into short cycles.
    """
    mixed = tokens * 2_654_435_761 + positions * 40_503
    return (mixed ^ (mixed >> 15)) % (last - first + 1) + first


def binary_codes(count: int) -> torch.Tensor:
    """Rows of +1 and -1, all different, float32: [count, bits].

    The product of two rows is largest, `bits`, for equal ones. So the code of a token as hidden
    state and the scaled codes of all tokens as head give logits whose maximum is that token.
    """
    bits = max(1, (count - 1).bit_length())
    numbers = torch.arange(count).unsqueeze(1)
    return ((numbers >> torch.arange(bits)) & 1).float() * 2 - 1
