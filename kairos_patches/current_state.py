"""The state of this process's scheduler, for hooks whose arguments do not lead to it."""

from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sglang.srt.kairos.state import KairosState


@cache  # an import statement takes microseconds in every pass
def scheduler_state() -> "KairosState":
    """Return the state; there is one scheduler in a process."""
    from sglang.srt.kairos.state import installed

    return installed()
