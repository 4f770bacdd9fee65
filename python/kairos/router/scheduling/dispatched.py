"""A request on its way through a pair."""

from dataclasses import dataclass

from kairos.router.scheduling.waiting import Entry


@dataclass(frozen=True, slots=True)
class Dispatched:
    """Where a request was sent; keys of the instances."""

    entry: Entry
    prefill: str
    decode: str
