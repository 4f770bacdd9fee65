"""Token times from event streams, cut anywhere."""

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kairos.replay.client.stream import StreamError, TokenStream


def event(count: int, finish: object = None, ids: int = 1, **fields: object) -> bytes:
    meta: dict[str, object] = {"completion_tokens": count, "finish_reason": finish}
    meta |= {"prompt_tokens": 9, "cached_tokens": 7} | fields
    return b"data: " + json.dumps({"output_ids": [1] * ids, "meta_info": meta}).encode() + b"\n\n"


LENGTH = {"type": "length", "length": 3}
DONE = b"data: [DONE]\n\n"


def test_each_token_gets_the_time_of_its_event() -> None:
    stream = TokenStream(4)
    for at, data in ((1.0, event(1)), (1.5, event(2)), (2.5, event(4, LENGTH) + DONE)):
        stream.feed(data, at)
    stream.close()
    assert list(stream.times) == [1.0, 1.5, 2.5, 2.5]
    assert stream.finish == LENGTH
    assert (stream.prompt_tokens, stream.cached_tokens) == (9, 7)
    assert stream.done


def test_cumulative_and_incremental_streams_are_equal() -> None:
    times = []
    for cumulative in (False, True):
        stream = TokenStream(3)
        for count in (1, 2, 3):
            stream.feed(event(count, ids=count if cumulative else 1), float(count))
        times.append(list(stream.times))
    assert times[0] == times[1] == [1.0, 2.0, 3.0]


def test_event_without_a_new_token_adds_none() -> None:
    stream = TokenStream(3)
    stream.feed(event(1) + event(1), 1.0)
    assert list(stream.times) == [1.0]


@given(st.lists(st.integers(0, 400), max_size=8))
def test_any_cut_gives_the_same_tokens(cuts: list[int]) -> None:
    data = event(1) + event(2, note="a\n\u00e9") + event(3, LENGTH) + DONE
    stream = TokenStream(3)
    places = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    for start, end in itertools.pairwise(places):
        stream.feed(data[start:end], 1.0)
    stream.close()
    assert len(stream.times) == 3
    assert stream.done


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"<html>\n\n", "not an event: '<html>'"),
        (b"data: {oops\n\n", "not a token event"),
        (b"data: [1]\n\n", "not a token event"),
        (b"data: null\n\n", "not a token event"),
        (b'data: {"text": "x"}\n\n', "not a token event"),
        (b'data: {"meta_info": {"completion_tokens": "x", "finish_reason": null}}\n\n', "not a"),
        (b'data: {"error": {"message": "no room"}}\n\n', "error event.*no room"),
        (event(1, cached_tokens="many"), "not a token event"),
        (event(9), "9 tokens, 3 were requested"),
    ],
)
def test_malformed_events_are_errors(data: bytes, says: str) -> None:
    with pytest.raises(StreamError, match=says):
        TokenStream(3).feed(data, 0.0)


def test_incomplete_event_is_an_error_at_the_end() -> None:
    stream = TokenStream(3)
    stream.feed(event(1) + b'data: {"meta', 0.0)
    with pytest.raises(StreamError, match="stream ended with"):
        stream.close()
    assert len(stream.times) == 1


def test_error_text_is_short_and_escaped() -> None:
    with pytest.raises(StreamError) as caught:
        TokenStream(3).feed(b"\x1b[31m" + b"x" * 1000 + b"\n\n", 0.0)
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 300
