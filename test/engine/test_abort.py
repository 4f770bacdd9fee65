"""Aborts release all tokens, rows and queue entries of both servers."""

from collections.abc import Iterator

import pytest

from kairos.cluster import Cluster
from support.clusters import on
from support.configs import KAIROS
from support.pair import Streaming, occupancy, send, wait_for, wait_idle

# At 20,000 tokens/s and 8 ms a step: about three seconds of prefill, minutes of decode.
LONG_PROMPT = 60_000
LONG_OUTPUT = 20_000


@pytest.fixture(autouse=True)
def idle(cluster: Cluster) -> Iterator[None]:
    wait_idle(cluster)
    yield
    wait_idle(cluster)


def in_prefill(cluster: Cluster) -> None:
    """Wait until both servers hold KV and a row for the request."""
    for server in (cluster.prefill[0], cluster.decode[0]):
        for figure in ("num_used_tokens", "rows_in_use"):
            wait_for(
                lambda server=server, figure=figure: occupancy(server)[figure] > 0,
                f"{figure} on {server.name}",
            )


def end(request: Streaming, by: str) -> None:
    if by == "rid":
        request.abort()
        request.wait_finished()


@on(KAIROS)
@pytest.mark.parametrize("by", ["rid", "disconnect"])
def test_abort_during_prefill_releases_everything(cluster: Cluster, by: str) -> None:
    with Streaming(cluster, LONG_PROMPT, 10) as request:
        in_prefill(cluster)
        assert request.events == 0, "still in prefill"
        end(request, by)
    wait_idle(cluster)


@on(KAIROS)
@pytest.mark.parametrize("by", ["rid", "disconnect"])
def test_abort_during_decode_releases_everything(cluster: Cluster, by: str) -> None:
    with Streaming(cluster, 100, LONG_OUTPUT) as request:
        wait_for(lambda: request.events > 5, "tokens")
        wait_for(lambda: occupancy(cluster.decode[0])["num_running_reqs"] == 1)
        end(request, by)
    wait_idle(cluster)


@on(KAIROS)
@pytest.mark.parametrize("by", ["rid", "disconnect"])
def test_abort_in_the_waiting_queue_releases_everything(cluster: Cluster, by: str) -> None:
    with Streaming(cluster, LONG_PROMPT, 2, slo={"ttft_ms": 60_000}) as ahead:
        in_prefill(cluster)
        with Streaming(cluster, 3000, 10, slo={"ttft_ms": 600_000}) as waiting:
            wait_for(
                lambda: occupancy(cluster.prefill[0])["num_waiting_reqs"] > 0, "a waiting request"
            )
            assert waiting.events == 0
            end(waiting, by)
        ahead.wait_finished()
        assert ahead.events >= 2, "the request ahead is unharmed"
    wait_idle(cluster)


@on(KAIROS)
def test_servers_keep_serving_after_aborts(cluster: Cluster) -> None:
    for _ in range(4):
        with Streaming(cluster, 20_000, 10):
            in_prefill(cluster)
    wait_idle(cluster)
    body = {"input_ids": [50] * 30, "sampling_params": {"max_new_tokens": 4, "ignore_eos": True}}
    answer = send(cluster, body)
    assert answer.decode.status_code == 200
    assert len(answer.decode.json()["output_ids"]) == 4
