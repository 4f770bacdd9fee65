"""Bootstrap rooms: what a prefill and a decode server know a KV transfer by."""

import secrets
from collections.abc import Iterable

import msgspec

ROOM_BITS = 63


class Transfer(msgspec.Struct, frozen=True, gc=False):
    """What both workers know an attempt by.

    Attributes:
        rids: request ids, one per sequence.
        rooms: bootstrap rooms, one per sequence.
    """

    rids: tuple[str, ...]
    rooms: tuple[int, ...]


class BootstrapRooms:
    """The rooms in use.

    Two live transfers in one room take both servers down, so rooms are random, never the client's,
    and one is not drawn again before it is released.
    """

    def __init__(self) -> None:
        self._live: set[int] = set()

    def __len__(self) -> int:
        return len(self._live)

    def take(self, count: int) -> tuple[int, ...]:
        """Draw `count` fresh rooms."""
        rooms: list[int] = []
        while len(rooms) < count:
            room = secrets.randbits(ROOM_BITS)
            if room and room not in self._live:
                self._live.add(room)
                rooms.append(room)
        return tuple(rooms)

    def release(self, rooms: Iterable[int]) -> None:
        """These rooms are not in use any more."""
        self._live.difference_update(rooms)


def new_rid() -> str:
    """A request id for one sequence of one attempt.

    Servers abort every request whose id begins with the given one, so all have the same length.
    """
    return secrets.token_hex(16)
