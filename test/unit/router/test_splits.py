"""However a stream was cut on its way, the client gets the same bytes and the same outcome."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kairos.router.paths import CHAT, COMPLETIONS, GENERATE, RESPONSES
from kairos.router.upstream.delivery import _first_event
from kairos.router.upstream.engine_answer import problem_of
from kairos.router.upstream.http_client import EngineConnection
from kairos.router.upstream.leg import LegError
from kairos.router.upstream.merged_answer import CompletionMerge, GenerateMerge, without_usage
from kairos.router.upstream.relay import Relay
from kairos.router.workers.endpoint import Role

DONE = b"data: [DONE]\n\n"
TOKEN = b'data: {"text":"x","meta_info":{"completion_tokens":1,"input_token_logprobs":[]}}\n\n'
ABORT = b'data: {"meta_info":{"finish_reason":{"type":"abort","status_code":400}}}\n\n'
USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":6,"completion_tokens":9}}\n\n'
CHOICE = b'data: {"choices":[{"index":0,"text":"x","logprobs":{"tokens":["x"]}}]}\n\n'
FIRST = b'data: {"choices":[{"index":0,"logprobs":{"tokens":["a","b"]}}]}\n\n'
INPUT = b'data: {"meta_info":{"input_token_logprobs":[[-1.0,7,null]]}}\n\n'
CREATED = b'event: response.created\ndata: {"usage":{"input_tokens":3,"output_tokens":0}}\n\n'
COMPLETED = b'event: response.completed\ndata: {"usage":{"input_tokens":3,"output_tokens":2}}\n\n'
PIECES = [
    *(TOKEN, ABORT, USAGE, CHOICE, DONE),
    b": ping\n\n",
    b"event: message\nid: 7\ndata: {}\n\n",
    b"retry: 100\n\n",
    b'data: {"error":{"code":400,"message":"no"}}\n\n',
    b'event: error\ndata: {"error":{"code":500}}\n\n',
    CREATED,
    COMPLETED,
    b"event: response.failed\ndata: {}\n\n",
    b"data: one\ndata: two\n\n",
    b"data: {broken\n\n",
    b'data: {"text":"' + b"y" * 9000 + b'"}\n\n',
    *(b"\n", b"data: {half"),
]
CHANGES: dict[str, Any] = {
    "none": lambda: None,
    "usage": lambda: without_usage,
    "generate": lambda: GenerateMerge(INPUT),
    "completions": lambda: CompletionMerge(FIRST, 2, True),
}


class Pieces:
    """An attempt whose answer comes in these pieces."""

    def __init__(self, pieces: list[bytes]) -> None:
        self._pieces = [piece for piece in pieces if piece][::-1]

    async def read(self) -> bytes:
        return self._pieces.pop() if self._pieces else b""


class Client:
    def __init__(self) -> None:
        self.sent = b""

    async def write(self, data: bytes) -> None:
        self.sent += data


async def relayed(path: str, batch: bool, change: str, pieces: list[bytes]) -> Any:
    """What a client gets, and what the stream is judged by."""
    attempt, client = Pieces(pieces), Client()
    relay = Relay(SimpleNamespace(transport=None), 1.0, path, batch)
    relay._response = client
    relay.change = CHANGES[change]()
    try:
        chunk = await _first_event(attempt, path)
        while chunk:
            await relay.pass_on(chunk)
            chunk = await attempt.read()
    except LegError as error:
        return error.reason, error.status, error.body, client.sent
    error = problem_of(Role.DECODE, 200, relay.error, path)
    told = None if error is None else (error.reason, error.status, error.body)
    tokens = relay.tokens, relay.prompt_tokens
    return told, relay.complete, relay.aborted, tokens, client.sent


def cut(data: bytes, at: list[int]) -> list[bytes]:
    places = sorted({place % (len(data) + 1) for place in at})
    ends = [*places, len(data)]
    return [data[a:b] for a, b in zip([0, *places], ends, strict=True)]


@settings(max_examples=400, deadline=None)
@given(
    path=st.sampled_from([GENERATE, COMPLETIONS, CHAT, RESPONSES]),
    batch=st.booleans(),
    change=st.sampled_from(sorted(CHANGES)),
    events=st.lists(st.sampled_from(PIECES), max_size=8),
    at=st.lists(st.integers(0, 1 << 16), max_size=12),
)
@example(GENERATE, False, "none", [TOKEN, DONE], [3])
@example(GENERATE, False, "none", [TOKEN, ABORT, DONE], [len(TOKEN)])
@example(COMPLETIONS, False, "usage", [CHOICE, b"\n", USAGE, DONE], [len(CHOICE)])
@example(RESPONSES, False, "none", [COMPLETED, CREATED], [len(COMPLETED)])
def test_a_split_changes_neither_bytes_nor_outcome(
    path: str, batch: bool, change: str, events: list[bytes], at: list[int]
) -> None:
    data = b"".join(events)
    whole = asyncio.run(relayed(path, batch, change, [data]))
    assert asyncio.run(relayed(path, batch, change, cut(data, at))) == whole


@pytest.mark.parametrize("change", sorted(CHANGES))
def test_a_stream_that_comes_byte_by_byte_is_the_same(change: str) -> None:
    data = b": ping\n\n" + TOKEN + CHOICE + b"id: 1\n" + USAGE + DONE
    whole = asyncio.run(relayed(COMPLETIONS, False, change, [data]))
    single = [data[at : at + 1] for at in range(len(data))]
    assert asyncio.run(relayed(COMPLETIONS, False, change, single)) == whole
    told, complete, aborted, tokens, _ = whole
    assert (told, complete, aborted, tokens) == (None, True, False, (9, 6))


class Transport:
    def write(self, data: bytes) -> None: ...
    def abort(self) -> None: ...
    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
ANSWERS = {
    "chunked": HEAD
    + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n"
    % (len(TOKEN + DONE), TOKEN + DONE),
    "with a length": HEAD + b"Content-Length: %d\r\n\r\n" % len(TOKEN + DONE) + TOKEN + DONE,
    "until the connection closes": HEAD + b"Connection: close\r\n\r\n" + TOKEN + DONE,
    "until the connection closes, unsaid": HEAD + b"\r\n" + TOKEN + DONE,
    "HTTP/1.0": b"HTTP/1.0 200 OK\r\n\r\n" + TOKEN + DONE,
    "after an interim answer": b"HTTP/1.1 100 Continue\r\n\r\n" + HEAD + b"\r\n" + TOKEN + DONE,
}


@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_is_the_same_wherever_it_was_cut(name: str) -> None:
    data = ANSWERS[name]
    for at in range(len(data) + 1):
        connection = EngineConnection()
        connection.connection_made(Transport())
        connection.begin(b"", b"", lambda: None)
        for piece in (data[:at], data[at:]):
            if piece:
                connection.data_received(piece)
        connection.connection_lost(None)
        assert (connection.status, connection.broken) == (200, None), at
        assert connection.take() == TOKEN + DONE
