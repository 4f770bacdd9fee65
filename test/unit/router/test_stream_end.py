"""What a relay knows of a stream from the bytes that went through it."""

from types import SimpleNamespace

import pytest

from kairos.router.paths import CHAT, GENERATE, RESPONSES
from kairos.router.upstream.relay import Relay


class Response:
    """Takes what a client would get."""

    def __init__(self) -> None:
        self.sent = b""

    async def write(self, data: bytes) -> None:
        self.sent += data

    async def write_eof(self) -> None:
        pass


def relaying(path: str, batch: bool = False) -> tuple[Relay, Response]:
    relay, response = Relay(SimpleNamespace(transport=None), 1.0, path, batch), Response()
    relay._response = response
    return relay, response


def event(index: int, tokens: int) -> bytes:
    return b'data: {"meta_info":{"completion_tokens":%d},"index":%d}\n\n' % (tokens, index)


async def test_tokens_of_a_streamed_batch_are_those_of_all_its_sequences() -> None:
    relay, _ = relaying(GENERATE, batch=True)
    for chunk in (event(0, 1) + event(1, 1), event(2, 9), event(1, 5), b"data: [DONE]\n\n"):
        await relay.pass_on(chunk)
    assert relay.complete
    assert relay.tokens == 1 + 5 + 9


@pytest.mark.parametrize(
    ("end", "complete", "aborted"),
    [
        ("completed", True, False),
        ("incomplete", True, False),
        ("failed", True, True),
        ("in_progress", False, False),
    ],
)
async def test_a_response_ends_by_its_last_events_name(
    end: str, complete: bool, aborted: bool
) -> None:
    relay, response = relaying(RESPONSES)
    body = b'data: {"metadata":{"type":"abort","a":"\\n\\nevent: response.completed\\n"}}\n\n'
    await relay.pass_on(b"event: response.created\n" + body)
    await relay.pass_on(b"event: response.%s\n" % end.encode() + body)
    assert (relay.complete, relay.aborted) == (complete, aborted)
    await relay.break_off(b'{"error":{}}')
    assert response.sent.count(b'{"error":') == (not aborted)


async def test_an_error_is_remembered_however_much_follows_it() -> None:
    relay, response = relaying(CHAT)
    error = b'data: {"error": {"code": 503}}\n\n'
    await relay.pass_on(error)
    for _ in range(200):
        await relay.pass_on(b'data: {"choices":[],"text":"%b"}\n\n' % (b"x" * 100))
    await relay.pass_on(b"data: [DONE]\n\n")
    assert relay.error == error
    await relay.break_off(b'{"error":{}}')
    assert response.sent.count(b'{"error":') == 1


async def test_text_that_looks_like_an_error_is_none() -> None:
    relay, _ = relaying(CHAT)
    await relay.pass_on(b'data: {"text":"data: {\\"error\\": {}}","error":null}\n\n')
    await relay.pass_on(b"data: [DONE]\n\n")
    assert relay.error == b""
    assert relay.complete
