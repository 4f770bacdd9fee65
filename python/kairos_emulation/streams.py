"""Streams and events of the emulated accelerator, in place of torch.cpu's empty ones.

A stream is a point on the monotonic clock: the time at which the work queued on it ends. Launching
moves that point; an event remembers it; waiting for an event is a sleep, asking it a comparison.
"""

import threading
import time
from types import TracebackType
from typing import Any

# time.sleep returns about this late (the kernel's timer slack); asking for less evens it out.
WAKE_UP_S = 60e-6

_current = threading.local()


def now() -> float:
    """Monotonic seconds; the clock of every stream."""
    return time.monotonic()


def sleep_until(moment: float) -> None:
    """Return at `moment`, monotonic seconds, or at once if that is past."""
    left = moment - now()
    if left > WAKE_UP_S:
        time.sleep(left - WAKE_UP_S)


class Stream:
    """In-order queue of modelled work.

    Attributes:
        end: monotonic time at which everything queued so far is done.
    """

    def __init__(self, *_args: Any, **_kwargs: Any) -> None:
        self.end = 0.0

    def launch(self, seconds: float) -> float:
        """Queue work that takes `seconds`. Returns its end."""
        self.end = max(self.end, now()) + seconds
        return self.end

    def wait_stream(self, stream: "Stream") -> None:
        self.end = max(self.end, stream.end)

    def wait_event(self, event: "Event") -> None:
        self.end = max(self.end, event.end)

    def record_event(self, event: "Event | None" = None) -> "Event":
        event = event or Event()
        event.record(self)
        return event

    def synchronize(self) -> None:
        sleep_until(self.end)

    def query(self) -> bool:
        return now() >= self.end


class Event:
    """A recorded point of a stream; done from the start if never recorded, as in CUDA."""

    def __init__(self, *_args: Any, **_kwargs: Any) -> None:
        self.end = 0.0

    def record(self, stream: Stream | None = None) -> None:
        # On a stream that has nothing to do it is reached at once.
        self.end = max((stream or current_stream()).end, now())

    def wait(self, stream: Stream | None = None) -> None:
        (stream or current_stream()).wait_event(self)

    def synchronize(self) -> None:
        sleep_until(self.end)

    def query(self) -> bool:
        return now() >= self.end

    def elapsed_time(self, later: "Event") -> float:
        """Milliseconds from this event to `later`."""
        return 1e3 * (later.end - self.end)


class StreamContext:
    """Makes `stream` the calling thread's current one; None changes nothing."""

    def __init__(self, stream: Stream | None) -> None:
        self.stream = stream
        self._previous: list[Stream] = []

    def __enter__(self) -> Stream | None:
        self._previous.append(current_stream())
        if self.stream is not None:
            _current.stream = self.stream
        return self.stream

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        _current.stream = self._previous.pop()


_default_stream = Stream()


def current_stream(_device: Any = None) -> Stream:
    """The calling thread's stream; threads that chose none share one."""
    return getattr(_current, "stream", _default_stream)


def replace_torch_streams() -> None:
    """SGLang takes streams and events from torch.cpu on a device called "cpu"."""
    import torch

    torch.cpu.Stream = Stream  # type: ignore[assignment,misc]
    torch.cpu.Event = Event  # type: ignore[assignment,misc]
    torch.cpu.StreamContext = StreamContext  # type: ignore[assignment,misc]
    torch.cpu.stream = StreamContext  # type: ignore[assignment]
    torch.cpu.current_stream = current_stream  # type: ignore[assignment]
