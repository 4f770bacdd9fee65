"""Who is let in, and when."""

import asyncio
import resource
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import pytest
import uvloop

from kairos.router.edge import listener as listeners
from kairos.router.edge.listener import ConnectionCount, Listener

CLIENTS = 200


class Guests:
    """Protocols of the connections that were let in."""

    def __init__(self) -> None:
        self.transports: list[asyncio.Transport] = []

    def __call__(self) -> asyncio.Protocol:
        guests = self.transports

        class Guest(asyncio.Protocol):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                guests.append(cast(asyncio.Transport, transport))

        return Guest()

    async def turns(self, count: int) -> int:
        """Turns of the loop until so many are in."""
        for turn in range(1000):
            if len(self.transports) >= count:
                return turn
            await asyncio.sleep(0)
        raise AssertionError(f"{len(self.transports)} of {count} are in")

    def leave(self) -> None:
        for transport in self.transports:
            transport.close()


def unbounded() -> ConnectionCount:
    return ConnectionCount(1_000_000, lambda _: None, lambda _: None)


@contextmanager
def callers(port: int, count: int) -> Iterator[list[socket.socket]]:
    """Connections as the kernel has them, before the listener has seen any."""
    made = [socket.create_connection(("127.0.0.1", port)) for _ in range(count)]
    try:
        yield made
    finally:
        for one in made:
            one.close()


def test_a_crowd_is_let_in_within_a_few_turns_of_the_loop() -> None:
    async def crowd() -> int:
        guests = Guests()
        listener = Listener(guests, "127.0.0.1", 0, unbounded())
        try:
            with callers(listener.port, CLIENTS):
                return await guests.turns(CLIENTS)
        finally:
            listener.close()
            guests.leave()

    assert uvloop.run(crowd()) < CLIENTS / 10


def test_without_file_descriptors_connections_are_let_in_later(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def scarce() -> None:
        guests = Guests()
        listener = Listener(guests, "127.0.0.1", 0, unbounded())
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        try:
            with callers(listener.port, 3) as made:
                full = max(one.fileno() for one in made) + 1
                resource.setrlimit(resource.RLIMIT_NOFILE, (full, limits[1]))
                try:
                    await asyncio.sleep(0.05)
                    assert not guests.transports
                finally:
                    resource.setrlimit(resource.RLIMIT_NOFILE, limits)
                async with asyncio.timeout(10):
                    while len(guests.transports) < 3:
                        await asyncio.sleep(0.01)
        finally:
            listener.close()
            guests.leave()

    uvloop.run(scarce())
    assert 0 < sum("cannot accept" in record.message for record in caplog.records) < 5


def test_a_closed_listener_refuses_new_connections_and_keeps_open_ones() -> None:
    async def closed() -> None:
        guests = Guests()
        listener = Listener(guests, "127.0.0.1", 0, unbounded())
        with callers(listener.port, 1) as (one,):
            await guests.turns(1)
            listener.close()
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", listener.port))
            guests.transports[0].write(b"x")
            one.setblocking(False)
            assert await asyncio.get_running_loop().sock_recv(one, 1) == b"x"
        guests.leave()

    uvloop.run(closed())


def test_a_name_is_listened_on_at_all_its_addresses_and_one_port(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    addresses = ["127.0.0.1", "127.0.0.2"]

    def resolved(_name: str, port: int, **_options: Any) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (one, port)) for one in addresses]

    monkeypatch.setattr(listeners.socket, "getaddrinfo", resolved)

    async def named() -> None:
        listener = Listener(Guests(), "a-name", 0, unbounded())
        bound = [one.getsockname() for one in listener._sockets]
        listener.close()
        assert bound == [(one, listener.port) for one in addresses]

    uvloop.run(named())


def test_an_address_in_use_is_said_at_once() -> None:
    async def twice() -> None:
        listener = Listener(Guests(), "127.0.0.1", 0, unbounded())
        try:
            with pytest.raises(OSError, match="in use"):
                Listener(Guests(), "127.0.0.1", listener.port, unbounded())
        finally:
            listener.close()

    uvloop.run(twice())
