"""Times and token counts of every request of a simulation."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


class SimRecords(NamedTuple):
    """Arrays with one entry per request, shape [requests]; times in seconds, NaN until they happen.

    Attributes:
        output_tokens: tokens that the request generates.
        made: tokens made after the first one.
        prefilled_s: end of the batch that computed the first token.
        first_s: when the client got the first token.
        admitted_s: when a decode instance admitted the request.
        last_s: when the newest token was made.
        stall_s: longest wait between two tokens.
        refused: admission turned the request away; it is never served.
    """

    output_tokens: Ints
    made: Ints
    prefilled_s: Floats
    first_s: Floats
    admitted_s: Floats
    last_s: Floats
    stall_s: Floats
    refused: Flags

    @classmethod
    def empty(cls, output_tokens: Ints) -> "SimRecords":
        """Records of requests that have not arrived yet."""
        n = len(output_tokens)
        return cls(
            output_tokens,
            made=np.zeros(n, np.int64),
            prefilled_s=np.full(n, np.nan),
            first_s=np.full(n, np.nan),
            admitted_s=np.full(n, np.nan),
            last_s=np.full(n, np.nan),
            stall_s=np.zeros(n),
            refused=np.zeros(n, np.bool_),
        )
