"""What the router itself answers: JSON, errors in OpenAI's form."""

import math
from typing import Any

import orjson
from aiohttp import web

from kairos.router.edge.errors import RequestError

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
}


SERVER = {"Server": "kairos-router"}
"""Without it aiohttp would tell its own version and Python's."""


def json_answer(document: Any, status: int = 200) -> web.Response:
    """Return an answer of any JSON."""
    body = orjson.dumps(document)
    return web.Response(body=body, status=status, content_type="application/json")


def error_document(status: int, reason: str, message: str) -> bytes:
    """An error, as an answer's body or a stream's last event."""
    return orjson.dumps(
        {
            "error": {
                "message": message,
                "type": _TYPES.get(status, "server_error" if status >= 500 else "request_error"),
                "code": reason,
                "param": None,
                "status": status,
            }
        }
    )


def refusal(error: RequestError, headers: dict[str, str] | None = None) -> web.Response:
    """The answer to a request that the router refuses."""
    headers = {**SERVER, **(headers or {})}
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s)))
    headers["x-kairos-reason"] = error.reason
    answer = web.Response(
        body=error_document(error.status, error.reason, error.message),
        status=error.status,
        headers=headers,
        content_type="application/json",
    )
    if error.status in (408, 413, 431) or error.reason in ("draining", "shut_down"):
        answer.force_close()
    return answer
