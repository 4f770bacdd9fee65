"""HTTP/1.1 responses cut into pieces."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kairos.http_response import HttpResponseError, HttpResponseParser

CHUNKED = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n"
    b"X-Kairos-Decode: d1\r\n\r\n5\r\nhello\r\nA;ext=1\r\n, world ok\r\n0\r\n\r\n"
)


def fed(data: bytes, cuts: list[int]) -> tuple[HttpResponseParser, bytes]:
    pieces: list[bytes] = []
    response = HttpResponseParser(pieces.append)
    places = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    for start, end in itertools.pairwise(places):
        response.feed(data[start:end])
    return response, b"".join(pieces)


@given(st.lists(st.integers(0, 160), max_size=12))
def test_any_cut_gives_the_same_body(cuts: list[int]) -> None:
    response, body = fed(CHUNKED, cuts)
    assert (response.status, response.complete, body) == (200, True, b"hello, world ok")
    assert response.headers["x-kairos-decode"] == "d1"


def test_bodies_with_and_without_a_length_are_read() -> None:
    response, body = fed(b"HTTP/1.1 400 Bad\r\ncontent-length: 3\r\n\r\nabc", [])
    assert (response.status, response.complete, body) == (400, True, b"abc")
    response, body = fed(b"HTTP/1.0 200 OK\r\n\r\nab", [20])
    assert not response.complete
    response.end()
    assert (response.complete, body) == (True, b"ab")
    assert fed(b"HTTP/1.1 204 No Content\r\ncontent-length: 0\r\n\r\n", [])[0].complete


@pytest.mark.parametrize(
    "data",
    [b"", b"HTTP/1.1 200 OK\r\n", CHUNKED[:-20], b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nx"],
)
def test_end_within_the_response_is_an_error(data: bytes) -> None:
    response, _ = fed(data, [])
    with pytest.raises(HttpResponseError, match="in the middle"):
        response.end()


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"SSH-2.0-OpenSSH\r\n\r\n", "not an HTTP/1.1 response"),
        (b"HTTP/1.1 abc\r\n\r\n", "not an HTTP/1.1 response"),
        (CHUNKED.replace(b"5\r\n", b"zz\r\n"), "malformed response body"),
        (b"HTTP/1.1 200 OK\r\nx: " + b"x" * 70_000, "without an end"),
        (CHUNKED.partition(b"5\r\n")[0] + b"5" * 2000, "malformed response body"),
    ],
)
def test_malformed_responses_are_errors(data: bytes, says: str) -> None:
    with pytest.raises(HttpResponseError, match=says):
        fed(data, [])


@pytest.mark.parametrize(
    ("behind", "reusable"),
    [(b"", True), (b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nx", False), (b"junk", False)],
)
def test_a_connection_with_bytes_behind_the_response_is_not_used_again(
    behind: bytes, reusable: bool
) -> None:
    response, body = fed(CHUNKED + behind, [])
    assert (response.complete, response.reusable) == (True, reusable)
    assert (response.status, body) == (200, b"hello, world ok")


def test_a_connection_that_the_server_closes_is_not_used_again() -> None:
    head = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
    assert not fed(head, [])[0].reusable
