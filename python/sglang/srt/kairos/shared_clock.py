"""One time, and one set of learned values, for all ranks that share a waiting queue.

Every tensor-parallel rank runs its own scheduler and must take the same decisions, or the ranks
wait for each other in different collectives. Clocks of hosts differ, and so do the measurements of
ranks. The first rank's reading rides the broadcast of received requests that upstream makes in
every pass of the event loop; decisions use that reading and nothing local.
"""

import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar, cast

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ClockReading:
    """The message of the first rank.

    Attributes:
        now_s: its CLOCK_MONOTONIC, seconds.
        learned: its learned values by name; plain values only, because it is pickled in every pass.
        decisions: digest of the decisions it has taken so far.
        pass_s: duration of a pass of its event loop, seconds.
    """

    now_s: float
    learned: dict[str, object] = field(default_factory=dict)
    decisions: int = 0
    pass_s: float = 0.0


class RanksDivergedError(RuntimeError):
    """This rank has decided otherwise than the first one; continuing would hang both."""


class SharedClock:
    """The clock of one rank.

    Attributes:
        shared: several ranks use one time.
    """

    def __init__(self, ranks: int, local_time: Callable[[], float] = time.monotonic) -> None:
        """Begin with the local time.

        Args:
            ranks: tensor-parallel size. With one rank nothing is sent and time is local.
            local_time: the local clock, monotonic seconds.
        """
        self.shared = ranks > 1
        self._local_time = local_time
        self._local: dict[str, object] = {}
        self._reading = ClockReading(local_time())
        self._decisions = 0
        self._now_s = self._reading.now_s
        self._read = False
        self._passes = 0  # since the last reading
        self._pass_s = 0.0  # by the local clock
        self._sent_s = self._now_s

    def now(self) -> float:
        """Return the time for decisions, seconds: with several ranks, by the last reading."""
        return self._now_s if self.shared else self._local_time()

    def learn(self, name: str, value: object) -> None:
        """Offer a value that this rank has learned.

        The first rank's value is used, from the next pass.
        """
        self._local[name] = value

    def learned(self, name: str, default: T) -> T:
        """Return the value in use; `default` until the first rank has learned one."""
        values = self._reading.learned if self.shared else self._local
        return cast("T", values.get(name, default))

    def decided(self, *numbers: int) -> None:
        """Note a decision, so that ranks which diverge stop instead of hanging."""
        self._decisions = zlib.crc32(repr(numbers).encode(), self._decisions)

    @property
    def decisions(self) -> int:
        """Digest of all decisions of this rank."""
        return self._decisions

    def receive(
        self,
        original: Callable[[object, Sequence[object] | None], list[object]],
        receiver: object,
        local_reqs: Sequence[object] | None,
    ) -> list[object]:
        """Add this rank's reading to the requests that are sent, and take the first rank's out.

        Around `SchedulerRequestReceiver.recv_requests`. Upstream sends only the first rank's. Under
        --scheduler-recv-interval some passes send nothing. The time of these passes is predicted
        from the reading before, so that it is the same on every rank.

        Raises:
            RanksDivergedError: the first rank has decided otherwise.
        """
        if not self.shared:
            return original(receiver, local_reqs)
        self._passes += 1
        now_s = self._local_time()
        pass_s = (now_s - self._sent_s) / self._passes
        # One long pass, such as a prefill, must not predict the passes after it.
        sent_s = min(pass_s, self._pass_s)
        reading = ClockReading(now_s, dict(self._local), self._decisions, sent_s)
        received = original(receiver, [*(local_reqs or []), reading])
        readings = [item for item in received if isinstance(item, ClockReading)]
        if not readings:  # a pass in which upstream polled nothing
            self._now_s += self._reading.pass_s
            return received
        self._reading = readings[-1]
        # Before the first reading, the time is this rank's own, which the first rank's may precede.
        self._now_s = max(self._now_s, self._reading.now_s) if self._read else self._reading.now_s
        self._read = True
        self._passes, self._pass_s, self._sent_s = 0, pass_s, now_s
        if self._reading.decisions != self._decisions:
            raise RanksDivergedError(
                "this tensor-parallel rank has scheduled other batches than the first one; "
                "restart the server"
            )
        return [item for item in received if not isinstance(item, ClockReading)]
