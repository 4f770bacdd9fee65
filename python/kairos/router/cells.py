"""Several router processes on one machine, behind one port, each with pairs of its own.

The kernel spreads connections over the processes (SO_REUSEPORT). They share nothing: each has its
own queue, its own servers, its own metrics (on the shared port plus 1 plus its number).
"""

import asyncio
import hashlib
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterable, Sequence

from kairos.errors import InputError
from kairos.router.config.settings import Listen, RouterConfig
from kairos.router.workers.endpoint import Endpoint, Role

_log = logging.getLogger(__name__)

_BACKOFF_S = (0.5, 30.0)  # first and longest pause before a restart
_HEALTHY_S = 60.0  # a process that ran this long starts over with the first pause
_KILL_AFTER_S = 25.0  # beyond the drain time; the end itself takes some 20 at most


def assigned(endpoints: Iterable[Endpoint], cells: int) -> list[frozenset[Endpoint]]:
    """Split the servers among cells, the prefill and the decode servers each evenly.

    Every process computes the same from the same servers. Sizes differ by one at most, and a
    change of servers moves few of the others: each goes to the cell that ranks first for it by
    hash and still has room.
    """
    endpoints = list(endpoints)
    shares: list[set[Endpoint]] = [set() for _ in range(cells)]
    for role in Role:
        members = sorted(
            (e for e in endpoints if e.role == role.value), key=lambda e: _rank(e.key, -1)
        )
        least, extra = divmod(len(members), cells)
        sizes = [0] * cells
        for endpoint in members:
            for cell in sorted(range(cells), key=lambda cell: _rank(endpoint.key, cell)):
                if sizes[cell] < least or (sizes[cell] == least and extra > 0):
                    extra -= sizes[cell] == least
                    sizes[cell] += 1
                    shares[cell].add(endpoint)
                    break
    return [frozenset(share) for share in shares]


def supervise(config: RouterConfig, argv: Sequence[str]) -> int:
    """Run the cells until told to stop; restart one that dies.

    Args:
        argv: the command line of this process, which each cell gets with its number.

    Returns:
        Exit code: 0 after a drain; a cell's own, when it refuses its input or every cell fails to
        drain.
    """
    with _claim(config.listen):
        return asyncio.run(_Parent(config, argv).run())


def stop_with_parent() -> None:
    """In a cell: drain as on SIGTERM when the parent is gone, however it went."""

    def wait() -> None:
        # The parent holds the other end and never writes.
        while os.read(sys.stdin.fileno(), 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, name="parent-watch", daemon=True).start()


class _Parent:
    def __init__(self, config: RouterConfig, argv: Sequence[str]) -> None:
        self._config = config
        self._argv = argv
        self._processes: dict[int, asyncio.subprocess.Process] = {}
        self._stopping = asyncio.Event()
        self._code = 0

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        for stop in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(stop, self._stop)
        loop.add_signal_handler(signal.SIGHUP, self._send, signal.SIGHUP)
        _log.info(
            "%d cells on port %d; pid %d", self._config.listen.cells, self._config.listen.port,
            os.getpid(),
        )  # fmt: skip
        async with asyncio.TaskGroup() as group:
            for cell in range(self._config.listen.cells):
                group.create_task(self._keep(cell), name=f"cell {cell}")
        return self._code

    async def _keep(self, cell: int) -> None:
        """Keep one cell running until the parent stops."""
        pause_s = _BACKOFF_S[0]
        loop = asyncio.get_running_loop()
        while not self._stopping.is_set():
            started_s = loop.time()
            code = await self._run_once(cell)
            if self._stopping.is_set():
                self._code = self._code or code
                return
            if code == 2:
                # Bad input: another try would end the same way.
                self._code = code
                self._stop()
                return
            if loop.time() - started_s >= _HEALTHY_S:
                pause_s = _BACKOFF_S[0]
            _log.error("cell %d ended with code %d; again in %g s", cell, code, pause_s)
            try:
                async with asyncio.timeout(pause_s):
                    await self._stopping.wait()
            except TimeoutError:
                pause_s = min(2 * pause_s, _BACKOFF_S[1])

    async def _run_once(self, cell: int) -> int:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "kairos.router", *self._argv, "--cell", str(cell)),
            stdin=asyncio.subprocess.PIPE,
            # Signals of a terminal grow_to the parent only, which passes them on.
            start_new_session=True,
        )
        _log.info("cell %d: pid %d", cell, process.pid)
        self._processes[cell] = process
        waiter = asyncio.create_task(process.wait())
        stop = asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait((waiter, stop), return_when=asyncio.FIRST_COMPLETED)
            if not waiter.done():
                await self._end(cell, process, waiter)
            return await waiter
        finally:
            stop.cancel()
            self._processes.pop(cell)

    async def _end(
        self, cell: int, process: asyncio.subprocess.Process, waiter: "asyncio.Task[int]"
    ) -> None:
        _signal(process, signal.SIGTERM)
        limit_s = self._config.timeouts.drain_timeout_s + _KILL_AFTER_S
        done, _ = await asyncio.wait((waiter,), timeout=limit_s)
        if not done:
            _log.error("cell %d did not end within %g s; killed", cell, limit_s)
            process.kill()

    def _stop(self) -> None:
        self._stopping.set()

    def _send(self, number: signal.Signals) -> None:
        for process in self._processes.values():
            _signal(process, number)


def _signal(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    if process.returncode is None:
        process.send_signal(number)


def _claim(listen: Listen) -> socket.socket:
    """Bind the shared port without listening: it stays ours while cells restart, and a port that
    another program has is noticed before any cell starts."""
    try:
        family, _, _, _, address = socket.getaddrinfo(
            listen.host, listen.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        claim = socket.socket(family, socket.SOCK_STREAM)
        # As the cells' own sockets have it; without REUSEADDR a restart would fail for a minute.
        claim.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        claim.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        claim.bind(address)
    except OSError as error:
        raise InputError(f"--host, --port: cannot listen on them: {error}") from error
    return claim


def _rank(key: str, cell: int) -> bytes:
    return hashlib.blake2b(f"{cell}/{key}".encode(), digest_size=8).digest()
