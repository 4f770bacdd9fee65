"""kairos-router in front of real servers."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from msgspec.structs import replace

from kairos.cluster import Cluster, ServerDiedError
from kairos.router.config.settings import Observability, Overload, RouterConfig, Scheduling, Workers
from kairos.router.request.outcome import Outcome
from kairos.router.workers.endpoint import WorkerEndpoint
from support.clusters import on
from support.configs import KAIROS
from support.pair import fresh_prompt, send, wait_idle
from support.router_engine import until
from support.router_running import TIMEOUTS, Running, running

LONG_PROMPT = 60_000
LONG_OUTPUT = 20_000


@asynccontextmanager
async def router(cluster: Cluster) -> AsyncIterator[Running]:
    prefill, decode = cluster.prefill, cluster.decode
    config = RouterConfig(
        workers=Workers(
            prefill=tuple(WorkerEndpoint("prefill", s.url, s.bootstrap_port) for s in prefill),
            decode=tuple(WorkerEndpoint("decode", s.url) for s in decode),
            health_interval_s=0.5,
        ),
        scheduling=Scheduling(profile="tiny-fast"),
        overload=Overload(retries=0),
        timeouts=replace(TIMEOUTS, first_byte_timeout_s=60.0, request_timeout_s=120.0),
        observability=Observability(access_log="off"),
    )
    async with running(config) as up:
        yield up


def body(prompt: int, output: int, **more: Any) -> dict[str, Any]:
    params = {"max_new_tokens": output, "temperature": 0, "ignore_eos": True}
    return {"input_ids": fresh_prompt(prompt), "sampling_params": params, **more}


async def tokens(answer: Any, count: int) -> None:
    """Return when so many events have come."""
    for _ in range(count):
        await answer.content.readuntil(b"\n\n")


@on(KAIROS)
async def test_answers_are_those_of_a_direct_pair(cluster: Cluster) -> None:
    asked = body(300, 12)
    direct = await asyncio.to_thread(send, cluster, asked)
    async with router(cluster) as up:
        async with up.post(asked) as answer:
            assert answer.status == 200
            whole = await answer.json()
        async with up.post({**asked, "stream": True}) as answer:
            events = (await answer.text()).split("\n\n")
        assert whole["output_ids"] == direct.decode.json()["output_ids"]
        assert events[-2] == "data: [DONE]"
        assert len(events) == 14
        batch = {**asked, "input_ids": [asked["input_ids"]] * 2}
        async with up.post(batch) as answer:
            assert [one["output_ids"] for one in await answer.json()] == [whole["output_ids"]] * 2
        params = {**asked["sampling_params"], "n": 2}
        async with up.post({**asked, "sampling_params": params}) as answer:
            assert [one["output_ids"] for one in await answer.json()] == [whole["output_ids"]] * 2
        await up.quiet()
        assert {end.outcome for end in up.ends} == {Outcome.COMPLETED}
    await asyncio.to_thread(wait_idle, cluster)


@on(KAIROS)
async def test_logprobs_of_the_prompt_are_whole(cluster: Cluster) -> None:
    asked = body(40, 3, return_logprob=True, logprob_start_len=0)
    async with router(cluster) as up:
        async with up.post(asked) as answer:
            meta = (await answer.json())["meta_info"]
        assert len(meta["input_token_logprobs"]) >= 40
        await up.quiet()


@on(KAIROS)
@pytest.mark.parametrize("phase", ["prefill", "decode"])
async def test_a_client_that_leaves_frees_both_servers(cluster: Cluster, phase: str) -> None:
    asked = body(LONG_PROMPT if phase == "prefill" else 100, LONG_OUTPUT, stream=True)
    async with router(cluster) as up:
        request = asyncio.ensure_future(_read_on(up, asked))
        if phase == "prefill":
            await until(lambda: any(one.attempt for one in up.router.handler.active.values()))
            await asyncio.sleep(0.3)
        else:
            await until(lambda: any(one.answering for one in up.router.handler.active.values()))
        request.cancel()
        await asyncio.gather(request, return_exceptions=True)
        await up.quiet()
        assert [end.outcome for end in up.ends] == [Outcome.CLIENT_GONE]
        await asyncio.to_thread(wait_idle, cluster)


@on(KAIROS)
async def test_the_engine_says_a_request_is_wrong_and_the_client_hears_it(
    cluster: Cluster,
) -> None:
    async with router(cluster) as up:
        asked = body(10, 4)
        asked["sampling_params"]["temperature"] = -1
        async with up.post(asked) as answer:
            assert answer.status == 400
            assert "temperature" in await answer.text()
        async with up.post({**asked, "stream": True}) as answer:
            assert answer.status == 400
        await up.quiet()
        assert {end.outcome for end in up.ends} == {Outcome.ENGINE_REFUSED}
    await asyncio.to_thread(wait_idle, cluster)


@on(KAIROS)
async def test_killed_servers(cluster: Cluster) -> None:
    async with router(cluster) as up:
        async with up.post(body(100, LONG_OUTPUT, stream=True)) as streaming:
            await tokens(streaming, 3)
            waiting = asyncio.ensure_future(_read_on(up, body(LONG_PROMPT, 5, stream=True)))
            await until(lambda: sum(len(i.attempts) for i in _prefill(up)) == 1)
            os.kill(cluster.prefill[0].pid, signal.SIGKILL)
            assert await waiting == 502
            # What had its prefill behind it goes on.
            await tokens(streaming, 3)
            await until(lambda: _prefill(up)[0].state.value == "down")
            async with up.post(body(10, 2)) as refused:
                assert refused.status == 503
            os.kill(cluster.decode[0].pid, signal.SIGKILL)
            rest = await streaming.content.read()
            assert rest.split(b"\n\n")[-2].startswith(b'data: {"error":')
        await up.quiet()
        assert sorted(end.outcome.value for end in up.ends) == [
            *("engine_failed", "engine_failed", "unavailable")
        ]
    with pytest.raises(ServerDiedError):
        cluster.check()
    cluster.stop()
    cluster.start()  # for the tests that follow


def _prefill(up: Running) -> list[Any]:
    return [i for i in up.router.registry.workers.values() if i.role.value == "prefill"]


async def _read_on(up: Running, asked: dict[str, Any]) -> int:
    async with up.post(asked) as answer:
        await answer.read()
        return int(answer.status)
