"""The OpenAPI description against the code that it describes, in both directions."""

import ast
import re
from pathlib import Path
from typing import Any, get_args

import pytest

import kairos.router
from kairos.router.config.settings import Overload
from kairos.router.edge import limits
from kairos.router.edge.app import App
from kairos.router.edge.openapi import document
from kairos.router.paths import PATHS
from kairos.slo import ELAPSED_RANGE_MS, SLO_HEADERS, TPOT_RANGE_MS, TTFT_RANGE_MS, from_headers

ROUTER = Path(kairos.router.__file__).parent
ROUTES = App(None).routes
OPERATIONS = [
    (path, method, operation)
    for path, methods in document()["paths"].items()
    for method, operation in methods.items()
]
OVERLOAD = set(get_args(Overload.__annotations__["overload_status"].__origin__))
ANSWERS = {"json_answer": {200}, "Response": {200}, "unauthorized": {401}, "invalid": set()}
"""Calls that make an answer, and their statuses where the call names none."""


def resolved(node: dict[str, Any]) -> dict[str, Any]:
    if "$ref" not in node:
        return node
    _, *keys = node["$ref"].split("/")
    found = document()
    for key in keys:
        found = found[key]
    return found


def statuses_of_a_call(call: ast.Call, name: str) -> set[int]:
    arguments = [*call.args, *(keyword.value for keyword in call.keywords)]
    nodes = [node for argument in arguments for node in ast.walk(argument)]
    named = {n.value for n in nodes if isinstance(n, ast.Constant) and type(n.value) is int}
    found = {status for status in named if 200 <= status < 600}
    if any(isinstance(n, ast.Attribute) and n.attr == "_status" for n in nodes):
        found |= OVERLOAD
    return found or ANSWERS.get(name, set())


class Code:
    """Which statuses a function answers, itself or through functions that it calls by name."""

    def __init__(self, *modules: str) -> None:
        self.answers: dict[str, set[int]] = {}
        self.calls: dict[str, set[str]] = {}
        for module in modules:
            for node in ast.walk(ast.parse((ROUTER / module).read_text())):
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                    self._add(node)

    def _add(self, function: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        answers = self.answers.setdefault(function.name, set())
        calls = self.calls.setdefault(function.name, set())
        for node in ast.walk(function):
            if isinstance(node, ast.Call):
                name = getattr(node.func, "attr", getattr(node.func, "id", ""))
                calls.add(name)
                if name in ANSWERS or name == "RequestError":
                    answers |= statuses_of_a_call(node, name)

    def statuses(self, function: str) -> set[int]:
        seen: set[str] = set()
        waiting = [function]
        while waiting:
            name = waiting.pop()
            if name in self.calls and name not in seen and name not in ANSWERS:
                seen.add(name)
                waiting += self.calls[name]
        return set().union(*(self.answers[name] for name in seen))


def documented(operation: dict[str, Any]) -> set[int]:
    return {int(status) for status in operation["responses"] if status != "4XX"}


def test_paths_and_methods_are_those_of_the_routes() -> None:
    described = {
        path: {m.upper() for m in methods} for path, methods in document()["paths"].items()
    }
    assert described == {path: set(methods) for path, methods in ROUTES.items()}


EDGE = Code(
    *(f"edge/{name}.py" for name in ("app", "keys", "limits")),
    "request/body_memory.py",
    "router.py",
)


@pytest.mark.parametrize(
    ("path", "method", "operation"), [o for o in OPERATIONS if o[0] not in PATHS]
)
def test_statuses_are_those_of_the_handler(path: str, method: str, operation: dict) -> None:
    handler = ROUTES[path][method.upper()].__name__
    assert documented(operation) == EDGE.statuses(handler) | EDGE.statuses("check_headers")


def test_generations_document_every_status_that_the_router_answers() -> None:
    modules = [str(path.relative_to(ROUTER)) for path in ROUTER.glob("**/*.py")]
    everything = Code(*(m for m in modules if m not in ("edge/app.py", "edge/keys.py")))
    raised = set().union(*everything.answers.values()) - {405}
    for path in PATHS:
        assert documented(document()["paths"][path]["post"]) == raised | {200, 401}


def test_request_headers_are_those_that_the_router_reads() -> None:
    protocol = {"authorization", "content-type", "content-length", "transfer-encoding",
                "content-encoding", "expect", "host", "connection", "origin"}  # fmt: skip
    for path in PATHS:
        parameters = map(resolved, document()["paths"][path]["post"]["parameters"])
        names = {parameter["name"] for parameter in parameters}
        assert names | protocol == limits._READ
        assert set(SLO_HEADERS) < names


def test_answers_name_every_header_that_the_router_adds() -> None:
    code = " ".join(path.read_text() for path in ROUTER.glob("[eru]*/*.py"))
    added = set(re.findall(r'"(x-kairos-[a-z-]+|x-request-id|Retry-After)"', code))
    added |= {"x-kairos-slo-applied"}
    named = set()
    for _, _, operation in OPERATIONS:
        for answer in operation["responses"].values():
            named |= set(resolved(answer).get("headers", {}))
    assert named == added


def test_path_parameters_are_declared() -> None:
    for path, _, operation in OPERATIONS:
        parameters = map(resolved, operation.get("parameters", ()))
        declared = {parameter["name"] for parameter in parameters if parameter["in"] == "path"}
        assert declared == set(re.findall(r"\{(\w+)\}", path))


def test_ranges_are_those_that_the_router_checks() -> None:
    properties = document()["components"]["schemas"]["Slo"]["properties"]
    for name, allowed in (
        ("ttft_ms", TTFT_RANGE_MS), ("tpot_ms", TPOT_RANGE_MS), ("elapsed_ms", ELAPSED_RANGE_MS),
    ):  # fmt: skip
        assert (properties[name]["minimum"], properties[name]["maximum"]) == allowed
    for parameter in document()["components"]["parameters"].values():
        schema = parameter["schema"]
        for bound in (schema[key] for key in ("minimum", "maximum") if key in schema):
            from_headers([(parameter["name"], f"{bound:.9f}")])


def test_every_part_is_used_and_every_operation_has_a_summary() -> None:
    text = str(document())
    for kind in ("parameters", "responses", "schemas"):
        for name in document()["components"][kind]:
            assert f"#/components/{kind}/{name}'" in text
    assert all(operation["summary"] for _, _, operation in OPERATIONS)
