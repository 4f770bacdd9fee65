"""What the router needs of a client's body."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import orjson

from kairos.errors import InputError
from kairos.router.config.settings import Limits
from kairos.router.edge.errors import invalid
from kairos.router.paths import CHAT, COMPLETIONS, GENERATE, RESPONSES
from kairos.router.request.engine_safety import check_fields, check_ids, check_sampling, each
from kairos.slo import SloRequest, from_mapping

SLO_KEY = "kairos"
# What a client must not choose: where the servers find each other, what a request is known by,
# which rank or which place in a queue it gets, and by what its images are cached.
_STRIPPED = frozenset(
    {
        "bootstrap_host",
        "bootstrap_port",
        "bootstrap_room",
        "bootstrap_pair_key",
        "decode_tp_size",
        "rid",
        "request_id",
        "routed_dp_rank",
        "disagg_prefill_dp_rank",
        "data_parallel_rank",
        "data_parallel_rank_decode",
        "priority",
        "mm_hashes",
        SLO_KEY,
    }
)
# Fields of /generate that hold one value, or a list with one per prompt.
_SCALAR_OR_PER_PROMPT = (
    "sampling_params",
    "return_logprob",
    "logprob_start_len",
    "top_logprobs_num",
    "lora_path",
    "custom_logit_processor",
    "extra_key",
    "cache_salt",
)
_PER_PROMPT = ("text", "input_ids", "token_ids_logprob", *_SCALAR_OR_PER_PROMPT)
_UNEXPANDABLE = ("input_embeds", "image_data", "video_data", "audio_data")
_DEFAULT_TOKENS = {GENERATE: 128, COMPLETIONS: 16, CHAT: 4096, RESPONSES: 4096}
MAX_ELEMENTS = 500_000
"""Values in a body. Parsing more would hold the event loop for longer than other requests may
wait."""
# The time that each takes, in values.
_OBJECT_ELEMENTS = 12
_LIST_ELEMENTS = 10
_KEY_ELEMENTS = 4
_ESCAPES_PER_ELEMENT = 10
_LARGE_BYTES = 1 << 16
_ELEMENT_BYTES = 48  # of a parsed value, about
_MAX_TOKENS = 1 << 24
_MODEL_CHARS = 256
_DEPTH = 254  # what can be written of what can be read
_WRAPPED = 2  # levels that the router may add
_LONG_NUMBER = re.compile(rb"[\[:,\s]-?\d{19,}")


class ParsedRequest(msgspec.Struct, frozen=True, gc=False):
    """A body and what the router needs of it.

    Attributes:
        body: as parsed, without what clients must not choose; emptied when it has been served.
        asked: the SLO that the body asks for.
        batch: prompts in the body if it is a batch, None for a single one.
        sequences: generations it asks for.
        samples: of each prompt.
        max_output_tokens: of all sequences together.
        merge_logprobs: the prefill server's logprobs belong in front of the decode server's.
        hide_usage: the stream reports usage to the router only; the client did not ask for it.
        size: memory that it takes, bytes.
    """

    path: str
    body: dict[str, Any]
    asked: SloRequest
    stream: bool
    batch: int | None
    sequences: int
    samples: int
    max_output_tokens: int
    model: str | None
    merge_logprobs: bool
    hide_usage: bool
    size: int


def memory_of(raw: bytes) -> int:
    """Memory that a body takes once it is parsed, bytes, about.

    Raises:
        RequestError: 413; more values than may be parsed.
    """
    # Characters within strings count too, because finding the strings would take longer.
    commas, colons, quotes, objects, lists, escapes = _occurrences(raw, b',:"{[\\')
    elements = (
        commas
        + _KEY_ELEMENTS * min(colons, quotes // 2)
        + _OBJECT_ELEMENTS * objects
        + _LIST_ELEMENTS * lists
        + escapes // _ESCAPES_PER_ELEMENT
    )
    if elements > MAX_ELEMENTS:
        raise invalid(
            413,
            "body_elements",
            f"body: more than {MAX_ELEMENTS} values (an object counts as {_OBJECT_ELEMENTS}, a "
            f"list as {_LIST_ELEMENTS}, a key as {_KEY_ELEMENTS}, {_ESCAPES_PER_ELEMENT} escapes "
            "as one); send shorter lists, or several requests",
        )
    return len(raw) + _ELEMENT_BYTES * elements


def _occurrences(raw: bytes, characters: bytes) -> list[int]:
    if len(raw) < _LARGE_BYTES:
        return [raw.count(character) for character in characters]
    # bytes.count takes ten times as long where most characters match.
    values = np.frombuffer(raw, np.uint8)
    return [int(np.count_nonzero(values == character)) for character in characters]


def load(raw: bytes) -> dict[str, Any]:
    """Parse a body that was measured.

    Raises:
        RequestError: 400; it is no JSON object.
    """
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise invalid(400, "body_malformed", f"body: not JSON: {error}") from None
    if not isinstance(body, dict):
        raise invalid(400, "body_malformed", "body: it must be a JSON object")
    return body


def read(
    path: str,
    raw: bytes,
    body: dict[str, Any],
    size: int,
    limits: Limits,
    model_limits: tuple[int | None, int | None],
) -> ParsedRequest:
    """Check a body, and take from it what the router needs.

    Args:
        body: `raw` as loaded; it is changed.
        size: memory that it takes, bytes.
        model_limits: vocabulary and longest prompt of the engines' model; None: unknown.

    Raises:
        RequestError: 400; the message says what, where and what is allowed.
    """
    try:
        if _has_huge_float(body, 1) and _LONG_NUMBER.search(raw):
            raise InputError("body: a whole number beyond 64 bits is not allowed")
        return _read(path, body, size, limits, model_limits)
    except InputError as error:
        raise invalid(400, "body_invalid", str(error)) from None


def _has_huge_float(value: Any, depth: int) -> bool:
    """Return whether a list or an object holds a float beyond the integers of 64 bits.

    JSON's integers of that size are parsed as floats.

    Raises:
        InputError: it is nested too deeply.
    """
    most = _DEPTH - _WRAPPED
    if depth > most:
        raise InputError(f"body: nested too deeply; allowed are {most} levels")
    inner = value.values() if isinstance(value, dict) else value
    types = set(map(type, inner))
    if float in types:
        floats = inner if len(types) == 1 else [one for one in inner if type(one) is float]
        if max(floats) >= 2.0**63 or min(floats) <= -(2.0**63):
            return True
    if not types & {dict, list}:
        return False
    return any(_has_huge_float(one, depth + 1) for one in inner if type(one) in (dict, list))


def _read(
    path: str,
    body: dict[str, Any],
    size: int,
    limits: Limits,
    model_limits: tuple[int | None, int | None],
) -> ParsedRequest:
    vocab_size, context_tokens = model_limits
    asked = _asked(path, body)
    for name in _STRIPPED & body.keys():
        del body[name]
    stream = body.get("stream")
    if stream is not None and not isinstance(stream, bool):
        raise InputError("stream: it must be true or false")
    if body.get("background"):
        raise InputError("background: not offered; the answer must be waited for")
    prompts = _prompts(path, body)
    if path == GENERATE:
        _check_lists(body, prompts)
    check_fields(path, body)
    check_ids(path, body, vocab_size, context_tokens)
    n = _n(path, body)
    check_sampling(path, body, vocab_size)
    sequences = (prompts or 1) * n
    if sequences > limits.max_sequences:
        raise InputError(
            f"prompts times n: {sequences} sequences; allowed are at most {limits.max_sequences}"
        )
    if n > 1:
        if size * n > limits.max_body_bytes:
            raise InputError(
                f"n: {n} samples of this body take {size * n} bytes; allowed are at most "
                f"{limits.max_body_bytes}"
            )
        _expand(path, body, prompts, n)
        size *= n
    model = body.get("model")
    return ParsedRequest(
        path=path,
        body=body,
        asked=asked,
        stream=bool(stream),
        batch=sequences if prompts is not None or n > 1 else None,
        sequences=sequences,
        samples=n,
        max_output_tokens=_tokens(path, body) * sequences,
        model=model[:_MODEL_CHARS] if isinstance(model, str) else None,
        merge_logprobs=_has_prompt_logprobs(path, body),
        hide_usage=bool(stream) and path in (COMPLETIONS, CHAT) and _request_usage(body),
        size=size,
    )


def _has_prompt_logprobs(path: str, body: Mapping[str, Any]) -> bool:
    """Whether logprobs of the prompt may be asked for, which the prefill server computes."""
    if path == GENERATE:
        return bool(body.get("return_logprob"))
    return path == COMPLETIONS and bool(body.get("echo")) and bool(body.get("logprobs"))


def _request_usage(body: dict[str, Any]) -> bool:
    """Have the engines report usage at the end of a stream; whether the client did not ask."""
    options = body.get("stream_options")
    if options is None:
        options = {}
    if not isinstance(options, dict):
        raise InputError("stream_options: it must be an object")
    asked = bool(options.get("include_usage"))
    body["stream_options"] = {**options, "include_usage": True}
    return not asked


def _check_lists(body: Mapping[str, Any], prompts: int | None) -> None:
    """Lists of /generate hold one value per prompt."""
    for name in _SCALAR_OR_PER_PROMPT:
        value = body.get(name)
        if not isinstance(value, list):
            continue
        if prompts is None:
            raise InputError(f"{name}: a list is allowed only beside a list of prompts")
        if len(value) != prompts:
            raise InputError(f"{name}: {len(value)} values for {prompts} prompts; send one each")


def _asked(path: str, body: dict[str, Any]) -> SloRequest:
    """From the body's `kairos` object, completed by those in `custom_params`."""
    asked = SloRequest()
    if (fields := body.get(SLO_KEY)) is not None:
        asked = from_mapping(fields, f"body.{SLO_KEY}")
    holders: list[tuple[str, Any]] = [("", body)]
    if path == GENERATE:
        holders = [("sampling_params.", one) for one in each(body.get("sampling_params"))]
    for where, holder in holders:
        custom = holder.get("custom_params") if isinstance(holder, dict) else None
        if custom is None:
            continue
        if not isinstance(custom, dict):
            raise InputError(f"{where}custom_params: it must be an object")
        if SLO_KEY in custom:
            asked = asked.over(from_mapping(custom[SLO_KEY], f"{where}custom_params.{SLO_KEY}"))
    return asked


def _prompts(path: str, body: Mapping[str, Any]) -> int | None:
    """Prompts of a batch; None where there is one, outside of a list."""
    if path == GENERATE:
        return _generate_prompts(body)
    if path == COMPLETIONS:
        value = _text_or_list(body, "prompt")
        if isinstance(value, str):
            return None
        _refuse_empty("prompt", value)
        return None if isinstance(value[0], int) else len(value)
    if path == CHAT:
        messages = body.get("messages")
        if not isinstance(messages, list) or not messages:
            raise InputError("messages: it must be a list, and not empty")
        return None
    _text_or_list(body, "input")
    return None


def _text_or_list(body: Mapping[str, Any], name: str) -> str | list[Any]:
    value = body.get(name)
    if not isinstance(value, str | list) or not value:
        raise InputError(f"{name}: it must be a text or a list, and not empty")
    return value


def _generate_prompts(body: Mapping[str, Any]) -> int | None:
    names = ("text", "input_ids", "input_embeds")
    name = next((name for name in names if body.get(name) is not None), None)
    if name is None:
        raise InputError("body: one of text, input_ids and input_embeds is needed")
    value = _text_or_list(body, name)
    if isinstance(value, str):
        return None
    _refuse_empty(name, value)
    if name == "text":
        return len(value)
    # A prompt is a list of ids, or of embeddings, each a list of numbers.
    inner = value[0]
    if name == "input_embeds" and isinstance(inner, list) and inner:
        inner = inner[0]
    return len(value) if isinstance(inner, list) else None


def _refuse_empty(name: str, prompts: Sequence[Any]) -> None:
    """An engine dies of a batch with an empty prompt in it."""
    if isinstance(prompts[0], int):
        return  # one prompt of ids
    for at, prompt in enumerate(prompts):
        if prompt in ("", []):
            raise InputError(f"{name}[{at}]: it is empty; a prompt has at least one token")


def _n(path: str, body: Mapping[str, Any]) -> int:
    if path == GENERATE:
        params = body.get("sampling_params")
        if params is None:
            return 1
        if not all(isinstance(one, dict) for one in each(params)):
            raise InputError("sampling_params: it must be an object, or a list of objects")
        if isinstance(params, list):
            if any(one.get("n") not in (None, 1) for one in params):
                raise InputError("sampling_params: n above 1 is not allowed in a list of them")
            return 1
        n = params.get("n")
    else:
        n = body.get("n")
    if n is None:
        return 1
    if isinstance(n, bool) or not isinstance(n, int) or not 1 <= n <= 1_000_000:
        raise InputError("n: it must be a whole number, 1 or more")
    if n > 1 and path in (CHAT, RESPONSES):
        # All n would share one bootstrap room, which takes both servers down.
        raise InputError("n: allowed is 1; send several requests instead")
    return n


def _expand(path: str, body: dict[str, Any], prompts: int | None, n: int) -> None:
    """Turn n samples of a prompt into a batch, so that each gets a room of its own."""
    if path == COMPLETIONS:
        prompt = body["prompt"]
        body["prompt"] = [one for one in (prompt if prompts else [prompt]) for _ in range(n)]
        del body["n"]
        if body.get("best_of") is not None:
            raise InputError("best_of: not allowed together with n")
        return
    for name in _UNEXPANDABLE:
        if body.get(name) is not None:
            raise InputError(f"sampling_params.n: allowed is 1 together with {name}")
    body["sampling_params"] = {k: v for k, v in body["sampling_params"].items() if k != "n"}
    for name in _PER_PROMPT:
        value = body.get(name)
        if prompts is None:
            if name in ("text", "input_ids") and value is not None:
                body[name] = [value] * n
        elif isinstance(value, list) and len(value) == prompts:
            body[name] = [one for one in value for _ in range(n)]


def _tokens(path: str, body: Mapping[str, Any]) -> int:
    """Output tokens of a sequence at most; whether the number is valid is the server's business."""
    if path == GENERATE:
        params = body.get("sampling_params")
        params = params[0] if isinstance(params, list) and params else params
        value = params.get("max_new_tokens") if isinstance(params, dict) else None
    elif path == CHAT:
        value = body.get("max_completion_tokens")
        value = body.get("max_tokens") if value is None else value
    else:
        value = body.get("max_output_tokens" if path == RESPONSES else "max_tokens")
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        return _DEFAULT_TOKENS[path]
    return min(value, _MAX_TOKENS)
