"""Values of which an engine of 0.5.23 dies or hangs are refused before they reach one.

An exception in the engine's scheduler or tokenizer loop ends the server and every request on it.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from re import _parser  # type: ignore[attr-defined]  # the engine bounds lengths with it, too
from typing import Any

import numpy as np
import orjson

from kairos.errors import InputError
from kairos.router.paths import CHAT, COMPLETIONS, GENERATE, RESPONSES

# They choose where an answer goes, replace a value that the engine computes itself, or name labels
# that its metrics do not have.
_INTERNAL_FIELDS = ("http_worker_ipc", "positional_embed_overrides", "lora_id", "custom_labels")
_SPACES = "spaces_between_special_tokens"
_MAX_TOP_K = 2**31 - 1
# With these, logits stay finite in single precision, also over the lowest temperature.
_MAX_BIAS = 1e30
_MIN_PENALTY = 1e-6
_ANY_VOCABULARY = 2**31
_TOP_LOGPROBS = {
    GENERATE: "top_logprobs_num",
    COMPLETIONS: "logprobs",
    CHAT: "top_logprobs",
    RESPONSES: "top_logprobs",
}
_MAX_TOP_LOGPROBS = 128
_GRAMMARS = ("json_schema", "regex", "ebnf", "structural_tag", "response_format", "tools", "text")
"""Fields that an engine compiles to a grammar; `text` does so on /v1/responses only."""
_MAX_NESTING = 100
"""Levels of brackets in a grammar. Compiling 500 takes seconds, and 30,000 end the process."""
_MAX_WAYS = 1_000
_MAX_GRAMMAR_BYTES = 1 << 20
_BRACKETS = np.zeros(256, np.int8)  # what each byte adds to the nesting
_BRACKETS[list(b"([{")], _BRACKETS[list(b")]}")] = 1, -1
_MANY = 100  # repetitions that one without an upper bound counts as


def check_fields(path: str, body: Mapping[str, Any]) -> None:
    """Check the fields of a body, apart from its sampling parameters.

    Raises:
        InputError: a field that only a server may set, or a value out of range.
    """
    _check_top_logprobs(body.get(_TOP_LOGPROBS[path]), _TOP_LOGPROBS[path])
    if path == CHAT:
        kwargs = body.get("chat_template_kwargs")
        if isinstance(kwargs, dict) and not isinstance(kwargs.get(_SPACES), bool | None):
            raise InputError(f"chat_template_kwargs.{_SPACES}: it must be true or false")
    if path != GENERATE:
        return
    for name in _INTERNAL_FIELDS:
        if body.get(name) is not None:
            raise InputError(f"{name}: clients cannot set it; leave it out")
    _check_range("logprob_start_len", each(body.get("logprob_start_len")), -1)
    session = body.get("session_params")
    if isinstance(session, dict) and not isinstance(session.get("id"), str | None):
        raise InputError("session_params.id: it must be a text")


def check_ids(
    path: str, body: Mapping[str, Any], vocab_size: int | None, context_tokens: int | None
) -> None:
    """Check that prompts of token ids are of the model's vocabulary and fit its context.

    Args:
        path: of the endpoint.
        vocab_size: of the engines' model; None where not known.
        context_tokens: longest prompt; None where not known.

    Raises:
        InputError: a prompt is too long, or a token id is outside the vocabulary.
    """
    high = (vocab_size or _ANY_VOCABULARY) - 1
    names = ("input_ids", "token_ids_logprob") if path == GENERATE else ("prompt", "input_ids")
    for name in names:
        value = body.get(name)
        if not isinstance(value, list):
            continue
        for ids in value if value and isinstance(value[0], list) else [value]:
            types = set(map(type, ids)) if isinstance(ids, list) else {list}
            if name == "prompt" and ids is value and types == {str}:
                continue  # a batch of texts
            if not types <= {int}:  # the engine reads some texts and floats as numbers
                raise InputError(f"{name}: token ids must be whole numbers")
            if context_tokens is not None and len(ids) > context_tokens:
                raise InputError(
                    f"{name}: {len(ids)} tokens; the model takes at most {context_tokens}"
                )
            if ids and not (min(ids) >= 0 and max(ids) <= high):
                raise InputError(f"{name}: a token id is outside the vocabulary, 0 to {high}")


def check_sampling(path: str, body: Mapping[str, Any], vocab_size: int | None) -> None:
    """Check the sampling parameters of a body.

    Args:
        path: of the endpoint; outside /generate the parameters are fields of the body.
        vocab_size: of the engines' model; None where not known.

    Raises:
        InputError: a value is out of range.
    """
    if path != GENERATE:
        _check(body, "", vocab_size, grammars=_GRAMMARS if path == RESPONSES else _GRAMMARS[:-1])
        return
    for one in each(body.get("sampling_params")):
        if isinstance(one, dict):
            _check(one, "sampling_params.", vocab_size)


def _check_top_logprobs(value: Any, name: str) -> None:
    for one in each(value):
        if isinstance(one, str):  # the engine may read it as a number
            raise InputError(f"{name}: it must be a whole number")
        is_number = isinstance(one, int | float) and not isinstance(one, bool)
        if is_number and not 0 <= one <= _MAX_TOP_LOGPROBS:
            raise InputError(f"{name}: {one} is not allowed; allowed are 0 to {_MAX_TOP_LOGPROBS}")


def _check(
    params: Mapping[str, Any],
    where: str,
    vocab_size: int | None,
    grammars: Sequence[str] = _GRAMMARS[:4],
) -> None:
    for name in grammars:
        if params.get(name) is not None:
            _check_grammar(params[name], f"{where}{name}")
    _check_range(f"{where}top_k", [params.get("top_k")], -1, _MAX_TOP_K)
    penalty = params.get("repetition_penalty")
    _check_range(f"{where}repetition_penalty", [penalty], _MIN_PENALTY)
    # With a least number of tokens they are positions in a table of the vocabulary.
    tokens = params.get("stop_token_ids")
    if isinstance(tokens, list):
        high = (vocab_size or _ANY_VOCABULARY) - 1
        _check_range(f"{where}stop_token_ids", tokens, 0, high)
    bias = params.get("logit_bias")
    if isinstance(bias, dict):
        _check_range(f"{where}logit_bias", bias.values(), -_MAX_BIAS, _MAX_BIAS)
    for pattern in each(params.get("stop_regex")):
        if isinstance(pattern, str):
            _check_stop_regex(pattern, f"{where}stop_regex")


def _check_grammar(grammar: Any, where: str) -> None:
    """Refuse a grammar whose compilation ends or blocks an engine."""
    text = grammar.encode() if isinstance(grammar, str) else orjson.dumps(grammar)
    if len(text) > _MAX_GRAMMAR_BYTES:
        raise InputError(f"{where}: {len(text)} bytes; allowed are {_MAX_GRAMMAR_BYTES}")
    steps = _BRACKETS[np.frombuffer(text, np.uint8)]
    # A closing bracket that is text, as in [)], must hide none of those behind it.
    depth = steps.cumsum(dtype=np.int32)
    if (depth - np.minimum.accumulate(np.minimum(depth, 0))).max(initial=0) > _MAX_NESTING:
        raise InputError(
            f"{where}: brackets are nested too deeply; allowed are {_MAX_NESTING} levels"
        )


def each(value: Any) -> list[Any]:
    """The values of a field that holds one, or a list of them."""
    return value if isinstance(value, list) else [value]


def _check_range(name: str, values: Iterable[Any], low: float, high: float = math.inf) -> None:
    """Refuse what is no number in a range: the engine reads some texts as numbers."""
    for value in values:
        if value is None or (isinstance(value, int | float) and low <= value <= high):
            continue
        allowed = f"{low} or more" if high == math.inf else f"{low} to {high}"
        raise InputError(f"{name}: {value} is not allowed; allowed are {allowed}")


def _check_stop_regex(pattern: str, where: str) -> None:
    """Refuse a pattern whose search may take exponential time: it runs after every token."""
    try:
        ways = _ways(_parser.parse(pattern))
    except (re.error, RecursionError, OverflowError) as error:
        raise InputError(f"{where}: not a regular expression: {error}") from None
    if ways > _MAX_WAYS:
        raise InputError(
            f"{where}: {pattern!r} can match one text in too many ways; use one repetition without "
            "an upper bound at most, and neither repetitions nor alternatives inside of it"
        )


def _ways(parsed: Any) -> int:
    """Ways in which a pattern can match, at most; more than `_MAX_WAYS` stands for any number."""
    ways = 1
    for code, value in parsed:
        ways *= _ways_of(code, value)
        if ways > _MAX_WAYS:
            break
    return ways


def _ways_of(code: Any, value: Any) -> int:
    if code in (_parser.MAX_REPEAT, _parser.MIN_REPEAT):
        low, high, inner = value
        return int(_ways(inner) ** min(high, _MANY)) + int(min(high - low, _MANY))
    if code is _parser.SUBPATTERN:
        return _ways(value[-1])
    if code is _parser.BRANCH:
        return sum(map(_ways, value[1]))
    if code in (_parser.ASSERT, _parser.ASSERT_NOT):
        return _ways(value[1])
    return 1
