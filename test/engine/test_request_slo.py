"""A request's SLO arrives at the schedulers of both servers, whatever carries it."""

from typing import Any

import httpx
import pytest

from kairos.cluster import Cluster
from support.clusters import on
from support.configs import BEST_EFFORT, KAIROS
from support.pair import kairos_state, send

IDS = list(range(20, 60))
SHORT = {"max_new_tokens": 2, "temperature": 0}
BODIES: dict[str, dict[str, Any]] = {
    "/generate": {"input_ids": IDS, "sampling_params": SHORT},
    "/v1/completions": {"model": "m", "prompt": "one two three", "max_tokens": 2},
    "/v1/chat/completions": {
        "model": "m",
        "messages": [{"role": "user", "content": "one two three"}],
        "max_tokens": 2,
    },
}
DEFAULT = {"ttft_ms": 2000.0, "tpot_ms": 50.0, "class": "default"}


def slos(cluster: Cluster, count: int = 1) -> list[list[dict[str, Any]]]:
    """The SLOs of the last `count` requests on the prefill and on the decode server."""
    seen = []
    for server in (cluster.prefill[0], cluster.decode[0]):
        state = kairos_state(server)
        assert state is not None
        seen.append([{name: item[name] for name in DEFAULT} for item in state["recent"][-count:]])
    return seen


@on(KAIROS)
@pytest.mark.parametrize("path", BODIES)
def test_without_an_slo_the_servers_default_applies(cluster: Cluster, path: str) -> None:
    answer = send(cluster, BODIES[path], path=path)
    assert answer.decode.status_code == 200
    assert slos(cluster) == [[DEFAULT], [DEFAULT]]
    applied = "ttft-ms=2000, tpot-ms=50, class=default"
    assert answer.decode.headers["x-kairos-slo-applied"] == applied


@on(BEST_EFFORT)
def test_without_a_default_a_request_has_no_objective(cluster: Cluster) -> None:
    for path, body in BODIES.items():
        answer = send(cluster, body, path=path)
        applied = "ttft-ms=none, tpot-ms=none, class=default"
        assert answer.decode.headers["x-kairos-slo-applied"] == applied
        for server in (cluster.prefill[0], cluster.decode[0]):
            state = kairos_state(server)
            assert state is not None
            assert "ttft_ms" not in state["recent"][-1]
            assert "tpot_ms" not in state["recent"][-1]
    answer = send(cluster, BODIES["/generate"], headers={"x-kairos-slo-ttft-ms": "500"})
    applied = "ttft-ms=500, tpot-ms=none, class=default"
    assert answer.decode.headers["x-kairos-slo-applied"] == applied


@on(KAIROS)
def test_an_endpoint_without_custom_params_takes_an_slo(cluster: Cluster) -> None:
    models = httpx.get(f"{cluster.decode[0].url}/v1/models", timeout=60).json()
    body = {"model": models["data"][0]["id"], "input": "one two three", "max_output_tokens": 2}
    body["kairos"] = {"ttft_ms": 700}
    headers = {"x-kairos-slo-tpot-ms": "25"}
    answer = send(cluster, body, path="/v1/responses", headers=headers).decode
    assert answer.status_code == 200, answer.text
    assert slos(cluster) == [[{"ttft_ms": 700.0, "tpot_ms": 25.0, "class": "default"}]] * 2
    assert answer.headers["x-kairos-slo-applied"] == "ttft-ms=700, tpot-ms=25, class=default"


@on(KAIROS)
@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"x-kairos-slo-ttft-ms": "500", "x-kairos-slo-tpot-ms": "25"}, (500, 25)),
        ({"x-slo-ttft-ms": "501", "x-slo-tpot-ms": "26.5"}, (501, 26.5)),
        ({"x-llm-d-slo-ttft-ms": "502", "x-llm-d-slo-tpot-ms": "27"}, (502, 27)),
        ({"x-sgl-ttft-slo-ms": "503", "x-sgl-tps-slo": "40"}, (503, 25)),
    ],
)
def test_every_header_alias_arrives_on_both_sides(
    cluster: Cluster, path: str, headers: dict[str, str], expected: tuple[float, float]
) -> None:
    assert send(cluster, BODIES[path], path=path, headers=headers).decode.status_code == 200
    slo = {"ttft_ms": expected[0], "tpot_ms": expected[1], "class": "default"}
    assert slos(cluster) == [[slo], [slo]]


@on(KAIROS)
@pytest.mark.parametrize("path", BODIES)
def test_the_body_and_custom_params_arrive_on_both_sides(cluster: Cluster, path: str) -> None:
    body = {**BODIES[path], "kairos": {"ttft_ms": 700}}
    custom = {"kairos": {"ttft_ms": 1, "tpot_ms": 31, "elapsed_ms": 2}}
    if path == "/generate":
        body["sampling_params"] = {**SHORT, "custom_params": custom}
    else:
        body["custom_params"] = custom
    assert send(cluster, body, path=path).decode.status_code == 200
    slo = {"ttft_ms": 700, "tpot_ms": 31, "class": "default"}
    assert slos(cluster) == [[slo], [slo]]
    state = kairos_state(cluster.prefill[0])
    assert state is not None
    assert state["recent"][-1]["elapsed_ms"] >= 2


@on(KAIROS)
@pytest.mark.parametrize("path", BODIES)
def test_a_class_arrives_and_headers_override_it(cluster: Cluster, path: str) -> None:
    headers = {"x-kairos-slo-class": "interactive", "x-slo-tpot-ms": "20"}
    assert send(cluster, BODIES[path], path=path, headers=headers).decode.status_code == 200
    slo = {"ttft_ms": 500, "tpot_ms": 20, "class": "interactive"}
    assert slos(cluster) == [[slo], [slo]]


@on(KAIROS)
def test_a_batch_carries_an_slo_per_request(cluster: Cluster) -> None:
    params = [
        {**SHORT, "custom_params": {"kairos": {"ttft_ms": 600 + index}}} for index in range(3)
    ]
    answer = send(cluster, {"input_ids": [IDS, IDS[1:], IDS[2:]], "sampling_params": params})
    assert answer.decode.status_code == 200
    assert answer.decode.headers["x-kairos-slo-applied"] == "mixed"
    for side in slos(cluster, 3):
        assert sorted(slo["ttft_ms"] for slo in side) == [600, 601, 602]


@on(KAIROS)
def test_a_batch_shares_the_slo_of_its_headers(cluster: Cluster) -> None:
    body = {"input_ids": [IDS, IDS[1:]], "sampling_params": SHORT}
    assert send(cluster, body, headers={"x-slo-ttft-ms": "640"}).decode.status_code == 200
    for side in slos(cluster, 2):
        assert [slo["ttft_ms"] for slo in side] == [640, 640]


@on(KAIROS)
@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("headers", "fields", "named"),
    [
        ([("x-kairos-slo-ttft-ms", "0")], None, "header x-kairos-slo-ttft-ms: '0'"),
        ([("x-slo-tpot-ms", "nan")], None, "header x-slo-tpot-ms: 'nan'"),
        ([("x-sgl-tps-slo", "1e309")], None, "header x-sgl-tps-slo: '1e309'"),
        ([("x-slo-ttft-ms", "5"), ("x-slo-ttft-ms", "5")], None, "another TTFT header"),
        ([("x-kairos-slo-class", "gold")], None, "not one of default, batch, interactive"),
        ([], {"ttft_ms": -4}, "body.kairos.ttft_ms: -4"),
        ([], {"tpot_ms": "fast"}, "body.kairos.tpot_ms: 'fast'"),
        ([], {"deadline": 1}, "unknown field 'deadline'"),
        ([], 17, "body.kairos: 17 is not an object"),
    ],
)
def test_a_bad_value_is_a_400_that_names_it(
    cluster: Cluster,
    path: str,
    stream: bool,
    headers: list[tuple[str, str]],
    fields: object,
    named: str,
) -> None:
    body = {**BODIES[path], "stream": stream}
    if fields is not None:
        body["kairos"] = fields
    answer = send(cluster, body, path=path, headers=headers)
    for leg in (answer.prefill, answer.decode):
        assert leg.status_code == 400
        assert named in leg.text.replace('\\"', '"')


@on(KAIROS)
def test_a_bad_value_in_custom_params_names_its_place(cluster: Cluster) -> None:
    bad = {"custom_params": {"kairos": {"ttft_ms": 0}}}
    body = {"input_ids": [IDS, IDS], "sampling_params": [SHORT, {**SHORT, **bad}]}
    answer = send(cluster, body)
    assert answer.decode.status_code == 400
    assert "sampling_params[1].custom_params.kairos.ttft_ms: 0" in answer.decode.text


@on(KAIROS)
def test_a_bad_request_leaves_others_alone(cluster: Cluster) -> None:
    before = kairos_state(cluster.prefill[0])
    send(cluster, BODIES["/generate"], headers={"x-slo-ttft-ms": "-1"})
    good = send(cluster, BODIES["/generate"], headers={"x-slo-ttft-ms": "900"})
    after = kairos_state(cluster.prefill[0])
    assert good.decode.status_code == 200
    assert before is not None
    assert after is not None
    seen = [sum(state["requests_by_class"].values()) for state in (before, after)]
    assert seen[1] == seen[0] + 1
    assert after["invalid_slos"] == 0


@on(KAIROS)
def test_the_other_custom_params_pass_through(cluster: Cluster) -> None:
    params = {**SHORT, "custom_params": {"mine": [1, 2], "kairos": {"ttft_ms": 800}}}
    answer = send(cluster, {"input_ids": IDS, "sampling_params": params})
    assert answer.decode.status_code == 200
    assert slos(cluster)[0][0]["ttft_ms"] == 800


@on(KAIROS)
def test_endpoints_without_generation_are_untouched(cluster: Cluster) -> None:
    for path in ("/health", "/v1/models", "/get_model_info"):
        response = httpx.get(cluster.prefill[0].url + path, timeout=30)
        assert response.status_code == 200
        assert "x-kairos-slo-applied" not in response.headers
