"""A request on its way through a pair."""

from dataclasses import dataclass

from kairos.router.queue.request_queue import QueuedRequest


@dataclass(frozen=True, slots=True)
class DispatchedRequest:
    """Where a request was sent; keys of the instances."""

    entry: QueuedRequest
    prefill: str
    decode: str
