"""Ports on the loopback interface, held until the servers have bound them."""

import errno
import socket

from kairos.errors import InputError

LOOPBACK = "127.0.0.1"


class PortReservation:
    """Hands out ports and keeps each bound, without listening, until `close`.

    The kernel does not assign a bound port to a process that binds any free one. The server can
    bind it, because its socket and this one set SO_REUSEADDR and this one never listens. Another
    process that binds the same number explicitly can take it.
    """

    def __init__(self) -> None:
        self._held: list[socket.socket] = []

    def take(self, port: int = 0) -> int:
        """Reserve `port`, or any free one for 0, and return it.

        Raises:
            InputError: the port is out of range or in use.
        """
        if not 0 <= port <= 65535:
            raise InputError(f"port {port}: allowed are 1 to 65535, or 0 for any free port")
        held = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            held.bind((LOOPBACK, port))
        except OSError as error:
            held.close()
            if error.errno == errno.EADDRINUSE:
                raise InputError(
                    f"port {port} on {LOOPBACK} is in use: choose another, or 0 for any free port"
                ) from None
            raise InputError(f"port {port} on {LOOPBACK}: {error.strerror}") from None
        self._held.append(held)
        return int(held.getsockname()[1])

    def close(self) -> None:
        """Release every port; servers that have bound theirs keep them."""
        for held in self._held:
            held.close()
        self._held.clear()


def is_listening(port: int) -> bool:
    """Return whether a server accepts connections on the loopback port."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        return probe.connect_ex((LOOPBACK, port)) == 0
