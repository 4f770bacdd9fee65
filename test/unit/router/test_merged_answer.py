"""Answers of two servers become the answer of one."""

from typing import Any

import orjson

from kairos.router.upstream.merged_answer import CompletionMerge, GenerateMerge


def logprobs(*tokens: str) -> dict[str, list[Any]]:
    count = len(tokens)
    return {
        "tokens": list(tokens),
        "token_logprobs": [-1.0] * count,
        "top_logprobs": [None] * count,
        "text_offset": [-1] * count,
    }


def event(index: int, *tokens: str) -> bytes:
    choice = {"index": index, "text": tokens[-1], "logprobs": logprobs(*tokens)}
    return b"data: " + orjson.dumps({"choices": [choice], "usage": None}) + b"\n\n"


def usage(prompt: int, completion: int) -> bytes:
    told = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": 0}
    return b"data: " + orjson.dumps({"choices": [], "usage": told}) + b"\n\n"


def choices(events: bytes) -> list[list[str]]:
    found = [orjson.loads(part[6:]) for part in events.split(b"\n\n") if part]
    return [one["choices"][0]["logprobs"]["tokens"] for one in found if one["choices"]]


def test_logprobs_of_the_prompt_go_in_front_of_each_choice_once() -> None:
    merge = CompletionMerge(event(0, "p", "q", "x") + event(1, "r", "y"), 1, False)
    sent = merge(event(1, "y") + event(0, "x")) + merge(event(0, "z"))
    assert choices(sent) == [["r", "y"], ["p", "q", "x"], ["z"]]


def test_the_prompt_of_several_samples_is_counted_once() -> None:
    merge = CompletionMerge(b"", 3, False)
    (told,) = [orjson.loads(part[6:]) for part in merge(usage(30, 12)).split(b"\n\n") if part]
    assert told["usage"] == {"prompt_tokens": 10, "completion_tokens": 12, "total_tokens": 22}


def test_usage_that_the_client_did_not_ask_for_is_hidden() -> None:
    merge = CompletionMerge(b"", 3, True)
    assert merge(event(0, "x") + usage(30, 12)) == event(0, "x")


def test_logprobs_of_chosen_ids_at_the_first_token_are_the_prefill_servers() -> None:
    def answer(*rows: object) -> bytes:
        meta = {"output_token_ids_logprobs": list(rows)}
        return b"data: " + orjson.dumps({"index": 0, "meta_info": meta}) + b"\n\n"

    merge = GenerateMerge(answer([-1.0, 5, None]))
    assert merge(answer(None, [-2.0, 5, None])) == answer([-1.0, 5, None], [-2.0, 5, None])
    assert merge(answer([-3.0, 5, None])) == answer([-3.0, 5, None])
