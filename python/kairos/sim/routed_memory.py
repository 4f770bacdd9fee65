"""The KV memory of a decode instance, as a router accounts for it."""

import heapq


class RoutedDecodeMemory:
    """Memory that requests hold from their grant to their last token, granted by rank.

    Args:
        tokens: KV tokens that may be granted.
    """

    def __init__(self, tokens: float) -> None:
        self._free_tokens = tokens
        self._waiting: list[tuple[float, int, int]] = []

    def ask(self, request: int, rank: float, tokens: int) -> list[int]:
        """Queue a request; returns the requests that are granted memory now.

        Args:
            request: its id.
            rank: smaller ranks are served first; a request that does not fit blocks later ones.
            tokens: its prompt and its output.
        """
        heapq.heappush(self._waiting, (rank, request, tokens))
        return self.give_back(0)

    def give_back(self, tokens: int) -> list[int]:
        """Free `tokens`; returns the requests that are granted memory now."""
        self._free_tokens += tokens
        granted = []
        while self._waiting and self._waiting[0][2] <= self._free_tokens:
            _, request, needed_tokens = heapq.heappop(self._waiting)
            self._free_tokens -= needed_tokens
            granted.append(request)
        return granted
