"""A listening socket that accepts all waiting connections at once.

uvloop accepts one connection per turn of its loop. Turns are long while a router is busy: of 256
clients that came together, some waited for seconds to be let in.
"""

import asyncio
import errno
import logging
import socket
import ssl
from collections.abc import Callable

from kairos.router.config.settings import Listen

_log = logging.getLogger(__name__)

_BACKLOG = 4096
_MAX_AT_ONCE = 256  # then those that are connected have their turn
_PAUSE_S = 0.1  # without file descriptors or memory, before the next attempt
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)

Factory = Callable[[], asyncio.Protocol]


def no_listening(listen: Listen, error: OSError) -> str:
    """Say why an address cannot be listened on, and what to do."""
    where = f"{listen.host}:{listen.port}"
    if error.errno == errno.EADDRINUSE:
        return f"another process listens on {where}; stop it, or take another port"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"this machine has no address {listen.host}; take one of its own, or 0.0.0.0 for all"
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"this user may not listen on {where}; take a port from 1024 on"
    if isinstance(error, socket.gaierror):
        return f"the name {listen.host} has no address; give one that this machine resolves"
    return f"cannot listen on {where}: {error.strerror or error}"


def try_address(host: str, port: int) -> None:
    """Bind an address for a moment.

    Raises:
        OSError: it cannot be listened on.
    """
    for bound in _bound(host, port):
        bound.close()


class ConnectionCount:
    """How many client connections are open.

    Args:
        changed: told the number.
        refused: told the reason of a connection beyond the limit.
    """

    def __init__(
        self, limit: int, changed: Callable[[int], None], refused: Callable[[str], None]
    ) -> None:
        self.open = 0
        self._limit = limit
        self._changed = changed
        self._refused = refused

    def enter(self) -> bool:
        """Count one more; False if there are as many as may be."""
        if self.open >= self._limit:
            self._refused("connections")
            return False
        self.open += 1
        self._changed(self.open)
        return True

    def leave(self) -> None:
        """One has ended."""
        self.open -= 1
        self._changed(self.open)


class Listener:
    """Accepts connections on one address, from its construction until `close`.

    Args:
        factory: makes the protocol of each connection.
        port: 0 for a free one.
        count: bounds the connections, those that still agree on TLS included.
        handshake_s: for TLS to be agreed on.

    Attributes:
        port: that it listens on.

    Raises:
        OSError: the address cannot be listened on.
    """

    def __init__(
        self,
        factory: Factory,
        host: str,
        port: int,
        count: ConnectionCount,
        context: ssl.SSLContext | None = None,
        handshake_s: float = 10.0,
    ) -> None:
        self._factory = factory
        self._count = count
        self._context = context
        self._handshake_s = None if context is None else handshake_s
        self._loop = asyncio.get_running_loop()
        self._opening: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._sockets = _bound(host, port)
        self.port = int(self._sockets[0].getsockname()[1])
        self._listen()

    def close(self) -> None:
        """Accept no more connections; open ones stay."""
        if self._timer is not None:
            self._timer.cancel()
        for listening in self._sockets:
            self._loop.remove_reader(listening.fileno())
            listening.close()
        self._sockets = []
        for opening in self._opening:
            opening.cancel()

    def _listen(self) -> None:
        self._timer = None
        for listening in self._sockets:
            self._loop.add_reader(listening.fileno(), self._accept, listening)

    def _accept(self, listening: socket.socket) -> None:
        for _ in range(_MAX_AT_ONCE):
            try:
                accepted, _address = listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in _EXHAUSTED:
                    raise
                self._pause(error)
                return
            if not self._count.enter():
                accepted.close()  # nothing was read, so no answer is due
                continue
            accepted.setblocking(False)
            opening = self._loop.create_task(self._open(accepted))
            self._opening.add(opening)
            opening.add_done_callback(self._opening.discard)

    async def _open(self, accepted: socket.socket) -> None:
        protocol = None
        try:
            _, protocol = await self._loop.connect_accepted_socket(
                self._factory,
                accepted,
                ssl=self._context,
                ssl_handshake_timeout=self._handshake_s,
            )
        except (OSError, TimeoutError):  # gone already, or no TLS
            accepted.close()
        finally:
            if protocol is None:
                self._count.leave()

    def _pause(self, error: OSError) -> None:
        """Connections wait in the backlog; to try again at once would be a busy loop."""
        _log.warning("cannot accept connections: %s", error.strerror)
        for listening in self._sockets:
            self._loop.remove_reader(listening.fileno())
        if self._timer is None:
            self._timer = self._loop.call_later(_PAUSE_S, self._listen)


def _bound(host: str, port: int) -> list[socket.socket]:
    """Return sockets on all addresses of a name, at one port.

    Address families that this machine lacks are left out.
    """
    found = socket.getaddrinfo(
        host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    sockets: list[socket.socket] = []
    absent: OSError | None = None
    for family, _, _, _, address in dict.fromkeys(found):
        try:
            made = socket.create_server(
                (address[0], port, *address[2:]),
                family=family,
                backlog=_BACKLOG,
            )
        except OSError as error:
            if error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                absent = error
                continue
            for one in sockets:
                one.close()
            raise
        made.setblocking(False)
        sockets.append(made)
        port = int(made.getsockname()[1])  # the others follow the first
    if not sockets:
        raise absent or OSError(errno.EADDRNOTAVAIL, "no such address")
    return sockets
