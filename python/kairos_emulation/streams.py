"""Streams and events of the emulated accelerator, in place of torch.cpu's empty ones.

A stream is a point on the monotonic clock: the time at which the work queued on it ends. A launch
moves that point and an event records it. Waiting for an event sleeps; querying it compares times.
"""

import threading
import time
from types import TracebackType

# time.sleep returns about this late (the kernel's timer slack); a shorter request evens it out.
WAKE_UP_S = 60e-6

_current = threading.local()


def now() -> float:
    """Return monotonic seconds of the machine, the clock of every stream."""
    # Not time.monotonic: ranks compare these times, and tests skew that clock of single ranks.
    return time.clock_gettime(time.CLOCK_MONOTONIC)


def sleep_until(moment: float) -> None:
    """Return at `moment`, in monotonic seconds, or at once if it has passed."""
    left = moment - now()
    if left > WAKE_UP_S:
        time.sleep(left - WAKE_UP_S)


class Stream:
    """In-order queue of modelled work. Constructor arguments are those of torch, and ignored.

    Attributes:
        end: monotonic time at which everything queued so far is done.
    """

    def __init__(self, *_args: object, **_kwargs: object) -> None:
        self.end = 0.0

    def launch(self, seconds: float) -> float:
        """Queue work that takes `seconds`. Return its end in monotonic seconds."""
        self.end = max(self.end, now()) + seconds
        return self.end

    def wait_stream(self, stream: "Stream") -> None:
        """Queue later work behind everything queued on `stream` so far."""
        self.end = max(self.end, stream.end)

    def wait_event(self, event: "Event") -> None:
        """Queue later work behind `event`."""
        self.end = max(self.end, event.end)

    def record_event(self, event: "Event | None" = None) -> "Event":
        """Record `event`, or a new one, at the end of this stream, and return it."""
        event = event or Event()
        event.record(self)
        return event

    def synchronize(self) -> None:
        """Return when everything queued so far is done."""
        sleep_until(self.end)

    def query(self) -> bool:
        """Return whether everything queued so far is done."""
        return now() >= self.end


class Event:
    """A recorded point of a stream. One that was never recorded is done, as in CUDA.

    Constructor arguments are those of torch, and ignored.

    Attributes:
        end: monotonic time at which the event is reached.
    """

    def __init__(self, *_args: object, **_kwargs: object) -> None:
        self.end = 0.0

    def record(self, stream: Stream | None = None) -> None:
        """Set the event to the end of `stream`, by default the calling thread's."""
        # An idle stream reaches the event at once.
        self.end = max((stream or current_stream()).end, now())

    def wait(self, stream: Stream | None = None) -> None:
        """Have `stream`, by default the calling thread's, wait for this event."""
        (stream or current_stream()).wait_event(self)

    def synchronize(self) -> None:
        """Return when the event is reached."""
        sleep_until(self.end)

    def query(self) -> bool:
        """Return whether the event is reached."""
        return now() >= self.end

    def elapsed_time(self, later: "Event") -> float:
        """Return milliseconds from this event to `later`."""
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


def current_stream(_device: object = None) -> Stream:
    """Return the calling thread's stream; threads that set none share a default one."""
    stream: Stream = getattr(_current, "stream", _default_stream)
    return stream


def replace_torch_streams() -> None:
    """Put these classes in the place of torch.cpu's.

    SGLang takes streams and events from torch.cpu on a device called "cpu".
    """
    import torch

    # mypy rejects assignments to classes and functions of a module; here they are the purpose.
    torch.cpu.Stream = Stream  # type: ignore[assignment,misc]
    torch.cpu.Event = Event  # type: ignore[assignment,misc]
    torch.cpu.StreamContext = StreamContext  # type: ignore[assignment,misc]
    torch.cpu.stream = StreamContext  # type: ignore[assignment]
    torch.cpu.current_stream = current_stream  # type: ignore[assignment]
