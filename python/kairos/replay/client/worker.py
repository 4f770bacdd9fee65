"""The client in a process of its own, so that nothing else delays a send."""

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

from kairos.replay.client.client import ClientConfig, Counts, ReplayClient
from kairos.replay.client.record import RequestRecord
from kairos.replay.client.target import Target
from kairos.replay.plan.plan import PlannedRequest
from kairos.replay.plan.prompts import Prompts

_TELL_S = 0.5
_END_S = 10.0


@dataclass(frozen=True, slots=True)
class WorkerJob:
    """What the client does; see `Client`."""

    target: Target
    prompts: Prompts
    options: ClientConfig
    run_id: str
    requests: Sequence[PlannedRequest]


class WorkerDiedError(Exception):
    """The client's process ended without an answer."""


class Worker:
    """A client process. Use it as a context manager: leaving ends it.

    The process is there and has written all request bodies once the constructor returns.

    Attributes:
        counts: where it stands, as of the last `poll`.
        start_s: monotonic time that arrivals count from.
        priority: what the system allowed it.
    """

    def __init__(self, job: WorkerJob) -> None:
        context = multiprocessing.get_context("spawn")
        self.counts = Counts()
        self.start_s = 0.0
        self.priority = ""
        self._records: list[RequestRecord] | None = None
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_main, args=(theirs, job), daemon=True)
        self._process.start()
        theirs.close()
        try:
            self._receive()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Let the first request be sent in a tenth of a second."""
        self._pipe.send(("go", ""))

    def poll(self, timeout_s: float) -> list[RequestRecord] | None:
        """The records once the run has ended, None until then; waits `timeout_s` at most.

        Raises:
            WorkerDiedError: it has ended otherwise.
        """
        if self._records is None and self._pipe.poll(timeout_s):
            self._receive()
        return self._records

    def stop(self, reason: str) -> None:
        """Cut what is left; the records follow."""
        with contextlib.suppress(OSError):
            self._pipe.send(("stop", reason))

    def close(self) -> None:
        """End the process if it still runs."""
        self._pipe.close()  # which it notices
        self._process.join(_END_S)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def _receive(self) -> None:
        try:
            kind, value = self._pipe.recv()
        except (EOFError, OSError):
            self._process.join(_END_S)
            code = self._process.exitcode
            raise WorkerDiedError(f"the client's process ended with code {code}") from None
        if kind == "counts":
            self.counts = value
        elif kind == "ready":
            self.priority = value
        elif kind == "records":
            self.start_s, encoded = value
            self._records = msgspec.msgpack.decode(encoded, type=list[RequestRecord])


def _main(pipe: Connection, job: WorkerJob) -> None:
    # Ctrl-C goes to the whole group; what happens then is the parent's to decide.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    import uvloop

    client = ReplayClient(job.target, job.prompts, job.options, job.run_id)
    client.prepare(job.requests)
    try:
        pipe.send(("ready", _raise_priority()))
        if pipe.recv()[0] != "go":
            return
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            records = runner.run(_run(pipe, client, job.requests))
        os.set_blocking(pipe.fileno(), True)  # the event loop has changed it
        pipe.send(("records", (client.start_s, msgspec.msgpack.encode(records))))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the parent is gone


def _raise_priority() -> str:
    """Run before others that want the core, if the system allows it: the client needs a tenth of
    one and sleeps otherwise; behind busy servers it would be late. Returns what was allowed."""
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
        return "real-time"
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, -10)
        return "nice -10"
    return "normal"


async def _run(
    pipe: Connection, client: ReplayClient, requests: Sequence[PlannedRequest]
) -> list[RequestRecord]:
    loop = asyncio.get_running_loop()

    def on_message() -> None:
        try:
            _, reason = pipe.recv()
        except (EOFError, OSError):
            loop.remove_reader(pipe.fileno())
            reason = "the replay was interrupted"
        client.stop(reason)

    loop.add_reader(pipe.fileno(), on_message)
    running = asyncio.create_task(client.run(requests))
    told = 0.0
    while not running.done():
        await asyncio.wait([running], timeout=_TELL_S)
        if time.monotonic() - told >= _TELL_S:
            told = time.monotonic()
            with contextlib.suppress(OSError):
                pipe.send(("counts", client.counts))
    with contextlib.suppress(OSError, ValueError):
        loop.remove_reader(pipe.fileno())
    return running.result()
