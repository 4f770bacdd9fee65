"""Faults of workers and of requests that must harm no other request."""

import asyncio
import time
from typing import Any

import pytest

from kairos.router.config.settings import Overload
from kairos.router.request.outcome import Outcome
from support.router_engine import Fakes, Fault, fakes, until
from support.router_running import Running, config_for, running

BODY = {"input_ids": [1, 2, 3], "sampling_params": {"max_new_tokens": 30}, "stream": True}


async def text_of(up: Running, body: dict[str, Any] = BODY, **more: Any) -> tuple[int, str]:
    async with up.post(body, **more) as answer:
        return answer.status, await answer.text()


async def streaming(up: Running, count: int = 3) -> list["asyncio.Task[tuple[int, str]]"]:
    """Requests whose prompts are computed and whose tokens flow."""
    asked = [asyncio.ensure_future(text_of(up)) for _ in range(count)]
    await until(lambda: sum(c.answering for c in up.router.handler.active.values()) == count)
    return asked


# A prefill worker that has answered its leg is not needed any more.


async def test_a_stream_survives_the_death_of_its_prefill_worker() -> None:
    async with fakes(token_s=0.02) as cluster, running(config_for(cluster)) as up:
        asked = await streaming(up)
        await cluster.prefill[0].stop()
        answers = await asyncio.gather(*asked)
        assert all(status == 200 and text.endswith("[DONE]\n\n") for status, text in answers)
        assert {end.outcome for end in up.ends} == {Outcome.COMPLETED}


@pytest.mark.parametrize("role", ["prefill", "decode"])
async def test_failed_health_checks_stop_new_work_and_nothing_else(role: str) -> None:
    async with fakes(token_s=0.03) as cluster, running(config_for(cluster)) as up:
        asked = await streaming(up)
        engine = getattr(cluster, role)[0]
        engine.health_status = 401
        worker = up.router.registry.workers[engine.key]
        await until(lambda: worker.state.value == "down")
        assert "401" in worker.reason
        answers = await asyncio.gather(*asked)
        assert all(status == 200 and text.endswith("[DONE]\n\n") for status, text in answers)


async def test_a_worker_that_was_used_before_its_facts_were_known_is_introduced_anew() -> None:
    async with fakes() as cluster:
        engine = cluster.prefill[0]
        engine.state = {"kairos": {"slo_classes": {}}}
        engine.tells.clear()
        async with running(config_for(cluster)) as up:
            assert (await text_of(up))[0] == 200
            engine.tells.set()
            worker = up.router.registry.workers[engine.key]
            await until(lambda: worker.kairos)
            assert up.router.dispatcher._prefill[engine.key].preemptive
            assert (await text_of(up))[0] == 200


async def test_a_rolling_restart_of_every_prefill_worker_loses_nothing() -> None:
    async with fakes(3, 1, prefill_s=0.01, token_s=0.002) as cluster:
        config = config_for(cluster, overload=Overload(retries=3))
        async with running(config) as up:
            stop = False

            async def client() -> None:
                while not stop:
                    status, text = await text_of(up)
                    assert status == 200, text
                    assert text.endswith("[DONE]\n\n"), text

            clients = [asyncio.ensure_future(client()) for _ in range(6)]
            for engine in cluster.prefill:
                up.router.registry.drain(engine.key)
                worker = up.router.registry.workers[engine.key]
                await until(lambda worker=worker: not worker.attempts)
                await engine.restart()
                await until(lambda worker=worker: worker.state.value == "ready")
            stop = True
            await asyncio.gather(*clients)
            assert {end.outcome for end in up.ends} == {Outcome.COMPLETED}


# A poisonous request harms its sender only.


async def test_one_body_that_fails_again_and_again_takes_no_worker_out() -> None:
    async with fakes(2, 2) as cluster, running(config_for(cluster)) as up:
        for engine in cluster.prefill:
            engine.fault = Fault("status", status=500)
        for _ in range(6):
            assert (await text_of(up))[0] == 502
        states = {w.state.value for w in up.router.registry.workers.values()}
        assert states == {"ready"}
        for engine in cluster.prefill:
            engine.fault = None
        begun_s = time.monotonic()
        assert (await text_of(up, {**BODY, "input_ids": [9]}))[0] == 200
        assert time.monotonic() - begun_s < 1.0


async def test_at_most_half_of_a_role_is_out_by_breakers() -> None:
    async with fakes(4, 1) as cluster, running(config_for(cluster)) as up:
        for engine in cluster.prefill:
            engine.fault = Fault("status", status=500)
        out = 0
        for number in range(60):
            await text_of(up, {**BODY, "input_ids": [number]})
            states = [w.state.value for w in up.router.registry.workers.values()]
            out = max(out, states.count("open"))
        assert out == 2


async def test_of_the_workers_that_answer_at_most_half_are_out_by_breakers() -> None:
    async with fakes(4, 1) as cluster, running(config_for(cluster)) as up:
        workers = up.router.registry.workers
        for engine in cluster.prefill[:2]:
            await engine.stop()
        await until(lambda: [w.state.value for w in workers.values()].count("down") == 2)
        for engine in cluster.prefill[2:]:
            engine.fault = Fault("status", status=500)
        for number in range(40):
            await text_of(up, {**BODY, "input_ids": [number]})
            states = [w.state.value for w in workers.values() if w.role.value == "prefill"]
            assert states.count("open") <= 1


async def test_a_removed_worker_gets_nothing_new_after_a_restart() -> None:
    async with fakes(1, 2, token_s=0.05) as cluster, running(config_for(cluster)) as up:
        registry = up.router.registry
        (asked,) = await streaming(up, 1)
        worker = next(
            w for w in registry.workers.values() if w.role.value == "decode" and w.attempts
        )
        registry.discovered(frozenset(), frozenset({worker.endpoint}))
        registry.restarted(worker)
        assert worker.state.value == "draining"
        assert (await asked)[0] == 200
        await until(lambda: worker.key not in registry.workers)


async def test_a_worker_that_fails_its_probes_shows_why() -> None:
    async with fakes(1, 1) as cluster:
        cluster.decode[0].fault = Fault("not_found")
        async with running(config_for(cluster), ready=False) as up:
            shown = up.router.registry.snapshot
            await until(lambda: any("probe with" in (one["reason"] or "") for one in shown()))
            assert all(one["state"] == "starting" for one in shown())
            cluster.decode[0].fault = None
            await up.ready(1, 1)
            assert all(one["reason"] is None for one in shown())


@pytest.mark.parametrize("stream", [True, False])
async def test_an_abort_that_finds_fault_with_the_request_is_passed_on(stream: bool) -> None:
    async with fakes(1, 2) as cluster, running(config_for(cluster)) as up:
        for engine in cluster.decode:
            engine.fault = Fault("abort_400")
        for _ in range(10):
            status, text = await text_of(up, {**BODY, "stream": stream})
            assert status == 400
            assert "no such grammar" in text
        assert {end.attempts for end in up.ends} == {1}
        assert {end.outcome for end in up.ends} == {Outcome.ENGINE_REFUSED}
        states = {w.state.value for w in up.router.registry.workers.values()}
        assert states == {"ready"}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/generate", {"text": ""}),
        ("/generate", {"text": ["a", ""]}),
        ("/generate", {"input_ids": []}),
        ("/generate", {"input_ids": [[1], []]}),
        ("/generate", {"input_ids": [1], "top_logprobs_num": 129}),
        ("/generate", {"text": ["a", "b"], "top_logprobs_num": [1, 129]}),
        ("/generate", {"input_ids": [1, -1]}),
        ("/generate", {"input_ids": [5000]}),
        ("/generate", {"input_ids": [1], "token_ids_logprob": [5000]}),
        ("/generate", {"input_ids": [1] * 3000}),
        ("/generate", {"text": "a", "sampling_params": [{}] * 100_000}),
        ("/generate", {"text": "a", "return_logprob": [True, False]}),
        ("/generate", {"input_ids": [2**70]}),
        ("/v1/completions", {"prompt": ""}),
        ("/v1/completions", {"prompt": ["a", ""]}),
        ("/v1/completions", {"prompt": [[1], []]}),
        ("/v1/completions", {"prompt": "a", "logprobs": 1000}),
        ("/v1/completions", {"prompt": [5000]}),
        ("/v1/chat/completions", {"messages": []}),
        ("/v1/chat/completions", {"messages": [{"role": "user"}], "top_logprobs": 129}),
        ("/v1/responses", {"input": ""}),
    ],
)
async def test_what_engines_die_of_is_refused_at_the_door(path: str, body: dict) -> None:
    async with fakes() as cluster:
        for engine in cluster.all:
            engine.state = {"kairos": {"vocab_size": 5000, "context_length": 2048}}
        async with running(config_for(cluster)) as up:
            status, text = await text_of(up, body, path=path)
            assert status in (400, 413), text
            for engine in cluster.all:  # probes alone
                assert all(seen["input_ids"] == list(range(1, 9)) for seen in engine.seen)
            assert [end.outcome for end in up.ends] == [Outcome.INVALID]


async def test_a_request_alone_on_a_worker_that_dies_is_not_retried() -> None:
    async with fakes(1, 3, token_s=0.01) as cluster:
        config = config_for(cluster, overload=Overload(retries=3))
        async with running(config) as up:
            for engine in cluster.decode:
                engine.fault = Fault("dies")
            status, text = await text_of(up)
            assert status == 502
            assert "server_died" in text
            assert _dead(cluster) == 1


async def test_a_request_with_which_two_workers_died_is_refused() -> None:
    async with fakes(1, 4, prefill_s=0.2) as cluster:
        config = config_for(cluster, overload=Overload(retries=5))
        async with running(config) as up:
            poison = {**BODY, "input_ids": [6, 6, 6]}
            for engine in cluster.decode:
                engine.fault = Fault("dies", only=[6, 6, 6])
            # Others are at every worker, so that the first death may be theirs.
            others = [asyncio.ensure_future(text_of(up)) for _ in range(8)]
            status, _ = await text_of(up, poison)
            assert status == 502
            assert _dead(cluster) <= 2
            status, text = await text_of(up, poison)
            assert status in (400, 502), text
            assert _dead(cluster) <= 2, "no request ends a fleet"
            await asyncio.gather(*others)


async def test_the_last_attempt_of_a_poisonous_request_counts_as_a_death_too() -> None:
    async with fakes(1, 3) as cluster, running(config_for(cluster)) as up:
        cluster.world.flows.clear()
        others: list[asyncio.Task[tuple[int, str]]] = []
        while not all(engine.running for engine in cluster.decode):
            others.append(asyncio.ensure_future(text_of(up)))
            await until(lambda: sum(len(e.running) for e in cluster.decode) == len(others))
        for engine in cluster.decode:
            engine.fault = Fault("dies", only=[6, 6, 6])
        poison = {**BODY, "input_ids": [6, 6, 6]}
        assert (await text_of(up, poison))[0] == 502
        assert _dead(cluster) == 2
        status, text = await text_of(up, poison)
        assert (status, "request_quarantined" in text) == (400, True)
        assert _dead(cluster) == 2
        cluster.world.flows.set()
        await asyncio.gather(*others)


async def test_deaths_in_the_middle_of_streams_count_too() -> None:
    async with fakes(1, 3, token_s=0.01) as cluster, running(config_for(cluster)) as up:
        poison = {**BODY, "input_ids": [6, 6, 6], "stream": True}
        for _ in range(2):
            async with up.post(poison) as answer:
                assert answer.status == 200
                await answer.content.readuntil(b"\n\n")
                (engine,) = (engine for engine in cluster.decode if engine.running)
                await engine.stop()
                await answer.read()
        # The deaths are noticed after their streams have ended.
        async with asyncio.timeout(10.0):
            status = 0
            while status != 400:
                async with up.post(poison) as answer:
                    status, text = answer.status, await answer.text()
        assert "request_quarantined" in text


def _dead(cluster: Fakes) -> int:
    return sum(engine.died for engine in cluster.all)


# Retries go elsewhere.


@pytest.mark.parametrize("status", [500, 503, 429, 401])
async def test_a_retry_goes_to_another_worker(status: int) -> None:
    async with fakes(1, 2) as cluster, running(config_for(cluster)) as up:
        bad, good = cluster.decode
        bad.fault = Fault("status", status=status)
        asked = [text_of(up, {**BODY, "input_ids": [number]}) for number in range(20)]
        answers = await asyncio.gather(*asked)  # at once, so that both workers get some
        assert {answer for answer, _ in answers} == {200}
        assert max(end.attempts for end in up.ends) == 2
        assert len(good.seen) >= 20


async def test_a_worker_without_the_endpoint_is_taken_out_and_the_reason_is_shown() -> None:
    async with fakes(1, 2) as cluster, running(config_for(cluster)) as up:
        bad = cluster.decode[0]
        bad.fault = Fault("not_found")
        asked = [text_of(up, {**BODY, "input_ids": [number]}) for number in range(20)]
        assert {answer for answer, _ in await asyncio.gather(*asked)} == {200}
        worker = up.router.registry.workers[bad.key]
        await until(lambda: worker.state.value == "starting")
        shown = {w["worker"]: w for w in up.router.registry.snapshot()}
        assert "404" in shown[bad.key]["reason"]  # of a request, or of a probe


# Readiness, drained workers, names.


async def test_the_router_is_ready_while_streams_flow_and_prefill_is_busy() -> None:
    async with fakes(token_s=0.02) as cluster, running(config_for(cluster)) as up:
        asked = await streaming(up)
        up.router.registry.last_success_s = 1.0  # long ago
        assert up.router.health.ready
        await asyncio.gather(*asked)


async def test_a_drained_worker_comes_back_by_undrain_or_by_its_restart() -> None:
    async with fakes(1, 2) as cluster, running(config_for(cluster)) as up:
        engine = cluster.decode[0]
        worker = up.router.registry.workers[engine.key]
        for comes_back in (up.session.post(f"{up.url}/workers/{engine.key}/undrain"), None):
            up.router.registry.drain(engine.key)
            await asyncio.sleep(0.3)
            assert worker.state.value == "draining"
            if comes_back is None:
                await engine.restart()
            else:
                comes_back.close()
                up.router.registry.undrain(engine.key)
            await until(lambda: worker.state.value == "ready")


async def test_models_that_clients_invent_take_no_place_of_the_real_one() -> None:
    async with fakes() as cluster, running(config_for(cluster)) as up:
        for number in range(70):
            await text_of(up, {**BODY, "model": f"invented-{number}", "stream": False})
        await text_of(up, {**BODY, "model": "served", "stream": False})
        text = up.router.metrics.exposition().decode()
        assert 'model="served"' in text
        assert "invented" not in text


async def test_whole_answers_are_no_ttft_misses() -> None:
    async with fakes(prefill_s=0.3) as cluster, running(config_for(cluster)) as up:
        slo = {"x-kairos-slo-ttft-ms": "100"}
        await text_of(up, {**BODY, "stream": False}, headers=slo)
        assert up.ends[0].ttft_met is None
        await text_of(up, BODY, headers=slo)
        assert up.ends[1].ttft_met is False
