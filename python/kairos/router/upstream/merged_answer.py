"""Two servers' answers made one: the answer that a single server would have given."""

import re
from collections.abc import Callable
from typing import Any

import orjson

from kairos.router.paths import COMPLETIONS, GENERATE
from kairos.router.request.parsing import ParsedRequest

_END = b"\n\n"
_NO_CHOICES = re.compile(rb'"choices":\s*\[\]')
_PROMPT_LOGPROBS = ("input_token_logprobs", "input_top_logprobs", "input_token_ids_logprobs")
_OUTPUT_IDS = "output_token_ids_logprobs"
_COMPLETION_LOGPROBS = ("tokens", "token_logprobs", "top_logprobs", "text_offset")

Change = Callable[[bytes], bytes]


def merge_whole(parsed: ParsedRequest, prefill: bytes, decode: bytes) -> bytes:
    """Merge whole answers.

    Args:
        prefill: empty unless `parsed.merge_logprobs`.

    Raises:
        ValueError, TypeError, AttributeError, KeyError: the answers do not fit together.
    """
    if not parsed.merge_logprobs and parsed.samples == 1:
        return decode
    if parsed.path == GENERATE:
        return _merge_generate(prefill, decode) if parsed.merge_logprobs else decode
    document = orjson.loads(decode)
    if parsed.merge_logprobs:
        first = _prompt_logprobs([orjson.loads(prefill)])
        for choice in document["choices"]:
            _put_before(first, choice)
    _count_prompts_once(document.get("usage"), parsed.samples)
    return orjson.dumps(document)


def stream_change(parsed: ParsedRequest, prefill: bytes) -> Change | None:
    """What makes whole events of the decode server those of a single server; None: they are.

    Args:
        prefill: empty unless `parsed.merge_logprobs`.
    """
    if parsed.path == GENERATE:
        return GenerateMerge(prefill) if parsed.merge_logprobs else None
    if parsed.path == COMPLETIONS and (parsed.merge_logprobs or parsed.samples > 1):
        return CompletionMerge(prefill, parsed.samples, parsed.hide_usage)
    return without_usage if parsed.hide_usage else None


def without_usage(events: bytes) -> bytes:
    """Leave out events that report nothing but usage.

    The router asks for usage also where the client does not.
    """
    return b"".join(
        event + _END for event in events.split(_END) if event.strip() and not _is_usage(event)
    )


class GenerateMerge:
    """Puts the prefill server's logprobs of the prompt into the events of /generate.

    Args:
        prefill: the prefill server's stream.
    """

    def __init__(self, prefill: bytes) -> None:
        self._first: dict[object, dict[str, Any]] = {}
        for document in _documents(prefill):
            self._first.setdefault(_index(document), document)

    def __call__(self, events: bytes) -> bytes:
        return _END.join(map(self._event, events.split(_END)))

    def _event(self, event: bytes) -> bytes:
        document = _document(event)
        if document is None or not _put_generate(self._first.get(_index(document)), document):
            return event
        return _with_document(event, document)


class CompletionMerge:
    """Makes the events of /v1/completions those of a single server.

    Args:
        prefill: the prefill server's stream; empty: without logprobs of the prompt.
        samples: of each prompt.
        hide_usage: the client did not ask for it.
    """

    def __init__(self, prefill: bytes, samples: int, hide_usage: bool) -> None:
        self._first = _prompt_logprobs(_documents(prefill))
        self._samples = samples
        self._hide_usage = hide_usage

    def __call__(self, events: bytes) -> bytes:
        return b"".join(self._event(event) for event in events.split(_END) if event.strip())

    def _event(self, event: bytes) -> bytes:
        usage = _is_usage(event)
        if usage and self._hide_usage:
            return b""
        if not usage and not self._first:
            return event + _END
        document = _document(event)
        if document is None:
            return event + _END
        if usage:
            _count_prompts_once(document.get("usage"), self._samples)
        choices = document.get("choices")
        for choice in choices if isinstance(choices, list) else ():
            _put_before(self._first, choice)
        return _with_document(event, document) + _END


def _is_usage(event: bytes) -> bool:
    return b'"usage":' in event and _NO_CHOICES.search(event) is not None


def _documents(stream: bytes) -> list[dict[str, Any]]:
    found = map(_document, stream.split(_END))
    return [document for document in found if document is not None]


def _document(event: bytes) -> dict[str, Any] | None:
    """Return the object in the data line of an event; None where there is no object.

    Comments and the end of a stream have none. Such events are passed on as they are.
    """
    lines = [line for line in event.split(b"\n") if line.startswith(b"data:")]
    text = lines[0].removeprefix(b"data:").strip() if len(lines) == 1 else b""
    if text[:1] != b"{":
        return None
    try:
        document = orjson.loads(text)
    except orjson.JSONDecodeError:
        return None
    return document if isinstance(document, dict) else None


def _with_document(event: bytes, document: dict[str, Any]) -> bytes:
    """The event with another object in its data line."""
    data = b"data: " + orjson.dumps(document)
    return b"\n".join(data if line.startswith(b"data:") else line for line in event.split(b"\n"))


def _index(document: dict[str, Any]) -> int:
    index = document.get("index", 0)
    return index if isinstance(index, int) else 0


def _merge_generate(prefill: bytes, decode: bytes) -> bytes:
    ours, theirs = orjson.loads(decode), orjson.loads(prefill)
    if not isinstance(ours, list):
        _put_generate(theirs, ours)
        return orjson.dumps(ours)
    for one, other in zip(theirs, ours, strict=True):
        _put_generate(one, other)
    return orjson.dumps(ours)


def _put_generate(prefill: object, decode: object) -> bool:
    """Put the prompt's logprobs of one answer into another one; whether any were put."""
    source = prefill.get("meta_info") if isinstance(prefill, dict) else None
    target = decode.get("meta_info") if isinstance(decode, dict) else None
    if not isinstance(source, dict) or not isinstance(target, dict):
        return False
    put = False
    for name in _PROMPT_LOGPROBS:
        if source.get(name) and name in target:
            target[name] = list(source[name]) + list(target[name] or [])
            put = True
    return _put_first_token(source, target) or put


def _put_first_token(source: dict[str, Any], target: dict[str, Any]) -> bool:
    """Put in the logprobs of chosen ids at the first output token.

    The prefill server computed them, and the KV transfer does not carry them.
    """
    computed, found = source.get(_OUTPUT_IDS), target.get(_OUTPUT_IDS)
    if not computed or not found or found[0] is not None:
        return False
    target[_OUTPUT_IDS] = [computed[0], *found[1:]]
    return True


def _prompt_logprobs(documents: list[dict[str, Any]]) -> dict[int, dict[str, list[Any]]]:
    """The prompt's logprobs by choice: a prefill server adds those of one output token."""
    first: dict[int, dict[str, list[Any]]] = {}
    for document in documents:
        for choice in document.get("choices") or ():
            logprobs = choice.get("logprobs")
            if logprobs and choice["index"] not in first:
                first[choice["index"]] = {
                    name: list(logprobs.get(name) or ())[:-1] for name in _COMPLETION_LOGPROBS
                }
    return first


def _put_before(first: dict[int, dict[str, list[Any]]], choice: dict[str, Any]) -> None:
    """Put the prompt's logprobs in front of a choice's, once."""
    prompt = first.pop(choice.get("index", 0), None)
    if prompt is None:
        return
    logprobs = choice.get("logprobs") or {}
    choice["logprobs"] = {
        **logprobs,
        **{name: [*prompt[name], *(logprobs.get(name) or ())] for name in _COMPLETION_LOGPROBS},
    }


def _count_prompts_once(usage: object, samples: int) -> None:
    """The samples of a prompt were sent as prompts of their own; a single server counts it once."""
    if samples == 1 or not isinstance(usage, dict):
        return
    prompt = usage.get("prompt_tokens")
    if not isinstance(prompt, int):
        return
    usage["prompt_tokens"] = prompt // samples
    usage["total_tokens"] = prompt // samples + (usage.get("completion_tokens") or 0)
    details = usage.get("prompt_tokens_details")
    if isinstance(details, dict) and isinstance(details.get("cached_tokens"), int):
        details["cached_tokens"] //= samples
