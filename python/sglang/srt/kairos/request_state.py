"""The state of one request in a scheduler."""

from dataclasses import dataclass

from sglang.srt.kairos.request_slo import RequestSlo

from kairos.slo import Slo


@dataclass(frozen=True, slots=True)
class AwaitedToken:
    """A first token that has not been streamed.

    Attributes:
        held: a decode server has it, and holds it back.
    """

    held: bool = False


@dataclass(frozen=True, slots=True)
class StreamedToken:
    """A first token that a decode server has streamed.

    Attributes:
        at_s: when, CLOCK_MONOTONIC seconds of this host.
    """

    at_s: float


@dataclass(slots=True)
class RequestState:
    """A scheduler's view of one request; upstream's `Req` carries it as `req.kairos`.

    Attributes:
        request: the objectives and the clock that they run on.
        number: order in which the scheduler received its requests; the same on every rank.
        matched: the scheduler has looked the prompt up in its radix cache.
        first_token: its first token, on a decode server.
        retraction_rank: place in the order in which decode requests are kept in memory; None
            before memory was short.
    """

    request: RequestSlo
    number: int
    matched: bool = False
    first_token: AwaitedToken | StreamedToken = AwaitedToken()
    retraction_rank: int | None = None

    @property
    def slo(self) -> Slo:
        """The objectives."""
        return self.request.slo

    @property
    def arrival_s(self) -> float:
        """Arrival at the first Kairos process, CLOCK_MONOTONIC seconds of this host."""
        return self.request.arrival_s

    @property
    def ttft_deadline_s(self) -> float:
        """When the first token is due, CLOCK_MONOTONIC seconds of this host."""
        return self.request.ttft_deadline_s

    @property
    def is_held(self) -> bool:
        """Whether the first token is ready and held back."""
        return isinstance(self.first_token, AwaitedToken) and self.first_token.held
