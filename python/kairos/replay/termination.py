"""SIGTERM while an event loop runs."""

import asyncio
import signal
from collections.abc import Awaitable
from typing import TypeVar

T = TypeVar("T")


async def until_sigterm(work: Awaitable[T]) -> T:
    """Await `work`; on SIGTERM cancel it, let it clean up, and exit with code 143.

    A handler that raises, as `kairos.cluster` installs around the life of a cluster, is not safe
    here: it can strike between the loop's own steps, where the exception is lost together with
    the wake-up of a task, and the replay would run on or wait for that task forever. The handler
    found is put back afterwards. Only for the main thread.

    Raises:
        SystemExit: SIGTERM came.
    """
    loop = asyncio.get_running_loop()
    task = asyncio.ensure_future(work)
    terminated = False

    def terminate() -> None:
        nonlocal terminated
        terminated = True
        task.cancel()

    found = signal.getsignal(signal.SIGTERM)
    loop.add_signal_handler(signal.SIGTERM, terminate)
    try:
        return await task
    except asyncio.CancelledError:
        if terminated:
            raise SystemExit(128 + signal.SIGTERM) from None
        raise
    finally:
        loop.remove_signal_handler(signal.SIGTERM)
        signal.signal(signal.SIGTERM, found)
