"""Reservation of ports."""

import socket

import pytest

from kairos.cluster.ports import LOOPBACK, PortReservation, is_listening
from kairos.errors import InputError


@pytest.fixture
def ports():
    reservation = PortReservation()
    yield reservation
    reservation.close()


def test_ports_differ(ports):
    taken = [ports.take() for _ in range(20)]
    assert len(set(taken)) == 20


def test_held_port_is_not_free_for_other_sockets_but_a_server_can_bind_it(ports):
    port = ports.take()
    with (
        socket.socket() as without_reuse,
        pytest.raises(OSError, match="in use"),
    ):
        without_reuse.bind((LOOPBACK, port))

    with socket.create_server((LOOPBACK, port)):  # sets SO_REUSEADDR, as servers do
        assert is_listening(port)
        ports.close()
        assert is_listening(port)
    assert not is_listening(port)


def test_a_held_port_does_not_look_like_a_server(ports):
    assert not is_listening(ports.take())


def test_a_port_in_use_is_named_in_one_line(ports):
    with socket.create_server((LOOPBACK, 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(InputError, match=f"port {port} on 127.0.0.1 is in use") as error:
            ports.take(port)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("port", [-1, 65536])
def test_a_port_out_of_range_is_refused(ports, port):
    with pytest.raises(InputError, match="1 to 65535"):
        ports.take(port)
