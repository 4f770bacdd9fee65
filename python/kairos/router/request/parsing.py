"""From a client's body to what the router needs of it, and on to what the servers get."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from kairos.errors import InputError
from kairos.router.edge.errors import invalid
from kairos.router.workers.endpoint import Endpoint
from kairos.slo import Slo, SloRequest, from_mapping

GENERATE = "/generate"
COMPLETIONS = "/v1/completions"
CHAT = "/v1/chat/completions"
RESPONSES = "/v1/responses"
PATHS = frozenset((GENERATE, COMPLETIONS, CHAT, RESPONSES))

SLO_KEY = "kairos"
# What a client must not choose: where the servers find each other, what a request is known by,
# which rank or which place in a queue it gets.
_STRIPPED = (
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
    SLO_KEY,
)
# Fields of /generate that may hold one value per prompt.
_PER_PROMPT = (
    "text",
    "input_ids",
    "sampling_params",
    "return_logprob",
    "logprob_start_len",
    "top_logprobs_num",
    "token_ids_logprob",
    "lora_path",
    "custom_logit_processor",
    "extra_key",
    "cache_salt",
)
_UNEXPANDABLE = ("input_embeds", "image_data", "video_data", "audio_data")
_DEFAULT_TOKENS = {GENERATE: 128, COMPLETIONS: 16, CHAT: 4096, RESPONSES: 4096}
_MAX_TOKENS = 1 << 24
_MODEL_CHARS = 256
_DEPTH = 254  # what can be written of what can be read
_WRAPPED = 2  # levels that the router may add


@dataclass(frozen=True, slots=True)
class ParsedRequest:
    """Attributes:
    body: as parsed, without what clients must not choose; emptied when it has been served.
    asked: the SLO that the body asks for.
    batch: prompts in the body if it is a batch, None for a single one.
    sequences: generations it asks for.
    max_output_tokens: of all sequences together.
    merge_logprobs: the prefill server's logprobs belong in front of the decode server's.
    """

    path: str
    body: dict[str, Any]
    asked: SloRequest
    stream: bool
    batch: int | None
    sequences: int
    max_output_tokens: int
    model: str | None
    merge_logprobs: bool
    size: int


def read(path: str, raw: bytes, most_sequences: int) -> ParsedRequest:
    """Parse and check a body.

    Raises:
        RequestError: 400; the message says what, where and what is allowed.
    """
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise invalid(400, "body_malformed", f"body: not JSON: {error}") from None
    if not isinstance(body, dict):
        raise invalid(400, "body_malformed", "body: it must be a JSON object")
    _check_depth(raw, body)
    try:
        return _read(path, body, len(raw), most_sequences)
    except InputError as error:
        raise invalid(400, "body_invalid", str(error)) from None


def _check_depth(raw: bytes, body: dict[str, Any]) -> None:
    most = _DEPTH - _WRAPPED
    if raw.count(b"[") + raw.count(b"{") <= most:
        return
    try:
        orjson.dumps([[body]])
    except TypeError:
        raise invalid(
            400, "body_invalid", f"body: nested too deeply; allowed are {most} levels"
        ) from None


def _read(path: str, body: dict[str, Any], size: int, most_sequences: int) -> ParsedRequest:
    asked = _asked(path, body)
    for name in _STRIPPED:
        body.pop(name, None)
    stream = body.get("stream")
    if stream is not None and not isinstance(stream, bool):
        raise InputError("stream: it must be true or false")
    if body.get("background"):
        raise InputError("background: not offered; the answer must be waited for")
    prompts = _prompts(path, body)
    n = _n(path, body)
    sequences = (prompts or 1) * n
    if sequences > most_sequences:
        raise InputError(
            f"prompts times n: {sequences} sequences; allowed are at most {most_sequences}"
        )
    if n > 1:
        _expand(path, body, prompts, n)
    model = body.get("model")
    return ParsedRequest(
        path,
        body,
        asked,
        bool(stream),
        sequences if prompts is not None or n > 1 else None,
        sequences,
        _tokens(path, body) * sequences,
        model[:_MODEL_CHARS] if isinstance(model, str) else None,
        path == GENERATE and bool(body.get("return_logprob")),
        size,
    )


def _asked(path: str, body: dict[str, Any]) -> SloRequest:
    """From the body's `kairos` object, completed by those in `custom_params`."""
    asked = SloRequest()
    if (fields := body.get(SLO_KEY)) is not None:
        asked = from_mapping(fields, f"body.{SLO_KEY}")
    holders: list[tuple[str, Any]] = [("", body)]
    if path == GENERATE:
        params = body.get("sampling_params")
        several = params if isinstance(params, list) else [params]
        holders = [("sampling_params.", one) for one in several]
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
        given = [body[name] for name in ("text", "input_ids", "input_embeds") if name in body]
        value = next((one for one in given if one is not None), None)
        if value is None:
            raise InputError("body: one of text, input_ids and input_embeds is needed")
        if isinstance(value, str):
            return None
        if not isinstance(value, list) or not value:
            raise InputError("text, input_ids: neither a text nor a list with something in it")
        if "text" in body and body["text"] is not None:
            return len(value)
        return len(value) if isinstance(value[0], list) else None
    if path == COMPLETIONS:
        value = body.get("prompt")
        if isinstance(value, str):
            return None
        if not isinstance(value, list) or not value:
            raise InputError("prompt: it must be a text or a list with something in it")
        return None if isinstance(value[0], int) else len(value)
    if path == CHAT and not isinstance(body.get("messages"), list):
        raise InputError("messages: it must be a list")
    if path == RESPONSES and not isinstance(body.get("input"), (str, list)):
        raise InputError("input: it must be a text or a list")
    return None


def _n(path: str, body: Mapping[str, Any]) -> int:
    if path == GENERATE:
        params = body.get("sampling_params")
        if params is None:
            return 1
        if isinstance(params, list):
            if not all(isinstance(one, dict) for one in params):
                raise InputError("sampling_params: it must be an object, or a list of objects")
            if any(one.get("n") not in (None, 1) for one in params):
                raise InputError("sampling_params: n above 1 is not allowed in a list of them")
            return 1
        if not isinstance(params, dict):
            raise InputError("sampling_params: it must be an object, or a list of objects")
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
        value = body.get("max_completion_tokens", body.get("max_tokens"))
    else:
        value = body.get("max_output_tokens" if path == RESPONSES else "max_tokens")
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        return _DEFAULT_TOKENS[path]
    return min(value, _MAX_TOKENS)


def encode_engine_body(
    intake: ParsedRequest,
    slo: Slo,
    elapsed_s: float,
    prefill: Endpoint,
    rids: tuple[str, ...],
    rooms: tuple[int, ...],
    with_class: bool = True,
) -> bytes:
    """The body that both servers get.

    Args:
        elapsed_s: since the request's arrival.
        rids, rooms: one for each sequence.
        with_class: name the class; servers refuse one that they do not define themselves, and the
            objectives go with every request anyway.
    """
    applied: dict[str, float | str] = {
        "ttft_ms": slo.ttft_ms,
        "tpot_ms": slo.tpot_ms,
        "elapsed_ms": round(max(elapsed_s, 0.0) * 1e3, 3),
    }
    if with_class:
        applied["class"] = slo.slo_class
    custom = {SLO_KEY: applied}
    body = dict(intake.body)
    if intake.path == GENERATE:
        params = body.get("sampling_params")
        if isinstance(params, list):
            body["sampling_params"] = [_with(one, custom) for one in params]
        else:
            body["sampling_params"] = _with(params or {}, custom)
    elif intake.path != RESPONSES:
        body = _with(body, custom)
    batch = intake.batch
    # Elsewhere upstream's servers would draw a number of their own, which no abort could name.
    name = "request_id" if intake.path == RESPONSES else "rid"
    body[name] = rids[0] if batch is None else list(rids)
    body["bootstrap_room"] = rooms[0] if batch is None else list(rooms)
    body["bootstrap_host"] = prefill.host if batch is None else [prefill.host] * batch
    port = prefill.bootstrap_port
    body["bootstrap_port"] = port if batch is None else [port] * batch
    return orjson.dumps(body)


def _with(holder: dict[str, Any], custom: dict[str, Any]) -> dict[str, Any]:
    return {**holder, "custom_params": {**(holder.get("custom_params") or {}), **custom}}
