"""The client in a process of its own, so that no other work delays a send."""

import asyncio
import contextlib
import multiprocessing
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection

import msgspec

from kairos.replay.client.client import ReplayClient, RequestCounts
from kairos.replay.client.job import WorkerJob
from kairos.replay.client.record import RequestRecord

_COUNTS_PERIOD_S = 0.5
_EXIT_LIMIT_S = 10.0


@dataclass(frozen=True, slots=True)
class WorkerResult:
    """The end of a run.

    Attributes:
        start_s: monotonic time from which arrivals count.
        records: one record per request, in order of arrival.
    """

    start_s: float
    records: Sequence[RequestRecord]


class WorkerDiedError(Exception):
    """The client's process ended without a result."""


class WorkerProcess:
    """A client process; leaving its context ends the process.

    The constructor returns when the process has written all request bodies.

    Attributes:
        counts: progress as of the last `poll`.
        priority: scheduling priority that the system granted the process.
    """

    def __init__(self, job: WorkerJob) -> None:
        """Start the process.

        Raises:
            WorkerDiedError: it ended before it was ready.
        """
        context = multiprocessing.get_context("spawn")
        self.counts = RequestCounts()
        self.priority = ""
        self._pipe, child_pipe = context.Pipe()
        self._process = context.Process(target=_main, args=(child_pipe, job), daemon=True)
        self._process.start()
        child_pipe.close()
        try:
            self._receive()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "WorkerProcess":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Start the run; the first request leaves 0.1 s later."""
        self._pipe.send(_Start())

    def poll(self, timeout_s: float) -> WorkerResult | None:
        """Return the result once the run has ended, None until then; wait at most `timeout_s`.

        Raises:
            WorkerDiedError: the process ended without a result.
        """
        return self._receive() if self._pipe.poll(timeout_s) else None

    def stop(self, reason: str) -> None:
        """Cut the remaining requests; the result follows."""
        with contextlib.suppress(OSError):
            self._pipe.send(_Stop(reason))

    def close(self) -> None:
        """End the process if it still runs."""
        self._pipe.close()  # the process ends when its end of the pipe is closed
        self._process.join(_EXIT_LIMIT_S)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def _receive(self) -> WorkerResult | None:
        try:
            message = self._pipe.recv()
        except (EOFError, OSError):
            self._process.join(_EXIT_LIMIT_S)
            code = self._process.exitcode
            raise WorkerDiedError(f"the client's process ended with code {code}") from None
        if isinstance(message, RequestCounts):
            self.counts = message
        elif isinstance(message, _Ready):
            self.priority = message.priority
        elif isinstance(message, _Ended):
            records = msgspec.msgpack.decode(message.records, type=list[RequestRecord])
            return WorkerResult(message.start_s, records)
        return None


# Messages over the pipe.


@dataclass(frozen=True, slots=True)
class _Ready:
    priority: str


@dataclass(frozen=True, slots=True)
class _Start:
    pass


@dataclass(frozen=True, slots=True)
class _Stop:
    reason: str


@dataclass(frozen=True, slots=True)
class _Ended:
    start_s: float
    records: bytes


def _main(pipe: Connection, job: WorkerJob) -> None:
    # Ctrl-C reaches the whole process group; the parent decides what follows.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    import uvloop

    client = ReplayClient(job)
    try:
        pipe.send(_Ready(_raise_priority()))
        if not isinstance(pipe.recv(), _Start):
            return
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            records = runner.run(_run(pipe, client))
        os.set_blocking(pipe.fileno(), True)  # the event loop has changed it
        pipe.send(_Ended(client.start_s, msgspec.msgpack.encode(records)))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the parent has ended


def _raise_priority() -> str:
    """Raise the priority as far as the system allows and return the priority.

    The client needs a tenth of a core and sleeps otherwise. Behind busy servers it would be late.
    """
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
        return "real-time"
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, -10)
        return "nice -10"
    return "normal"


async def _run(pipe: Connection, client: ReplayClient) -> list[RequestRecord]:
    loop = asyncio.get_running_loop()

    def on_message() -> None:
        try:
            message = pipe.recv()
            reason = message.reason if isinstance(message, _Stop) else "unknown message"
        except (EOFError, OSError):
            loop.remove_reader(pipe.fileno())
            reason = "the replay was interrupted"
        client.stop(reason)

    loop.add_reader(pipe.fileno(), on_message)
    running = asyncio.create_task(client.run())
    sent_s = 0.0
    while not running.done():
        await asyncio.wait([running], timeout=_COUNTS_PERIOD_S)
        if time.monotonic() - sent_s >= _COUNTS_PERIOD_S:
            sent_s = time.monotonic()
            with contextlib.suppress(OSError):
                pipe.send(client.counts)
    with contextlib.suppress(OSError, ValueError):
        loop.remove_reader(pipe.fileno())
    return running.result()
