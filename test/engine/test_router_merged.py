"""A pair behind the router answers as one server does: real weights, temperature 0."""

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import aiohttp
import orjson
import pytest
from engine.test_router import router

from kairos.cluster import Cluster
from kairos.router.paths import CHAT, COMPLETIONS, GENERATE, RESPONSES
from support.clusters import ClusterPool, Config, on

PAIR = Config(platform="cpu")
SINGLE = Config(platform="cpu", prefill=0, decode=0)
# They differ between two runs of one server.
VOLATILE = {
    *("id", "rid", "created", "created_at", "completed_at", "e2e_latency", "weight_version"),
    *("cached_tokens", "cached_tokens_details", "request_id", "item_id", "metadata"),
    "response_sent_to_client_ts",
}
WORDS = "one two three four five six"
GREEDY = {"temperature": 0, "ignore_eos": True, "max_new_tokens": 6}
TEXT: dict[str, Any] = {"prompt": WORDS, "temperature": 0, "max_tokens": 6, "ignore_eos": True}
MESSAGES = [{"role": "user", "content": WORDS}]
TALK: dict[str, Any] = {"messages": MESSAGES, "temperature": 0, "max_tokens": 6, "ignore_eos": True}
USAGE = {"stream_options": {"include_usage": True}}
IDS = list(range(20, 40))
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
TOOL = {"type": "function", "function": {"name": "f", "parameters": SCHEMA}}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "generate": (GENERATE, {"input_ids": IDS}),
    "generate text": (GENERATE, {"text": WORDS}),
    "generate n": (GENERATE, {"input_ids": IDS, "sampling_params": {**GREEDY, "n": 3}}),
    "generate batch": (GENERATE, {"input_ids": [IDS, IDS[:7]]}),
    "generate batch n": (
        GENERATE,
        {"input_ids": [IDS, IDS[:7]], "sampling_params": {**GREEDY, "n": 2}},
    ),
    "generate logprobs": (GENERATE, {"input_ids": IDS, "return_logprob": True}),
    "generate prompt logprobs": (
        GENERATE,
        {"input_ids": IDS, "return_logprob": True, "logprob_start_len": 0, "top_logprobs_num": 2},
    ),
    "generate batch logprobs": (
        GENERATE,
        {
            "input_ids": [IDS, IDS[:7]],
            "return_logprob": True,
            "logprob_start_len": 0,
            "token_ids_logprob": [[5, 6], [5, 6]],
        },
    ),
    "completions": (COMPLETIONS, TEXT),
    "completions n": (COMPLETIONS, {**TEXT, "n": 3}),
    "completions batch": (COMPLETIONS, {**TEXT, "prompt": [WORDS, "a b"]}),
    "completions batch n": (COMPLETIONS, {**TEXT, "prompt": [WORDS, "a b"], "n": 2}),
    "completions ids": (COMPLETIONS, {**TEXT, "prompt": IDS}),
    "completions stop": (COMPLETIONS, {**TEXT, "max_tokens": 20, "stop": ["e"]}),
    "completions echo": (COMPLETIONS, {**TEXT, "echo": True}),
    "completions echo n": (COMPLETIONS, {**TEXT, "echo": True, "n": 2}),
    "completions logprobs": (COMPLETIONS, {**TEXT, "logprobs": 2}),
    "completions echo logprobs": (COMPLETIONS, {**TEXT, "echo": True, "logprobs": 2}),
    "completions echo logprobs batch n": (
        COMPLETIONS,
        {**TEXT, "prompt": [WORDS, "a b"], "echo": True, "logprobs": 2, "n": 2},
    ),
    "chat": (CHAT, TALK),
    "chat logprobs": (CHAT, {**TALK, "logprobs": True, "top_logprobs": 2}),
    "chat stop": (CHAT, {**TALK, "max_tokens": 20, "stop": ["e"]}),
    "chat tools": (CHAT, {**TALK, "tools": [TOOL]}),
    "chat schema": (
        CHAT,
        {
            **TALK,
            "max_tokens": 30,
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "s", "schema": SCHEMA},
            },
        },
    ),
    "responses": (
        RESPONSES,
        {"input": WORDS, "temperature": 0, "max_output_tokens": 6},
    ),
}


@pytest.fixture(scope="module")
def single(clusters: ClusterPool) -> Iterator[str]:
    """The address of one server beside the pair."""
    with clusters.beside(SINGLE) as server:
        yield server.url


def stable(value: Any) -> Any:
    """A document without what differs between two runs of one server."""
    if isinstance(value, dict):
        return {k: stable(v) for k, v in value.items() if k not in VOLATILE}
    if isinstance(value, list):
        return [stable(one) for one in value]
    return round(value, 3) if isinstance(value, float) else value


def collected(path: str, text: str) -> Any:
    """What a stream tells in all, however it was cut into events."""
    assert text.endswith("data: [DONE]\n\n") or path == RESPONSES
    told: dict[Any, Any] = defaultdict(list)
    for event in text.split("\n\n"):
        line = event.partition("data: ")[2]
        if not line or line == "[DONE]":
            continue
        document = orjson.loads(line)
        if path == GENERATE:
            told[document.get("index", 0)] = stable(document)  # each event repeats all before it
        elif path == RESPONSES:
            told["response"] = stable(document.get("response", document))
        else:
            told["usage"].append(document.get("usage"))
            for choice in document["choices"]:
                place = told.setdefault(choice["index"], defaultdict(list))
                for name, value in stable(choice).items():
                    _collect(place, name, value)
    told["usage"] = [one for one in told["usage"] if one]
    return {key: dict(value) if isinstance(value, defaultdict) else value for key, value in
            told.items()}  # fmt: skip


def _collect(place: dict[str, Any], name: str, value: Any) -> None:
    if isinstance(value, dict):
        for inner, part in value.items():
            _collect(place, f"{name}.{inner}", part)
    elif isinstance(value, str):
        place[name] = (place.get(name) or "") + value
    elif isinstance(value, list):
        place[name] = [*(place.get(name) or []), *value]
    elif value is not None:
        place[name] = value


async def asked(session: Any, url: str, path: str, body: dict[str, Any]) -> Any:
    if path == RESPONSES:  # the only endpoint that insists on the model's name
        async with session.get(f"{url}/v1/models") as answer:
            body = {**body, "model": (await answer.json())["data"][0]["id"]}
    async with session.post(url + path, json=body) as answer:
        text = await answer.text()
        assert answer.status == 200, text
    return collected(path, text) if body.get("stream") else stable(orjson.loads(text))


@pytest.mark.long
@on(PAIR)
@pytest.mark.parametrize("stream", ["whole", "stream", "stream with usage"])
@pytest.mark.parametrize("case", CASES)
async def test_answers_of_a_pair_are_those_of_one_server(
    cluster: Cluster, single: str, case: str, stream: str
) -> None:
    path, body = CASES[case]
    if path == GENERATE:
        body = {"sampling_params": GREEDY, **body}
    if stream != "whole":
        body = {**body, "stream": True}
    if stream == "stream with usage":
        if path not in (COMPLETIONS, CHAT):
            pytest.skip("these endpoints have no such option: they always report usage")
        body |= USAGE
    async with router(cluster) as up, aiohttp.ClientSession() as session:
        expected = await asked(session, single, path, body)
        found = await asked(session, up.url, path, body)
        await up.quiet()
    assert found == expected
