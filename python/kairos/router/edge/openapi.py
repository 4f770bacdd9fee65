"""The OpenAPI description that /openapi.json serves: the router's endpoints, not the engines'.

Bodies of generations pass through, so only what the router itself reads is described.
"""

from typing import Any

import orjson

from kairos import __version__
from kairos.router.request.outcome import Outcome
from kairos.slo import TPOT_RANGE_MS, TTFT_RANGE_MS

Json = dict[str, Any]

_ERROR_REF = {"$ref": "#/components/schemas/Error"}
_WORKER_PATH = {
    "name": "worker",
    "in": "path",
    "required": True,
    "description": "`host:port` of a server.",
    "schema": {"type": "string", "minLength": 3},
}

_REFUSALS = {
    "400": "The body, a header or the SLO is not allowed; the message says what is.",
    "401": "No key, or one that is not known.",
    "408": "The body came too slowly.",
    "413": "The body is too long.",
    "415": "The body is encoded (gzip, ...).",
    "429": "The queue is full, the SLO cannot be met now, or the tenant's share is used up.",
    "431": "Too many or too long header lines.",
    "500": "A server failed.",
    "502": "A server failed, and so did further attempts.",
    "503": "No healthy pair, or the router is draining.",
    "504": "The request waited or ran longer than its limit.",
    "529": "Like 429, where --overload-status says so.",
}
_ADMIN_REFUSALS = {code: _REFUSALS[code] for code in ("400", "401", "408", "413", "415", "431")}


def document() -> Json:
    """The whole description."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "kairos-router",
            "version": __version__,
            "description": "Routes requests to disaggregated prefill and decode servers by their "
            "deadlines.",
        },
        "paths": {
            "/generate": {"post": _generation("SGLang's own API", _generate_body())},
            "/v1/completions": {"post": _generation("OpenAI completions", _completions_body())},
            "/v1/chat/completions": {"post": _generation("OpenAI chat", _chat_body())},
            "/v1/responses": {"post": _generation("OpenAI responses", _responses_body())},
            "/v1/models": {"get": _forwarded("Models of the servers")},
            "/model_info": {"get": _forwarded("What the servers say of their model")},
            "/health": {"get": _open("Whether the process runs", {"200": "It does."})},
            "/ready": {
                "get": _open(
                    "Whether a pair generated a token recently",
                    {"200": "One did.", "503": "None did, or the router is draining."},
                )
            },
            "/metrics": {"get": _metrics()},
            "/openapi.json": {"get": _open("This description", {"200": "It."})},
            "/workers": {"get": _list_workers(), "post": _add_worker()},
            "/workers/{worker}": {"delete": _worker("Remove a server once it is idle")},
            "/workers/{worker}/drain": {"post": _worker("Send a server nothing new")},
            "/flush_cache": {"post": _flush()},
        },
        "components": {
            "securitySchemes": {
                "key": {"type": "http", "scheme": "bearer", "description": "A tenant's API key."},
                "admin": {"type": "http", "scheme": "bearer", "description": "The admin key."},
            },
            "schemas": {"Error": _error(), "Slo": _slo(), "Worker": _worker_schema()},
        },
    }


def encoded() -> bytes:
    """The description as /openapi.json answers it."""
    return orjson.dumps(document())


def _generation(summary: str, body: Json) -> Json:
    body["properties"]["kairos"] = {"$ref": "#/components/schemas/Slo"}
    return {
        "summary": f"Generate: {summary}",
        "security": [{}, {"key": []}],
        "parameters": [
            _slo_header("x-kairos-slo-ttft-ms", TTFT_RANGE_MS),
            _slo_header("x-kairos-slo-tpot-ms", TPOT_RANGE_MS),
            {
                "name": "x-kairos-slo-class",
                "in": "header",
                "schema": {"type": "string", "pattern": "^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$"},
            },
        ],
        "requestBody": {"required": True, "content": {"application/json": {"schema": body}}},
        "responses": {
            "200": {
                "description": "The decode server's answer, as it is; a stream that breaks ends "
                "with an error event.",
                "headers": {
                    "x-kairos-slo-applied": {
                        "description": "`ttft-ms=..., tpot-ms=..., class=...`",
                        "schema": {"type": "string"},
                    }
                },
                "content": {"application/json": {}, "text/event-stream": {}},
            },
            **_errors(_REFUSALS),
            "4XX": {"description": "The server's own refusal, as it is."},
        },
        "x-kairos-outcomes": [outcome.value for outcome in Outcome],
    }


def _generate_body() -> Json:
    text = {"type": "string", "minLength": 1}
    ids = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}
    return {
        "type": "object",
        "properties": {
            "text": {"anyOf": [text, {"type": "array", "items": text, "minItems": 1}]},
            "input_ids": {"anyOf": [ids, {"type": "array", "items": ids, "minItems": 1}]},
            "sampling_params": {"type": "object"},
            "stream": {"type": "boolean"},
        },
        "oneOf": [{"required": ["text"]}, {"required": ["input_ids"]}],
    }


def _completions_body() -> Json:
    text = {"type": "string", "minLength": 1}
    return {
        "type": "object",
        "properties": {
            "model": {"type": "string"},
            "prompt": {"anyOf": [text, {"type": "array", "items": text, "minItems": 1}]},
            "n": {"type": "integer", "minimum": 1, "maximum": 128},
            "max_tokens": {"type": "integer", "minimum": 1},
            "stream": {"type": "boolean"},
        },
        "required": ["model", "prompt"],
    }


def _chat_body() -> Json:
    message = {
        "type": "object",
        "properties": {"role": {"type": "string"}, "content": {"type": "string"}},
        "required": ["role", "content"],
    }
    return {
        "type": "object",
        "properties": {
            "model": {"type": "string"},
            "messages": {"type": "array", "items": message, "minItems": 1},
            "n": {"type": "integer", "minimum": 1, "maximum": 1},
            "max_tokens": {"type": "integer", "minimum": 1},
            "stream": {"type": "boolean"},
        },
        "required": ["model", "messages"],
    }


def _responses_body() -> Json:
    return {
        "type": "object",
        "properties": {
            "model": {"type": "string"},
            "input": {"type": "string", "minLength": 1},
            "stream": {"type": "boolean"},
        },
        "required": ["model", "input"],
    }


def _forwarded(summary: str) -> Json:
    codes = ("401", "429", "431", "500", "502", "503", "504")
    return {
        "summary": f"{summary}; a server answers",
        "security": [{}, {"key": []}],
        "responses": {
            "200": {"description": "A server's answer.", "content": {"application/json": {}}},
            **_errors({code: _REFUSALS[code] for code in codes}),
        },
    }


def _open(summary: str, answers: dict[str, str]) -> Json:
    responses = {
        code: {"description": text, "content": {"application/json": {}}}
        for code, text in answers.items()
    }
    return {"summary": summary, "security": [], "responses": responses}


def _metrics() -> Json:
    return {
        "summary": "Metrics in Prometheus' text format",
        "security": [{}, {"admin": []}],
        "responses": {
            "200": {"description": "All of them.", "content": {"text/plain": {}}},
            **_errors({"401": "Not the admin key."}),
        },
    }


def _list_workers() -> Json:
    return {
        "summary": "The servers and their state",
        "security": [{}, {"admin": []}],
        "responses": {
            "200": {
                "description": "All of them.",
                "content": {
                    "application/json": {
                        "schema": {
                            "type": "object",
                            "properties": {
                                "workers": {
                                    "type": "array",
                                    "items": {"$ref": "#/components/schemas/Worker"},
                                }
                            },
                            "required": ["workers"],
                        }
                    }
                },
            },
            **_errors({"401": "Not the admin key.", "403": "There is no admin key."}),
        },
    }


def _add_worker() -> Json:
    body = {
        "type": "object",
        "properties": {
            "role": {"enum": ["prefill", "decode"]},
            "url": {"type": "string", "examples": ["http://10.0.0.1:30000"]},
            "bootstrap_port": {"type": ["integer", "null"], "minimum": 1, "maximum": 65535},
        },
        "required": ["role", "url"],
        "additionalProperties": False,
    }
    return {
        "summary": "Add a server; its address must be in --allow-worker",
        "security": [{"admin": []}],
        "requestBody": {"required": True, "content": {"application/json": {"schema": body}}},
        "responses": {
            "201": {"description": "It is probed, then used.", "content": {"application/json": {}}},
            **_errors(
                {
                    **_ADMIN_REFUSALS,
                    "403": "There is no admin key, or the address is not in --allow-worker.",
                    "409": "It is known already.",
                }
            ),
        },
    }


def _worker(summary: str) -> Json:
    return {
        "summary": summary,
        "security": [{"admin": []}],
        "parameters": [_WORKER_PATH],
        "responses": {
            "200": {"description": "Done, or begun.", "content": {"application/json": {}}},
            **_errors(
                {
                    "400": _REFUSALS["400"],
                    "401": "Not the admin key.",
                    "403": "There is no admin key.",
                    "404": "No such server.",
                }
            ),
        },
    }


def _flush() -> Json:
    return {
        "summary": "Empty the prefix caches of all servers",
        "security": [{}, {"admin": []}],
        "responses": {
            "200": {"description": "All did.", "content": {"application/json": {}}},
            **_errors(
                {
                    **_ADMIN_REFUSALS,
                    "403": "There is no admin key.",
                    "502": "At least one did not.",
                    "503": "There is no server.",
                }
            ),
        },
    }


def _errors(codes: dict[str, str]) -> Json:
    return {
        code: {"description": text, "content": {"application/json": {"schema": _ERROR_REF}}}
        for code, text in codes.items()
    }


def _error() -> Json:
    return {
        "type": "object",
        "properties": {
            "error": {
                "type": "object",
                "properties": {
                    "message": {"type": "string"},
                    "type": {"type": "string"},
                    "code": {"type": "string", "description": "The reason in a word."},
                    "param": {"type": "null"},
                    "status": {"type": "integer"},
                },
                "required": ["message", "type", "code"],
            }
        },
        "required": ["error"],
    }


def _slo() -> Json:
    return {
        "type": "object",
        "description": "What the request asks for; headers win over it.",
        "properties": {
            "ttft_ms": _range(TTFT_RANGE_MS),
            "tpot_ms": _range(TPOT_RANGE_MS),
            "class": {"type": "string", "pattern": "^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$"},
            "elapsed_ms": _range((0.0, TTFT_RANGE_MS[1])),
        },
        "additionalProperties": False,
    }


def _worker_schema() -> Json:
    return {
        "type": "object",
        "properties": {
            "role": {"enum": ["prefill", "decode"]},
            "url": {"type": "string"},
            "state": {"type": "string"},
        },
        "required": ["role", "url", "state"],
    }


def _slo_header(name: str, allowed: tuple[float, float]) -> Json:
    return {
        "name": name,
        "in": "header",
        "description": "Milliseconds, decimal; at most one header per objective.",
        "schema": _range(allowed),
    }


def _range(allowed: tuple[float, float]) -> Json:
    return {"type": "number", "minimum": allowed[0], "maximum": allowed[1]}
