"""What a server says in its answer beside what was asked for: an error, an abort, the end."""

import re
from typing import NamedTuple

import orjson

from kairos.router.paths import GENERATE, RESPONSES
from kairos.router.upstream.leg import LegError
from kairos.router.workers.endpoint import Role

# Quotes inside of JSON strings are escaped, so generated text cannot look like these.
_ABORTED = (b'"type":"abort"', b'"finish_reason":"abort"')
_USAGE_NUMBERS = tuple(
    tuple((name, re.compile(name + rb"\s*(\d{1,12})")) for name in names)
    for names in (
        (b'"prompt_tokens":', b'"completion_tokens":'),
        (b'"input_tokens":', b'"output_tokens":'),
    )
)
# The reason is an object without objects in it.
_ABORT_REASON = re.compile(rb'"finish_reason":(\{"type":"abort"[^{}]*\})')
_ERROR_EVENT = re.compile(rb'^data: ?\{"error": ?(?!null)', re.MULTILINE)
# At the beginning of a line, where nothing can stand that a client or a model wrote.
_RESPONSE_END = re.compile(rb"^event: response\.(completed|incomplete|failed)$", re.MULTILINE)


class Usage(NamedTuple):
    """Tokens that an answer reports: the last number of each kind, None where it reports none.

    Those of a batch are the sum over its answers.
    """

    prompt_tokens: int | None = None
    output_tokens: int | None = None


def usage_names(path: str) -> tuple[bytes, bytes]:
    """The bytes in front of the numbers of prompt tokens and of output tokens."""
    prompt, output = _USAGE_NUMBERS[path == RESPONSES]
    return prompt[0], output[0]


def usage_of(data: bytes, path: str, batch: bool = False) -> Usage:
    """What a whole answer, or whole events of a stream, report."""
    prompt, output = _USAGE_NUMBERS[path == RESPONSES]
    if batch and path == GENERATE:
        counted = output[1].findall(data)
        return Usage(_last(data, *prompt), sum(map(int, counted)) if counted else None)
    return Usage(_last(data, *prompt), _last(data, *output))


def _last(data: bytes, name: bytes, number: "re.Pattern[bytes]") -> int | None:
    """The last number that follows a name; searched from the end, because each event has one."""
    at = data.rfind(name)
    while at >= 0:
        if found := number.match(data, at):
            return int(found[1])
        at = data.rfind(name, 0, at)
    return None


def problem_of(role: Role, status: int, data: bytes, path: str) -> LegError | None:
    """What is wrong with an answer: its status, or an error or abort told in a 200.

    Args:
        data: the body, or the first events of a stream.
        path: the endpoint's.
    """
    if status != 200:
        return LegError(
            role, f"status_{status}", f"the {role.value} server answered {status}", status, data
        )
    found = None if data[:1] in (b"{", b"[") else _ERROR_EVENT.search(data)
    if found is not None:
        document, _, _ = data[found.start() :].removeprefix(b"data:").partition(b"\n\n")
        try:
            error = orjson.loads(document)["error"]
            code = int(error.get("code") or 500)
        except (ValueError, KeyError, TypeError, AttributeError):
            document, code = b"", 500
        code = code if 400 <= code <= 599 else 500
        text = f"the {role.value} server reported an error"
        return LegError(role, f"error_{code}", text, code, document.strip())
    if is_aborted(data, path):
        return _aborted(role, data)
    return None


def _aborted(role: Role, data: bytes) -> LegError:
    """What an abort says: an engine tells in it what is wrong with a request (status 4xx)."""
    found = _ABORT_REASON.search(data)
    try:
        reason = orjson.loads(found[1]) if found else {}
    except orjson.JSONDecodeError:
        reason = {}
    status = reason.get("status_code")
    if not isinstance(status, int) or not 400 <= status < 500:
        return LegError(role, "aborted", f"the {role.value} server aborted the request")
    message = str(reason.get("message"))
    error = {"message": message, "type": reason.get("err_type") or "BadRequest", "code": status}
    text = f"the {role.value} server refused the request: {message}"
    return LegError(role, f"error_{status}", text, status, orjson.dumps({"error": error}))


def is_aborted(data: bytes, path: str) -> bool:
    """Whether an answer says that the server gave the request up."""
    if path == RESPONSES:
        return _is_failed(data)
    return any(mark in data for mark in _ABORTED)


def error_event(events: bytes) -> bytes:
    """The first error among events, and what follows it; empty if there is none."""
    found = _ERROR_EVENT.search(events) if b'"error":' in events else None
    return b"" if found is None else events[found.start() :]


def response_end(events: bytes) -> bytes:
    """Return how a stream of /v1/responses ended: completed, incomplete or failed.

    An answer that was cut at its length is incomplete. The result is empty where no event tells
    the end.
    """
    ends = _RESPONSE_END.findall(events)
    return ends[-1] if ends else b""


def _is_failed(data: bytes) -> bool:
    """Return whether an answer of /v1/responses is a failure.

    These answers repeat the client's words, so bytes anywhere in them prove nothing.
    """
    if data[:1] != b"{":
        return response_end(data) == b"failed"
    if b'"failed"' not in data:
        return False
    try:
        document = orjson.loads(data)
    except orjson.JSONDecodeError:
        return False
    return isinstance(document, dict) and document.get("status") == "failed"
