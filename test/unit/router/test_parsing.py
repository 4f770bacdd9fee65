"""What is read from a body, and how far what it costs is bounded."""

from typing import Any

import orjson
import pytest

from kairos.router.config.settings import Limits
from kairos.router.edge.errors import RequestError
from kairos.router.paths import CHAT, COMPLETIONS, GENERATE, RESPONSES
from kairos.router.request import parsing
from kairos.router.request.engine_body import encode_engine_body, slo_fields
from kairos.router.request.parsing import MAX_ELEMENTS, ParsedRequest
from kairos.router.upstream.rooms import Transfer
from kairos.router.workers.endpoint import WorkerEndpoint
from kairos.slo import Slo

LIMITS = Limits(max_sequences=128, max_body_mib=1)


def parsed(path: str, raw: bytes) -> ParsedRequest:
    size = parsing.memory_of(raw)
    return parsing.read(path, raw, parsing.load(raw), size, LIMITS, (None, None))


def read(path: str, **body: Any) -> ParsedRequest:
    return parsed(path, orjson.dumps(body))


@pytest.mark.parametrize("part", [b"{}", b"[]", b'{"a":1}', b"[[]]", b"1"])
def test_more_values_than_may_be_parsed_are_refused(part: bytes) -> None:
    raw = b'{"text":"a","x":[' + b",".join([part] * MAX_ELEMENTS) + b"]}"
    with pytest.raises(RequestError, match="values"):
        parsing.memory_of(raw)


def test_samples_of_a_body_are_bounded_by_what_is_written_out() -> None:
    params = {"n": 100}
    assert read(GENERATE, text="a" * 1000, sampling_params=params).sequences == 100
    for path, body in (
        (GENERATE, {"text": "a" * 20_000, "sampling_params": params}),
        (COMPLETIONS, {"prompt": "a" * 20_000, "n": 100}),
    ):
        with pytest.raises(RequestError, match="samples of this body"):
            read(path, **body)


def test_memory_is_charged_for_every_sample() -> None:
    one = read(GENERATE, text="a" * 1000, sampling_params={"n": 1})
    many = read(GENERATE, text="a" * 1000, sampling_params={"n": 50})
    assert many.size >= 50 * one.size * 0.9


@pytest.mark.parametrize(
    "name", ["sampling_params", "return_logprob", "top_logprobs_num", "lora_path", "extra_key"]
)
def test_a_list_has_one_value_per_prompt(name: str) -> None:
    value = {"sampling_params": {}, "top_logprobs_num": 1, "return_logprob": True}.get(name, "a")
    assert read(GENERATE, text=["a", "b"], **{name: [value] * 2}).batch == 2
    for texts, count in ((["a", "b"], 3), ("a", 1), ("a", 1000)):
        with pytest.raises(RequestError, match=name):
            read(GENERATE, text=texts, **{name: [value] * count})


@pytest.mark.parametrize("number", [b"9223372036854775808000", b"-99999999999999999999"])
@pytest.mark.parametrize("body", [b'{"text":"a","x":%b}', b'{"text":"a","x":[1,{"y":%b}]}'])
def test_whole_numbers_beyond_64_bits_are_refused(body: bytes, number: bytes) -> None:
    with pytest.raises(RequestError, match="beyond 64 bits"):
        parsed(GENERATE, body % number)


@pytest.mark.parametrize(
    "number", [b"9223372036854775807", b"1e300", b"0.12345678901234567890123", b"true"]
)
def test_other_numbers_are_allowed(number: bytes) -> None:
    assert parsed(GENERATE, b'{"text":"a","x":[%b]}' % number).sequences == 1


def test_digits_in_a_text_are_no_number() -> None:
    assert read(GENERATE, text=": 99999999999999999999", x=1.5).sequences == 1


def test_embeddings_of_a_prompt_are_one_prompt() -> None:
    assert read(GENERATE, input_embeds=[[0.5, 0.5]] * 3).batch is None
    assert read(GENERATE, input_embeds=[[[0.5]] * 3, [[0.5]]]).batch == 2


def test_a_null_limit_falls_back_to_the_older_name() -> None:
    messages = [{"role": "user", "content": "a"}]
    request = read(CHAT, messages=messages, max_completion_tokens=None, max_tokens=7)
    assert request.max_output_tokens == 7


@pytest.mark.parametrize("path", [GENERATE, COMPLETIONS, CHAT])
def test_hashes_of_media_never_reach_an_engine(path: str) -> None:
    messages = [{"role": "user", "content": "a"}]
    body = {"text": "a", "prompt": "a", "messages": messages, "mm_hashes": ["x"]}
    assert "mm_hashes" not in read(path, **body).body


@pytest.mark.parametrize(
    ("path", "body", "place"),
    [
        (GENERATE, {"text": "a"}, ("sampling_params", "custom_params")),
        (COMPLETIONS, {"prompt": "a"}, ("custom_params",)),
        (CHAT, {"messages": [{"role": "user", "content": "a"}]}, ("custom_params",)),
        (RESPONSES, {"input": "a"}, ()),
    ],
)
def test_the_servers_get_the_applied_slo(
    path: str, body: dict[str, Any], place: tuple[str, ...]
) -> None:
    applied = slo_fields(Slo(500.0, 30.0, "fast"), 0.0, with_class=True)
    sent = encode_engine_body(
        read(path, **body),
        applied,
        WorkerEndpoint("prefill", "http://127.0.0.1:1"),
        Transfer(("r",), (1,)),
    )
    holder = orjson.loads(sent)
    for name in place:
        holder = holder[name]
    assert holder["kairos"] == applied
