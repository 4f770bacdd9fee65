"""What happened to every request of a simulation."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Records:
    """Times in seconds, NaN until they happen.

    Attributes:
        output_tokens: tokens each request generates.
        prefilled_s: end of the batch that computed the first token.
        first_s: when the client got the first token.
        admitted_s: when decode took the request in.
        last_s: when the last token was made.
        stall_s: longest wait between two tokens.
    """

    output_tokens: npt.NDArray[np.int64]
    prefilled_s: Floats
    first_s: Floats
    admitted_s: Floats
    last_s: Floats
    stall_s: Floats

    @classmethod
    def empty(cls, output_tokens: npt.NDArray[np.int64]) -> "Records":
        n = len(output_tokens)
        return cls(
            output_tokens,
            prefilled_s=np.full(n, np.nan),
            first_s=np.full(n, np.nan),
            admitted_s=np.full(n, np.nan),
            last_s=np.full(n, np.nan),
            stall_s=np.zeros(n),
        )
