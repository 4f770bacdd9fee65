"""One planned prefill batch."""

from collections.abc import Container
from typing import NamedTuple

from sglang.srt.kairos.upstream import Req


class Continuation(NamedTuple):
    """The next chunk of a started prompt.

    Attributes:
        req: the prompt.
        tokens: new tokens of it.
        finishes: these are its last ones.
    """

    req: Req
    tokens: int
    finishes: bool


class PlannedBatch(NamedTuple):
    """The prompts of one forward pass.

    Attributes:
        continued: the started prompt that continues, or None.
        complete: waiting prompts that are computed from their cached prefix to the end.
        partial: one waiting prompt of which only a part fits, or None.
        tokens: all new tokens, in whole pages.
    """

    continued: Continuation | None = None
    complete: tuple[Req, ...] = ()
    partial: Req | None = None
    tokens: int = 0

    @property
    def from_queue(self) -> list[Req]:
        """Prompts to take from the waiting queue, in order.

        The partial one is last: upstream cuts the prompt that exceeds the budget.
        """
        return [*self.complete] if self.partial is None else [*self.complete, self.partial]

    def without_others(self, fitting: Container[Req]) -> "PlannedBatch":
        """Return this batch with only those prompts of the waiting queue that `fitting` holds."""
        return self._replace(
            complete=tuple(req for req in self.complete if req in fitting),
            partial=self.partial if self.partial in fitting else None,
        )

    def continuing(self, req: Req, tokens: int) -> "PlannedBatch":
        """Return this batch with the started prompt `req` taking up to `tokens` new tokens."""
        return self._replace(continued=Continuation(req, tokens, finishes=False), tokens=tokens)
