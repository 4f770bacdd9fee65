"""The line that shows the progress of a starting cluster."""

import sys
import time
from collections.abc import Mapping
from typing import TextIO

_REDRAW_S = 0.5
_CLEAR_LINE = "\r\x1b[K"


class Progress:
    """Redraws one line on a terminal; prints nothing elsewhere."""

    def __init__(self, stream: TextIO = sys.stderr) -> None:
        self._stream = stream
        self._on = stream.isatty()
        self._begin = time.monotonic()
        self._drawn = float("-inf")

    def show(self, stages: Mapping[str, str]) -> None:
        """Draw the seconds since the start and the stage of each process.

        Args:
            stages: by process name, such as "starting" or "ready".
        """
        now = time.monotonic()
        if not self._on or now - self._drawn < _REDRAW_S:
            return
        self._drawn = now
        parts = "  ".join(f"{name}: {stage}" for name, stage in stages.items())
        self._stream.write(f"{_CLEAR_LINE}starting {now - self._begin:3.0f} s  {parts}")
        self._stream.flush()

    def close(self) -> None:
        """Clear the line."""
        if self._on:
            self._stream.write(_CLEAR_LINE)
            self._stream.flush()
