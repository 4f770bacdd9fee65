"""What goes wrong at either leg, in each phase: every request ends once and leaves nothing."""

import asyncio
import errno
import gc
import itertools
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest
from msgspec import structs

from kairos.router.config.settings import Observability, Overload, Security
from kairos.router.edge.keys import new_key
from kairos.router.request.context import RequestContext
from kairos.router.request.outcome import Outcome
from kairos.router.request.parsing import ParsedRequest
from kairos.router.upstream.attempt import PREFILL_GRACE_S
from kairos.router.workers.worker import MAX_ABORTS
from support.router_engine import Fault, fakes, until
from support.router_running import TIMEOUTS, Running, config_for, running

BODY = {"input_ids": [1, 2, 3], "sampling_params": {"max_new_tokens": 20}}
SHORT = structs.replace(TIMEOUTS, first_byte_timeout_s=0.5, stream_idle_timeout_s=0.5)
ONCE = Overload(retries=0)
LEGS = ("prefill", "decode")


async def status_and_text(up: Running, stream: bool) -> tuple[int, str]:
    async with up.post({**BODY, "stream": stream}) as answer:
        return answer.status, await answer.text()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("leg", LEGS)
@pytest.mark.parametrize(
    ("fault", "statuses", "outcome"),
    [
        (Fault("status", status=500), {502}, Outcome.ENGINE_FAILED),
        (Fault("status", status=503), {503}, Outcome.ENGINE_FAILED),
        (Fault("status", status=400), {400}, Outcome.ENGINE_REFUSED),
        (Fault("reset_headers"), {502}, Outcome.ENGINE_FAILED),
        (Fault("hang"), {504}, Outcome.EXPIRED),
        (Fault("stopped"), {502, 504}, None),
    ],
)
async def test_a_failure_before_the_first_byte_is_told_by_the_status(
    leg: str, fault: Fault, statuses: set[int], outcome: Outcome | None, stream: bool
) -> None:
    async with fakes(prefill_s=0.01, token_s=0.002) as cluster:
        config = config_for(cluster, timeouts=SHORT, overload=ONCE)
        async with running(config) as up:
            engine = getattr(cluster, leg)[0]
            engine.fault = replace(fault)
            status, text = await status_and_text(up, stream)
            engine.fault = None
            assert status in statuses
            assert "error" in text
            await up.quiet()
            await until(lambda: cluster.idle, "idle servers")
            (end,) = up.ends
            assert outcome in (None, end.outcome)
            assert not cluster.world.violations


@pytest.mark.parametrize("leg", LEGS)
async def test_a_prefill_server_that_fails_the_transfer_fails_the_request(leg: str) -> None:
    async with fakes() as cluster, running(config_for(cluster, overload=ONCE)) as up:
        cluster.prefill[0].fault = Fault("kv_failure", times=1, only=BODY["input_ids"])
        status, _ = await status_and_text(up, leg == "decode")
        assert status == 502
        await up.quiet()
        assert [end.outcome for end in up.ends] == [Outcome.ENGINE_FAILED]


@pytest.mark.parametrize("fault", ["reset_stream", "incomplete", "drip", "killed"])
async def test_a_stream_that_breaks_ends_with_an_error_event(fault: str) -> None:
    async with fakes(token_s=0.01) as cluster:
        config = config_for(cluster, timeouts=SHORT, overload=ONCE)
        async with running(config) as up:
            decode = cluster.decode[0]
            decode.fault = Fault(fault) if fault != "killed" else None
            async with up.post({**BODY, "stream": True}) as answer:
                assert answer.status == 200
                first = await answer.content.readuntil(b"\n\n")
                if fault == "killed":
                    await decode.stop()
                text = (first + await answer.content.read()).decode()
            events = [event for event in text.split("\n\n") if event]
            assert events[-1].startswith('data: {"error":')
            assert all(event.startswith("data: {") and event.endswith("}") for event in events)
            assert "[DONE]" not in text
            await up.quiet()
            assert len(up.ends) == 1
            assert up.ends[0].outcome in (Outcome.ENGINE_FAILED, Outcome.EXPIRED)


@pytest.mark.parametrize("leg", LEGS)
@pytest.mark.parametrize("kind", ["status", "reset_headers", "garbage"])
async def test_another_pair_is_tried_with_fresh_rid_and_room(leg: str, kind: str) -> None:
    if (leg, kind) == ("prefill", "garbage"):
        pytest.skip("what a prefill server says in a 200 is not looked at")
    async with fakes() as cluster, running(config_for(cluster)) as up:
        engine = getattr(cluster, leg)[0]
        engine.fault = Fault(kind, times=1, only=BODY["input_ids"])
        status, _ = await status_and_text(up, True)
        assert status == 200
        await up.quiet()
        (end,) = up.ends
        assert end.outcome is Outcome.COMPLETED
        assert end.attempts == 2
        tries = [body for body in engine.seen if len(body["input_ids"]) == 3]
        assert len({body["rid"] for body in tries}) == 2
        assert len({body["bootstrap_room"] for body in tries}) == 2
        assert not cluster.world.violations


@pytest.mark.parametrize("leg", LEGS)
async def test_a_killed_server_is_replaced_by_another(leg: str) -> None:
    async with fakes(2, 2, prefill_s=0.02) as cluster, running(config_for(cluster)) as up:
        await getattr(cluster, leg)[0].stop()
        statuses = await asyncio.gather(*(status_and_text(up, False) for _ in range(8)))
        assert [status for status, _ in statuses] == [200] * 8
        await up.quiet()
        assert cluster.idle


@pytest.mark.parametrize("leg", LEGS)
async def test_without_a_pair_requests_are_refused_at_once_and_served_after_a_restart(
    leg: str,
) -> None:
    async with fakes() as cluster, running(config_for(cluster)) as up:
        engine = getattr(cluster, leg)[0]
        instance = up.router.registry.workers[engine.key]
        await engine.stop()
        await until(lambda: instance.state.value == "down")
        async with up.post(BODY) as answer:
            assert answer.status == 503
            assert int(answer.headers["Retry-After"]) >= 1
        engine.seed += 1
        await engine.start()
        await up.ready()
        assert (await status_and_text(up, True))[0] == 200
        assert instance.restarts == 1
        await up.quiet()


@pytest.mark.parametrize("phase", ["prefilling", "streaming"])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_frees_both_legs(phase: str, stream: bool) -> None:
    slow = {"prefill_s": 30.0} if phase == "prefilling" else {"token_s": 1.0}
    async with fakes() as cluster, running(config_for(cluster)) as up:
        for name, value in slow.items():
            setattr(cluster.world, name, value)
        request = asyncio.ensure_future(status_and_text(up, stream))
        running_legs = cluster.all if phase == "prefilling" else cluster.decode

        def runs() -> bool:  # probes run there, too
            rids = {context.rid for context in up.router.handler.active.values()}
            return bool(rids) and all(rids <= engine.running.keys() for engine in running_legs)

        await until(runs)
        request.cancel()
        await asyncio.gather(request, return_exceptions=True)
        await up.quiet()
        assert cluster.idle
        assert [end.outcome for end in up.ends] == [Outcome.CLIENT_GONE]
        assert cluster.decode[0].aborted
        if phase == "prefilling":
            assert cluster.prefill[0].aborted


async def test_a_client_that_stops_to_read_is_cut_off() -> None:
    async with fakes() as cluster:
        config = config_for(cluster, timeouts=structs.replace(TIMEOUTS, write_timeout_s=0.2))
        async with running(config) as up:
            body = {**BODY, "sampling_params": {"max_new_tokens": 6000}, "stream": True}
            host, port = up.url.removeprefix("http://").split(":")
            _, writer = await asyncio.open_connection(host, int(port), limit=1 << 12)
            data = orjson.dumps(body)
            writer.write(
                b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s"
                % (len(data), data)
            )
            await until(lambda: len(up.ends) == 1, "the end of a request nobody reads")
            assert up.ends[0].outcome is Outcome.CLIENT_GONE
            assert up.ends[0].reason == "slow_reader"
            writer.close()
            await up.quiet()
            await until(lambda: cluster.idle)


async def test_requests_that_run_when_the_router_stops_are_told_so() -> None:
    async with fakes() as cluster, running(config_for(cluster)) as up:
        cluster.world.token_s = 5.0
        request = asyncio.ensure_future(status_and_text(up, True))
        await until(lambda: bool(cluster.decode[0].running) and up.ends == [])
        await until(lambda: any(one.answering for one in up.router.handler.active.values()))
        up.router.config = structs.replace(
            up.router.config, timeouts=structs.replace(TIMEOUTS, drain_timeout_s=0.05)
        )
        await up.router.stop()
        status, text = await request
        assert status == 200
        assert "shut_down" in text
        assert [end.outcome for end in up.ends] == [Outcome.SHUT_DOWN]


async def test_a_server_that_fails_in_a_row_is_taken_out_and_comes_back() -> None:
    async with fakes(1, 2) as cluster, running(config_for(cluster, overload=ONCE)) as up:
        decode = cluster.decode[0]
        worker = up.router.registry.workers[decode.key]
        decode.fault = Fault("status", status=500)
        # The requests are sent together: placement may send single ones to one server only. Each
        # prompt is new, because a prompt that fails again counts once.
        prompts = ([1, 2, number] for number in itertools.count())
        async with asyncio.timeout(30.0):
            while worker.state.value != "open":
                asked = (up.post({**BODY, "input_ids": next(prompts)}) for _ in range(8))
                assert {answer.status for answer in await asyncio.gather(*asked)} <= {200, 502}
        decode.fault = None
        await up.ready(1, 2)
        assert (await status_and_text(up, False))[0] == 200


async def test_refusals_of_a_server_never_take_it_out() -> None:
    async with fakes() as cluster, running(config_for(cluster)) as up:
        cluster.decode[0].fault = Fault("status", status=400, times=10)
        for _ in range(10):
            assert (await status_and_text(up, False))[0] == 400
        assert up.router.registry.workers[cluster.decode[0].key].state.value == "ready"
        assert {end.outcome for end in up.ends} == {Outcome.ENGINE_REFUSED}


@pytest.mark.parametrize("leg", LEGS)
async def test_a_drained_server_ends_what_it_has_and_gets_nothing_new(leg: str) -> None:
    async with fakes(2, 2, token_s=0.02) as cluster, running(config_for(cluster)) as up:
        engine = getattr(cluster, leg)[0]
        requests = [asyncio.ensure_future(status_and_text(up, True)) for _ in range(8)]
        await until(lambda: len(up.router.handler.active) == 8)
        await until(lambda: any(e.running for e in cluster.decode))
        up.router.registry.drain(engine.key)
        assert {status for status, _ in await asyncio.gather(*requests)} == {200}
        before = len(engine.seen)
        await asyncio.gather(*(status_and_text(up, True) for _ in range(6)))
        assert len(engine.seen) == before
        await up.quiet()


async def test_an_answer_that_is_no_stream_may_take_longer_than_a_first_byte() -> None:
    timeouts = structs.replace(TIMEOUTS, first_byte_timeout_s=0.3, stream_idle_timeout_s=0.1)
    async with (
        fakes(token_s=0.05) as cluster,
        running(config_for(cluster, timeouts=timeouts, overload=ONCE)) as up,
    ):
        assert (await status_and_text(up, False))[0] == 200
        await up.quiet()
        assert not charged(up)


def charged(up: Running) -> set[tuple[str, str]]:
    """Role and reason of the failures that count for breakers."""
    return {
        (sample.labels["role"], sample.labels["reason"])
        for family in up.router.metrics.registry.collect()
        if family.name == "kairos_router_worker_failures"
        for sample in family.samples
        if sample.name.endswith("_total") and sample.value
    }


@pytest.mark.parametrize("leg", LEGS)
async def test_before_prefill_has_ended_silence_is_charged_to_both_servers(leg: str) -> None:
    async with (
        fakes() as cluster,
        running(config_for(cluster, timeouts=SHORT, overload=ONCE)) as up,
    ):
        engine = getattr(cluster, leg)[0]
        engine.fault = Fault("hang", times=1, only=BODY["input_ids"])
        assert (await status_and_text(up, True))[0] == 504
        assert charged(up) == {(role, "first_byte_timeout") for role in LEGS}


async def test_silence_in_a_stream_is_charged_to_the_decode_server() -> None:
    async with (
        fakes() as cluster,
        running(config_for(cluster, timeouts=SHORT, overload=ONCE)) as up,
    ):
        cluster.decode[0].fault = Fault("drip", times=1, only=BODY["input_ids"])
        await status_and_text(up, True)
        assert charged(up) == {("decode", "stream_idle_timeout")}


async def test_of_two_pairs_only_the_server_that_hangs_stays_out() -> None:
    async with fakes(2, 2) as cluster:
        config = config_for(cluster, timeouts=SHORT, overload=ONCE)
        async with running(config) as up:
            hung, *others = cluster.decode[0], cluster.decode[1], *cluster.prefill
            hung.fault = Fault("hang")
            states = up.router.registry.workers
            async with asyncio.timeout(30.0):
                while states[hung.key].state.value != "open":
                    await asyncio.gather(*(status_and_text(up, True) for _ in range(4)))
            await until(lambda: all(states[one.key].state.value == "ready" for one in others))
            assert states[hung.key].state.value == "open"
            assert (await status_and_text(up, True))[0] == 200
            hung.fault = None
            await up.ready(2, 2)


async def test_a_stream_that_takes_too_long_ends_with_an_error_event() -> None:
    async with fakes(token_s=0.02) as cluster:
        config = config_for(cluster, timeouts=structs.replace(TIMEOUTS, request_timeout_s=0.5))
        async with running(config) as up:
            body = {"input_ids": [1], "sampling_params": {"max_new_tokens": 500}, "stream": True}
            async with up.post(body) as answer:
                text = await answer.text()
            assert '"code":"request_timeout"' in text.split("\n\n")[-2]
            await up.quiet()
            (end,) = up.ends
            assert (end.outcome, end.reason) == (Outcome.EXPIRED, "request_timeout")
            assert not charged(up)
            assert cluster.idle


async def test_a_request_that_is_still_being_read_when_the_router_stops_is_told_so(
    tmp_path: Path,
) -> None:
    log = tmp_path / "log"
    async with fakes() as cluster:
        config = config_for(
            cluster,
            observability=Observability(access_log=str(log)),
            timeouts=structs.replace(TIMEOUTS, drain_timeout_s=0.05),
        )
        async with running(config) as up:
            host, port = up.url.removeprefix("http://").split(":")
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{")
            await until(lambda: len(up.router.handler.active) == 1)
            begun_s = time.monotonic()
            await up.router.stop()
            assert time.monotonic() - begun_s < 5.0
            async with asyncio.timeout(5.0):
                text = await reader.read()
            assert text.startswith(b"HTTP/1.1 503 ")
            assert b"shut_down" in text
            writer.close()
        assert [end.outcome for end in up.ends] == [Outcome.SHUT_DOWN]
        (line,) = log.read_text().splitlines()
        assert orjson.loads(line)["outcome"] == "shut_down"


async def test_a_restarted_server_is_introduced_anew() -> None:
    async with fakes() as cluster, running(config_for(cluster)) as up:
        decode = cluster.decode[0]
        instance = up.router.registry.workers[decode.key]
        telemetry = up.router.registry.telemetry
        assert telemetry is not None
        assert telemetry.snapshot()[decode.key]["endpoint"] is None
        for number in (1, 2):
            decode.state = {"kairos": {"telemetry": f"tcp://127.0.0.1:{number}"}}
            await decode.restart()
            await until(lambda number=number: instance.restarts == number)
            await up.ready()
            assert instance.kairos
            assert telemetry.snapshot()[decode.key]["endpoint"] == f"tcp://127.0.0.1:{number}"
            assert (await status_and_text(up, True))[0] == 200
        await up.quiet()


async def test_a_decode_server_that_answers_no_abort_keeps_no_other_waiting() -> None:
    async with (
        fakes() as cluster,
        running(config_for(cluster)) as up,
    ):
        cluster.world.prefill_s = 30.0
        prefill, decode = cluster.prefill[0], cluster.decode[0]
        batch = {"input_ids": [[1]] * 20, "sampling_params": {"max_new_tokens": 2}}
        request = asyncio.ensure_future(up.session.post(up.url + "/generate", json=batch))
        await until(lambda: len(prefill.running) == len(decode.running) == 20)
        decode.abort_s = 0.9  # each, of twenty
        request.cancel()
        await asyncio.gather(request, return_exceptions=True)
        begun_s = time.monotonic()
        await until(lambda: bool(prefill.aborted))
        assert time.monotonic() - begun_s < 0.7
        await up.quiet()
        assert time.monotonic() - begun_s < 8.0


async def test_a_storm_of_aborts_is_damped() -> None:
    async with fakes() as cluster, running(config_for(cluster)) as up:
        decode = cluster.decode[0]
        cluster.world.token_s = 30.0
        decode.abort_s = 0.05
        many = 4 * MAX_ABORTS
        requests = [asyncio.ensure_future(status_and_text(up, True)) for _ in range(many)]
        await until(lambda: sum(one.answering for one in up.router.handler.active.values()) == many)
        for request in requests:
            request.cancel()
        await asyncio.gather(*requests, return_exceptions=True)
        await up.quiet()
        assert decode.most_aborting == MAX_ABORTS
        damped = up.router.metrics.registry.get_sample_value("kairos_router_aborts_damped_total")
        assert damped
        assert cluster.idle


async def test_a_request_that_its_tenants_limits_refuse_is_logged_as_the_tenants(
    tmp_path: Path,
) -> None:
    key, hashed = new_key()
    keys = tmp_path / "keys.yaml"
    keys.write_text(f"tenants: {{a: {{keys: ['{hashed}'], requests_per_s: 0.001, burst: 1}}}}")
    async with (
        fakes() as cluster,
        running(config_for(cluster, security=Security(keys_file=keys))) as up,
    ):
        for status in (200, 429):
            headers = {"Authorization": f"Bearer {key}"}
            async with up.post(BODY, headers=headers) as answer:
                assert answer.status == status
        await up.quiet()
        assert [end.tenant for end in up.ends] == ["a", "a"]
        (tenant,) = up.router.keyring.tenants
        assert up.router.gate.running(tenant) == 0


async def test_a_decode_leg_that_breaks_ends_the_prefill_leg_at_once() -> None:
    async with fakes() as cluster, running(config_for(cluster, overload=ONCE)) as up:
        cluster.decode[0].fault = Fault("reset_headers", times=1, only=BODY["input_ids"])
        begun_s = time.monotonic()
        assert (await status_and_text(up, True))[0] == 502
        await up.quiet()
        assert time.monotonic() - begun_s < PREFILL_GRACE_S
        assert cluster.prefill[0].aborted


async def test_a_server_behind_a_connection_that_broke_is_told_too() -> None:
    async with fakes() as cluster, running(config_for(cluster, overload=ONCE)) as up:
        cluster.decode[0].fault = Fault("reset_stream", times=1, only=BODY["input_ids"])
        await status_and_text(up, True)
        await up.quiet()
        assert cluster.decode[0].aborts == 1


async def test_a_stream_holds_no_connection_to_the_prefill_server_once_it_has_answered() -> None:
    async with fakes() as cluster, running(config_for(cluster)) as up:
        cluster.world.token_s = 1.0
        streams = []
        for _ in range(20):
            answer = await up.post({**BODY, "stream": True})
            await answer.content.readuntil(b"\n\n")
            streams.append(answer)
        assert len(cluster.prefill[0].connections) < 10
        for answer in streams:
            answer.close()
        await up.quiet()


async def test_a_client_that_pauses_is_not_held_against_the_server() -> None:
    timeouts = structs.replace(TIMEOUTS, stream_idle_timeout_s=0.3, write_timeout_s=10.0)
    async with (
        fakes() as cluster,
        running(config_for(cluster, timeouts=timeouts, overload=ONCE)) as up,
    ):
        body = {**BODY, "sampling_params": {"max_new_tokens": 6000}, "stream": True}
        data = orjson.dumps(body)
        host, port = up.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port), limit=1 << 12)
        writer.write(
            b"POST /generate HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
            b"Content-Length: %d\r\n\r\n%s" % (len(data), data)
        )
        await until(lambda: any(one.answering for one in up.router.handler.active.values()))
        await asyncio.sleep(1.0)
        assert not up.ends
        async with asyncio.timeout(60.0):
            while await reader.read(1 << 20):
                pass
        writer.close()
        await up.quiet()
        assert [end.outcome for end in up.ends] == [Outcome.COMPLETED]
        assert not charged(up)


@pytest.mark.parametrize("leg", LEGS)
async def test_the_routers_own_lack_of_files_is_not_held_against_a_server(
    leg: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with fakes() as cluster, running(config_for(cluster, overload=ONCE)) as up:
        engine = getattr(cluster, leg)[0]
        loop = asyncio.get_running_loop()
        connect = loop.create_connection

        async def exhausted(factory: Any, *address: Any, **more: Any) -> Any:
            if address[1:] == (engine.port,):
                raise OSError(errno.EMFILE, "Too many open files")
            return await connect(factory, *address, **more)

        monkeypatch.setattr(loop, "create_connection", exhausted)
        for _ in range(10):  # a connection that is in use comes back
            up.router.pool.close()
            await asyncio.sleep(0.05)
        status, text = await status_and_text(up, True)
        assert status == 503
        assert "no_more_files" in text
        await asyncio.sleep(0.5)  # health checks
        monkeypatch.undo()
        assert {i.state.value for i in up.router.registry.workers.values()} == {"ready"}
        assert not charged(up)
        assert (await status_and_text(up, True))[0] == 200


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("fault", [None, Fault("status", status=400), Fault("reset_headers")])
async def test_a_request_that_ended_is_forgotten_without_the_collectors_help(
    fault: Fault | None, stream: bool
) -> None:
    async with fakes() as cluster, running(config_for(cluster, overload=ONCE)) as up:
        gc.collect()
        gc.disable()
        try:
            for _ in range(3):
                cluster.decode[0].fault = fault and replace(fault, times=1)
                await status_and_text(up, stream)
            await up.quiet()
            await until(lambda: cluster.idle)
            left = [one for one in gc.get_objects() if type(one) in (RequestContext, ParsedRequest)]
            assert not left
        finally:
            gc.enable()
