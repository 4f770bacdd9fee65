"""SGLang's ways of choosing the data-parallel rank of a request on a decode server."""

from collections.abc import Callable, Sequence

import numpy as np

from kairos.sim.decode_rank import DecodeRank

Placement = Callable[[Sequence[DecodeRank]], int]
"""Returns the index of the rank that the next request goes to."""


def fewest_requests(ranks: Sequence[DecodeRank]) -> int:
    """`--load-balance-method total_requests`, with exact loads."""
    return min(range(len(ranks)), key=lambda at: ranks[at].bound_requests)


def fewest_tokens(ranks: Sequence[DecodeRank]) -> int:
    """`--load-balance-method total_tokens`, with exact loads."""
    return min(range(len(ranks)), key=lambda at: (ranks[at].bound_tokens, ranks[at].bound_requests))


def round_robin() -> Placement:
    """`--load-balance-method round_robin`, SGLang's default on decode servers."""
    placed = -1

    def place(ranks: Sequence[DecodeRank]) -> int:
        nonlocal placed
        placed += 1
        return placed % len(ranks)

    return place


def by_room(seed: int) -> Placement:
    """`--load-balance-method follow_bootstrap_room`; rooms are random numbers.

    Args:
        seed: of the rooms.
    """
    random = np.random.default_rng(seed)

    def place(ranks: Sequence[DecodeRank]) -> int:
        return int(random.integers(1 << 62)) % len(ranks)

    return place


def placement_of(name: str, seed: int) -> Placement:
    """Return a placement by its name: round-robin, room, requests or tokens."""
    if name == "round-robin":
        return round_robin()
    if name == "room":
        return by_room(seed)
    return fewest_requests if name == "requests" else fewest_tokens
