"""The requests of one decode instance, as rows that the kernels of a policy read.

The fields of a row are those of `DecodeResident`. `infeasible` and `runs` belong to the policy.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kairos.errors import InputError

Rows = npt.NDArray[Any]

ROW = np.dtype(
    [
        ("id", np.int64),
        ("context_tokens", np.int64),
        ("output_tokens", np.int64),
        ("first_token_s", np.float64),
        ("last_token_s", np.float64),
        ("hold_until_s", np.float64),
        ("tpot_s", np.float64),
        ("max_new_tokens", np.float64),
        ("length_group", np.int64),
        ("infeasible", np.bool_),
        ("runs", np.bool_),
    ]
)


@dataclass(frozen=True, slots=True)
class DecodeResident:
    """A request that a decode instance holds, or that waits to be admitted to it.

    Attributes:
        id: breaks ties; the same on all tensor-parallel ranks (the bootstrap room).
        context_tokens: tokens of KV: prompt and output so far.
        output_tokens: output tokens after the first one.
        first_token_s: when the client received the first token, seconds on the policy's clock.
        last_token_s: when the newest token was made, seconds.
        tpot_s: its TPOT objective, seconds; infinite for a best-effort request.
        hold_until_s: a first token that is ready may be held back until then, seconds; minus
            infinity: not at all.
        length_group: row of a length estimator's table, see `length.group_of`.
        max_new_tokens: most output tokens.
    """

    id: int
    context_tokens: int
    output_tokens: int
    first_token_s: float
    last_token_s: float
    tpot_s: float
    hold_until_s: float = -math.inf
    length_group: int = 0
    max_new_tokens: float = math.inf

    def check(self) -> None:
        """Raise `InputError` for values under which slack is undefined."""
        if not all(map(math.isfinite, (self.first_token_s, self.last_token_s))):
            raise InputError(f"resident {self.id}: times must be finite")
        if math.isnan(self.hold_until_s):
            raise InputError(f"resident {self.id}: hold_until_s must be a number")
        if not self.tpot_s > 0.0:  # so that a NaN is refused, too
            raise InputError(f"resident {self.id}: tpot_s {self.tpot_s!r} must be positive")
        if self.context_tokens < 1 or self.output_tokens < 0:
            raise InputError(
                f"resident {self.id}: context_tokens {self.context_tokens} and output_tokens "
                f"{self.output_tokens} must be at least 1 and 0"
            )
        if self.length_group < 0 or not self.max_new_tokens >= 1:
            raise InputError(
                f"resident {self.id}: length_group {self.length_group} and max_new_tokens "
                f"{self.max_new_tokens!r} must be at least 0 and 1"
            )


def keep_longest_output(residents: Rows) -> list[int]:
    """Return the indices of the rows in SGLang's order of retention.

    Requests with the most output are kept first; among equals, requests with the least context.
    """
    order = np.lexsort((residents["id"], residents["context_tokens"], -residents["output_tokens"]))
    return [int(at) for at in order]


class Residents:
    """A table of residents, in no particular order.

    Policies sort by their own keys and break ties by id.
    """

    def __init__(self) -> None:
        self._rows = np.zeros(64, ROW)
        self._at: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._at)

    def __contains__(self, resident_id: int) -> bool:
        return resident_id in self._at

    @property
    def rows(self) -> Rows:
        """A view of the rows; valid until the next add or remove."""
        return self._rows[: len(self._at)]

    def row(self, resident_id: int) -> Any:
        """Return a view of one row.

        Raises:
            KeyError: the resident is not in the table.
        """
        return self._rows[self._at[resident_id]]

    def add(self, resident: DecodeResident) -> None:
        """Add a resident.

        Raises:
            InputError: impossible values, or an id that is in the table already.
        """
        resident.check()
        if resident.id in self._at:
            raise InputError(f"resident {resident.id} is held already")
        row = np.zeros((), ROW)
        row["id"] = resident.id
        row["context_tokens"] = resident.context_tokens
        row["output_tokens"] = resident.output_tokens
        row["first_token_s"] = resident.first_token_s
        row["last_token_s"] = resident.last_token_s
        row["hold_until_s"] = resident.hold_until_s
        row["tpot_s"] = resident.tpot_s
        row["max_new_tokens"] = resident.max_new_tokens
        row["length_group"] = resident.length_group
        row["runs"] = True
        self.add_row(row[()])

    def add_row(self, row: Any) -> None:
        """Add a row of another table."""
        n = len(self._at)
        if n == len(self._rows):
            self._rows = np.concatenate([self._rows, np.zeros_like(self._rows)])
        self._rows[n] = row
        self._at[int(row["id"])] = n

    def remove(self, resident_id: int) -> Any:
        """Remove a row and return a copy of it.

        Raises:
            KeyError: the resident is not in the table.
        """
        at = self._at.pop(resident_id)
        row = self._rows[at].copy()
        last = len(self._at)
        if at != last:
            self._rows[at] = self._rows[last]
            self._at[int(self._rows[at]["id"])] = at
        return row
