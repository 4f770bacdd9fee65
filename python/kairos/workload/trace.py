"""Request traces: arrival times and lengths of requests, without text."""

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from kairos.errors import InputError

BLOCK_TOKENS = 512
"""Tokens covered by one entry of `hash_ids`; the last block of a prompt may be partial."""


class TraceRequest(msgspec.Struct, frozen=True, gc=False):
    """One request of a trace.

    Attributes:
        arrival_s: seconds from the start of the trace.
        input_tokens: prompt length, at least 1.
        output_tokens: tokens to generate, at least 1.
        hash_ids: ids of the prompt's blocks of 512 tokens, each standing for its block and all
            blocks before it. Two prompts share the prefix that their equal leading ids cover. Empty
            where the trace has no information about sharing.
    """

    arrival_s: float
    input_tokens: int
    output_tokens: int
    hash_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Trace:
    """Requests in order of arrival, and their source.

    Attributes:
        name: file name or generator preset.
        sha256: hash of the file's bytes, or of the generated requests.
        requests: at least one, sorted by `arrival_s`.
    """

    name: str
    sha256: str
    requests: Sequence[TraceRequest]

    @property
    def span_s(self) -> float:
        """Seconds between the first and the last arrival."""
        return self.requests[-1].arrival_s - self.requests[0].arrival_s

    def window(self, start_s: float, duration_s: float) -> "Trace":
        """The requests that arrive in [start_s, start_s + duration_s), times counted from start_s.

        Args:
            start_s: start of the window, seconds.
            duration_s: length of the window, seconds.

        Raises:
            InputError: no request arrives in the window.
        """
        end_s = start_s + duration_s
        kept = [
            msgspec.structs.replace(r, arrival_s=r.arrival_s - start_s)
            for r in self.requests
            if start_s <= r.arrival_s < end_s
        ]
        if not kept:
            last = self.requests[-1].arrival_s
            raise InputError(
                f"{self.name}: no request arrives between {start_s:g} s and {end_s:g} s; "
                f"arrivals reach from {self.requests[0].arrival_s:g} s to {last:g} s"
            )
        return Trace(self.name, self.sha256, kept)
