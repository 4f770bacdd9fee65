"""The OpenAPI description: valid, and kept by the running router."""

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from jsonschema.validators import Draft202012Validator
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from kairos.router.edge.keys import new_key
from kairos.router.edge.openapi import document
from support.router_process import routed

ADMIN, ADMIN_HASH = new_key()
SCHEMA = schemathesis.openapi.from_dict(document())


@pytest.fixture(scope="module")
def router(tmp_path_factory):
    folder = tmp_path_factory.mktemp("router")
    (folder / "admin").write_text(ADMIN_HASH)
    argv = ["--admin-key-file", str(folder / "admin"), "--allow-worker", "127.0.0.1:*"]
    with routed(folder, *argv) as (router, _, _):
        yield router


def test_every_schema_is_one() -> None:
    for name, schema in document()["components"]["schemas"].items():
        Draft202012Validator.check_schema(schema), name


@SCHEMA.parametrize()
@settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
def test_whatever_is_sent_the_answer_is_as_described(case, router) -> None:
    headers = {"Authorization": f"Bearer {ADMIN}"}
    if case.path.startswith("/workers/{worker}"):
        headers = {}  # random names must not remove the servers of this test
    case.call_and_validate(
        base_url=router.url,
        headers=headers,
        checks=[
            not_a_server_error,
            status_code_conformance,
            content_type_conformance,
            response_schema_conformance,
        ],
    )
