"""Requests without an objective, and the room that they leave to requests with one."""

import math

WINDOW_S = 60.0
"""Time after the newest request with an objective during which another one is expected, seconds."""

STARVED_AFTER_S = 16.0
"""Wait after which a best-effort request may use the bounded share of starved ones, seconds."""


class ObjectiveTraffic:
    """Notes the requests with objectives that a server sees.

    While another one is expected, best-effort requests leave room for it. Otherwise the server
    works as SGLang does.
    """

    def __init__(self) -> None:
        self._newest_s = -math.inf

    def note(self, now_s: float) -> None:
        """Note that a request with an objective is present at `now_s`."""
        self._newest_s = max(self._newest_s, now_s)

    def expected(self, now_s: float) -> bool:
        """Return whether a request with an objective is present or expected at `now_s`."""
        return now_s <= self._newest_s + WINDOW_S
