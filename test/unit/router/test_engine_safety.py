"""Values of which an engine dies or hangs are refused, and ordinary ones pass."""

import re
import time
from collections.abc import Callable
from typing import Any

import orjson
import pytest

from kairos.router.config.settings import Limits
from kairos.router.edge.errors import RequestError
from kairos.router.paths import CHAT, COMPLETIONS, GENERATE, RESPONSES
from kairos.router.request import parsing
from kairos.router.request.parsing import ParsedRequest

LIMITS = Limits(max_sequences=128, max_body_mib=1)
MODEL_LIMITS = 1024, None


def read(path: str, **body: Any) -> ParsedRequest:
    raw = orjson.dumps(body)
    size = parsing.memory_of(raw)
    return parsing.read(path, raw, parsing.load(raw), size, LIMITS, MODEL_LIMITS)


def sampled(**params: Any) -> ParsedRequest:
    return read(GENERATE, text="a", sampling_params=params)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("top_k", 2**31),
        ("stop_token_ids", [5000]),
        ("stop_token_ids", [-1]),
        ("stop_token_ids", ["5000"]),
        ("top_k", "3000000000"),
        ("repetition_penalty", 1e-38),
        ("logit_bias", {"30": 1e38}),
        ("logit_bias", {"30": "-1e38"}),
        ("stop_regex", "(.+)+x"),
        ("stop_regex", ["a", "(.+)+x"]),
    ],
)
def test_a_sampling_parameter_that_ends_a_scheduler_is_refused(name: str, value: Any) -> None:
    with pytest.raises(RequestError, match=rf"sampling_params\.{name}.*: "):
        sampled(**{name: value})
    with pytest.raises(RequestError, match=name):
        read(GENERATE, text=["a", "b"], sampling_params=[{}, {name: value}])


def nested(levels: int) -> str:
    return "(" * levels + "a" + ")" * levels


def schema(levels: int) -> str:
    return '{"items":' * levels + '{"type":"string"}' + "}" * levels


@pytest.mark.parametrize(
    ("name", "grammar"),
    [
        ("regex", nested),
        ("regex", lambda levels: "a)" * levels + nested(levels)),
        ("ebnf", lambda levels: f"root ::= {nested(levels)}"),
        ("json_schema", schema),
        ("json_schema", lambda levels: orjson.dumps({"pattern": nested(levels)}).decode()),
    ],
)
def test_a_grammar_that_ends_or_blocks_an_engine_is_refused(
    name: str, grammar: Callable[[int], str]
) -> None:
    sampled(**{name: grammar(50)})
    with pytest.raises(RequestError, match=rf"^sampling_params\.{name}: .* allowed are 100 levels"):
        sampled(**{name: grammar(200)})
    with pytest.raises(RequestError):
        sampled(**{name: grammar(100_000)})


def test_a_grammar_beyond_a_mebibyte_is_refused() -> None:
    sampled(regex="a" * (1 << 20))
    with pytest.raises(RequestError, match=r"^sampling_params\.regex: .* allowed are 1048576"):
        sampled(regex="a" * ((1 << 20) + 1))


def test_grammars_of_the_other_endpoints_are_checked_too() -> None:
    messages = [{"role": "user", "content": nested(200)}]
    read(CHAT, messages=messages)
    deep = {"type": "json_schema", "json_schema": {"schema": {"pattern": nested(200)}}}
    tool = {"type": "function", "function": {"name": "f", "parameters": {"pattern": nested(200)}}}
    for path, body in (
        (CHAT, {"response_format": deep}),
        (CHAT, {"tools": [tool]}),
        (COMPLETIONS, {"regex": nested(200)}),
        (RESPONSES, {"text": {"format": deep}}),
    ):
        with pytest.raises(RequestError, match=f"^{next(iter(body))}: brackets"):
            read(path, prompt="a", messages=messages, input="a", **body)


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("top_k", 2**31),
        ("logit_bias", {"30": -1e38}),
        ("stop_token_ids", [5000]),
        ("stop_regex", "(.+)+x"),
    ],
)
def test_the_other_endpoints_refuse_them_too(path: str, name: str, value: Any) -> None:
    messages = [{"role": "user", "content": "a"}]
    with pytest.raises(RequestError, match=f"^{name}"):
        read(path, prompt="a", messages=messages, **{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("logprob_start_len", -2),
        ("logprob_start_len", [-1, -5]),
        ("session_params", {"id": [1]}),
        ("logprob_start_len", "-5"),
        ("positional_embed_overrides", [1]),
        ("custom_labels", {"a": "b"}),
        ("http_worker_ipc", "ipc:///a"),
        ("lora_id", "a"),
    ],
)
def test_a_field_that_ends_a_server_is_refused(name: str, value: Any) -> None:
    with pytest.raises(RequestError, match=f"^{name}"):
        read(GENERATE, text=["a", "b"], **{name: value})


def test_a_template_argument_that_ends_a_detokenizer_is_refused() -> None:
    messages = [{"role": "user", "content": "a"}]
    name = "spaces_between_special_tokens"
    assert read(CHAT, messages=messages, chat_template_kwargs={name: False}).sequences == 1
    with pytest.raises(RequestError, match=rf"^chat_template_kwargs\.{name}"):
        read(CHAT, messages=messages, chat_template_kwargs={name: {"a": 1}})


def test_ordinary_sampling_parameters_pass() -> None:
    params = {
        "max_new_tokens": None,
        "min_new_tokens": 2,
        "temperature": 0.7,
        "top_k": -1,
        "stop": ["a"],
        "stop_token_ids": [5, 1023],
        "stop_regex": [r"\n\n+", "(yes|no)[.!?]"],
        "repetition_penalty": 1.05,
        "logit_bias": {"30": -100, "31": 5.5},
        "regex": "a+",
        "skip_special_tokens": False,
        "custom_params": {"a": 1},
        "unknown": {},
    }
    assert sampled(**params).sequences == 1
    assert read(COMPLETIONS, prompt="a", top_k=5, logit_bias={"1": 0.5}).sequences == 1


@pytest.mark.parametrize(
    "pattern", ["(.+)+x", ".*.*.*x", "a?" * 30 + "a" * 30, "(a|ab)*x", "(a?){30}a{30}", "("]
)
def test_a_stop_regex_that_may_take_exponential_time_is_refused(pattern: str) -> None:
    with pytest.raises(RequestError, match="stop_regex"):
        sampled(stop_regex=pattern)


@pytest.mark.parametrize("pattern", [r"\n\n+", "(yes|no)\\b", "(ab|cd){1,3}", r"[.!?]\s", "(a*)?b"])
def test_an_accepted_stop_regex_is_searched_fast(pattern: str) -> None:
    assert sampled(stop_regex=pattern).sequences == 1
    begun_s = time.process_time()
    re.search(pattern + "\x01", "aab\n " * 400)
    assert time.process_time() - begun_s < 0.5


@pytest.mark.parametrize("ids", [["5000"], [5000.0], [True], [1, [5000]], [[5000.0]], [[1], 5000]])
@pytest.mark.parametrize(
    ("path", "name"), [(GENERATE, "input_ids"), (COMPLETIONS, "prompt"), (CHAT, "input_ids")]
)
def test_token_ids_are_whole_numbers(path: str, name: str, ids: Any) -> None:
    if path == COMPLETIONS and ids == ["5000"]:
        assert read(path, prompt=ids).batch == 1  # a text
        return
    messages = [{"role": "user", "content": "a"}]
    with pytest.raises(RequestError, match=f"^{name}: token ids"):
        read(path, **{"messages": messages, name: ids})


@pytest.mark.parametrize(("path", "name"), [(COMPLETIONS, "logprobs"), (CHAT, "top_logprobs")])
def test_a_number_of_logprobs_is_no_text(path: str, name: str) -> None:
    messages = [{"role": "user", "content": "a"}]
    with pytest.raises(RequestError, match=f"^{name}"):
        read(path, prompt="a", messages=messages, **{name: "200"})
