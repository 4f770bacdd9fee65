"""The OpenAI endpoint: its requests, and token times with and without usage."""

import json

import pytest

from kairos.replay.client.api import SLO_HEADERS, CompletionsApi
from kairos.replay.client.stream import CompletionStream, StreamError
from support.replay import planned


def chunk(text: str = "x", finish: str | None = None, usage: dict | None = None) -> bytes:
    fields: dict = {"choices": [{"index": 0, "text": text, "finish_reason": finish}]}
    if usage is not None:
        fields["usage"] = usage
    return b"data: " + json.dumps(fields).encode() + b"\n\n"


def last(tokens: int, cached: int | None = None) -> bytes:
    usage: dict = {"completion_tokens": tokens, "prompt_tokens": 5}
    if cached is not None:
        usage["prompt_tokens_details"] = {"cached_tokens": cached}
    return b"data: " + json.dumps({"choices": [], "usage": usage}).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"


def times(*events: tuple[float, bytes], limit: int = 8) -> tuple[list[float], CompletionStream]:
    stream = CompletionStream(limit)
    for now, data in events:
        stream.feed(data, now)
    stream.close()
    stream.settle()
    return list(stream.times), stream


def test_chunk_without_usage_is_one_token() -> None:
    got, stream = times(
        (1.0, chunk()), (2.0, chunk()), (3.0, chunk("x", "length")), (3.1, last(3, 2)), (3.1, DONE)
    )
    assert got == [1.0, 2.0, 3.0]
    assert (stream.prompt_tokens, stream.cached_tokens) == (5, 2)
    assert (stream.finish, stream.done) == ({"type": "length"}, True)


def test_usage_in_every_chunk_gives_its_tokens() -> None:
    got, _ = times(
        (1.0, chunk(usage={"completion_tokens": 1})),
        (2.0, chunk(usage={"completion_tokens": 4})),
        (3.0, chunk("", "length", usage={"completion_tokens": 5})),
        (3.1, last(5)),
    )
    assert got == [1.0, 2.0, 2.0, 2.0, 3.0]


def test_usage_at_the_end_spreads_tokens_over_chunks() -> None:
    """Ten tokens in four chunks are spread evenly; the first and the last time are exact."""
    got, _ = times(*((float(i), chunk()) for i in range(1, 5)), (4.1, last(10)), limit=10)
    assert len(got) == 10
    assert (got[0], got[-1]) == (1.0, 4.0)
    assert got == sorted(got)
    assert {got.count(float(i)) for i in range(1, 5)} <= {2, 3}


def test_stream_without_usage_counts_chunks() -> None:
    got, _ = times((1.0, chunk("")), (2.0, chunk()), (3.0, chunk("x", "length")), (3.0, DONE))
    assert got == [2.0, 3.0]


def test_stream_cut_before_its_usage_counts_chunks() -> None:
    stream = CompletionStream(8)
    stream.feed(chunk(), 1.0)
    stream.feed(chunk(), 2.0)
    stream.settle()
    assert list(stream.times) == [1.0, 2.0]


def test_fewer_tokens_than_chunks_keep_first_and_last_time() -> None:
    got, _ = times((1.0, chunk()), (2.0, chunk()), (3.0, chunk()), (3.1, last(2)))
    assert got == [1.0, 3.0]


@pytest.mark.parametrize("data", [b"data: {}\n\n", b'data: {"choices": 3}\n\n', last(9)])
def test_malformed_chunks_are_errors(data: bytes) -> None:
    stream = CompletionStream(8)
    stream.feed(chunk(), 0.0)
    with pytest.raises(StreamError):
        stream.feed(data, 1.0)


def test_keep_alive_comments_are_no_tokens() -> None:
    assert times((0.5, b": ping\n\n"), (1.0, chunk()))[0] == [1.0]


@pytest.mark.parametrize("names", list(SLO_HEADERS))
def test_body_and_headers_have_the_openai_form(names: str) -> None:
    api = CompletionsApi("m", names, "secret")  # type: ignore[arg-type]  # a name from the parameters
    request = planned(0, output_tokens=7, ttft_ms=750, tpot_ms=40)
    body = json.loads(api.body(request, "r", b"[1,2,3]", [], True))
    assert (body["model"], body["prompt"], body["max_tokens"]) == ("m", [1, 2, 3], 7)
    assert body["ignore_eos"] is True
    assert body["stream_options"]["include_usage"] is True
    headers = api.headers(request, True)
    assert headers.pop("authorization") == "Bearer secret"
    assert list(headers) == list(SLO_HEADERS[names])
    assert [float(value) for value in headers.values()] == [750, 40][: len(headers)]
    assert set(api.headers(request, False)) == {"authorization"}


def test_excess_chunks_are_an_error_and_the_record_survives() -> None:
    """Without usage, only the end of the stream shows the excess."""
    stream = CompletionStream(2)
    for now in (1.0, 2.0, 3.0):
        stream.feed(chunk(), now)
    with pytest.raises(StreamError, match="3 tokens, 2 were requested"):
        stream.close()
    stream.settle()
    assert (stream.times[0], stream.times[-1], len(stream.times)) == (1.0, 3.0, 2)


@pytest.mark.parametrize(
    "data", [b'data: {"choices": ["x"]}\n\n', b'data: {"choices": [], "usage": [1]}\n\n']
)
def test_fields_of_another_shape_are_errors(data: bytes) -> None:
    with pytest.raises(StreamError, match="not a token event"):
        CompletionStream(8).feed(data, 1.0)


def test_last_chunk_may_carry_usage_with_or_without_text() -> None:
    chunks = [(float(i), chunk()) for i in range(1, 6)]
    end = chunk("", "length", usage={"completion_tokens": 5})
    assert times(*chunks, (6.0, end))[0] == [1.0, 2.0, 3.0, 4.0, 5.0]
    end = chunk("x", "length", usage={"completion_tokens": 6})
    assert times(*chunks, (6.0, end), (6.0, DONE))[0] == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]


@pytest.mark.parametrize("size", [1, 2, 3, 1000])
def test_crlf_lines_and_named_events_are_read(size: int) -> None:
    events = b": hello\n\n" + b"event: message\nid: 1\n" + chunk() + chunk() + last(2) + DONE
    data = events.replace(b"\n", b"\r\n")
    cuts = [data[i : i + size] for i in range(0, len(data), size)]
    got, stream = times(*((float(i), cut) for i, cut in enumerate(cuts)))
    assert len(got) == 2
    assert stream.done
