"""One time, and one set of learned values, for all ranks that share a waiting queue.

Every tensor-parallel rank runs its own scheduler and must take the same decisions, or the ranks
wait for each other in different collectives. Clocks of hosts differ, and so does what each rank
measures. The first rank's reading rides the broadcast of received requests that upstream makes in
every pass of the event loop; decisions use that reading and nothing local.
"""

import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Reading:
    """What the first rank sends.

    Attributes:
        now_s: its CLOCK_MONOTONIC, seconds.
        learned: its learned values by name; plain values only, it is pickled in every pass.
        decisions: digest of the decisions it has taken so far.
    """

    now_s: float
    learned: dict[str, Any] = field(default_factory=dict)
    decisions: int = 0


class RanksDivergedError(RuntimeError):
    """This rank has decided otherwise than the first one. Going on would hang both."""


class SharedClock:
    """Args:
    ranks: tensor-parallel size. With one rank nothing is sent and time is local.
    local_time: the local clock, monotonic seconds.
    """

    def __init__(self, ranks: int, local_time: Callable[[], float] = time.monotonic) -> None:
        self.shared = ranks > 1
        self._local_time = local_time
        self._local: dict[str, Any] = {}
        self._reading = Reading(local_time())
        self._decisions = 0

    def now(self) -> float:
        """Time for decisions, seconds: with several ranks, that of the latest reading."""
        return self._reading.now_s if self.shared else self._local_time()

    def learn(self, name: str, value: Any) -> None:
        """Offer what this rank has learned. The first rank's value counts, from the next pass."""
        self._local[name] = value

    def learned(self, name: str, default: T) -> T:
        """The value that counts; `default` until the first rank has learned one."""
        values = self._reading.learned if self.shared else self._local
        value: T = values.get(name, default)
        return value

    def decided(self, *numbers: int) -> None:
        """Note a decision, so that ranks which diverge stop instead of hanging."""
        self._decisions = zlib.crc32(repr(numbers).encode(), self._decisions)

    @property
    def decisions(self) -> int:
        """Digest of all decisions of this rank."""
        return self._decisions

    def receive(
        self, original: Callable[..., list[Any]], receiver: Any, local_reqs: Sequence[Any] | None
    ) -> list[Any]:
        """Around `SchedulerRequestReceiver.recv_requests`: upstream sends what this rank adds only
        if it is the first.

        Raises:
            RanksDivergedError: the first rank has decided otherwise.
        """
        if not self.shared:
            return original(receiver, local_reqs)
        reading = Reading(self._local_time(), dict(self._local), self._decisions)
        received = original(receiver, [*(local_reqs or []), reading])
        readings = [item for item in received if isinstance(item, Reading)]
        if not readings:  # a pass in which upstream polled nothing
            return received
        self._reading = readings[-1]
        if self._reading.decisions != self._decisions:
            raise RanksDivergedError(
                "this tensor-parallel rank has scheduled other batches than the first one"
            )
        return [item for item in received if not isinstance(item, Reading)]


_clock: SharedClock | None = None


def install(clock: SharedClock) -> None:
    """Make `clock` the one that this process's request receiver feeds. One scheduler a process."""
    global _clock
    _clock = clock


def installed() -> SharedClock:
    """The clock of this process's scheduler."""
    assert _clock is not None, "installed with the scheduler, before it receives anything"
    return _clock
