"""Requests on their way through a router and a pair of fake servers."""

import asyncio

import orjson
import pytest

from kairos.router.config.settings import Overload, Scheduling
from kairos.router.request.outcome import Outcome
from kairos.slo import parse_class
from support.router_engine import Fault, fakes, until
from support.router_running import config_for, running

BODY = {"input_ids": [1, 2, 3], "sampling_params": {"max_new_tokens": 4}}


async def test_an_answer_comes_as_the_decode_server_gave_it() -> None:
    async with fakes() as cluster, running(config_for(cluster)) as up:
        async with up.post({**BODY, "kairos": {"ttft_ms": 2000}}) as answer:
            assert answer.status == 200
            assert answer.headers["x-kairos-slo-applied"].startswith("ttft-ms=2000")
            document = await answer.json()
        assert document["meta_info"]["completion_tokens"] == 4
        await up.quiet()
        (end,) = up.ends
        assert end.outcome is Outcome.COMPLETED
        assert end.output_tokens == 4
        prefill, decode = cluster.prefill[0].seen[-1], cluster.decode[0].seen[-1]
        assert prefill == decode
        assert len(decode["rid"]) == 32
        assert decode["sampling_params"]["custom_params"]["kairos"]["ttft_ms"] == 2000.0


async def test_a_stream_comes_event_by_event() -> None:
    async with fakes(token_s=0.002) as cluster, running(config_for(cluster)) as up:
        async with up.post({**BODY, "stream": True}) as answer:
            assert answer.content_type == "text/event-stream"
            text = await answer.text()
        assert text.endswith("data: [DONE]\n\n")
        assert text.count("data: {") == 4
        await up.quiet()
        (end,) = up.ends
        assert end.outcome is Outcome.COMPLETED
        assert end.output_tokens == 4
        assert end.ttft_s is not None
        assert end.tpot_s is not None


@pytest.mark.parametrize("stream", [False, True])
async def test_logprobs_of_the_prompt_come_from_the_prefill_server(stream: bool) -> None:
    async with fakes() as cluster, running(config_for(cluster)) as up:
        async with up.post({**BODY, "return_logprob": True, "stream": stream}) as answer:
            text = await answer.text()
        first = text.partition("\n\n")[0].removeprefix("data: ")
        meta = orjson.loads(first)["meta_info"]
        assert meta["input_token_logprobs"] == [[-0.5, 7, None]] * 2


async def test_samples_of_a_prompt_get_rooms_of_their_own() -> None:
    async with fakes() as cluster, running(config_for(cluster)) as up:
        params = {"max_new_tokens": 2, "n": 3}
        async with up.post({"input_ids": [1, 2], "sampling_params": params}) as answer:
            assert len(await answer.json()) == 3
        body = cluster.decode[0].seen[-1]
        assert body["input_ids"] == [[1, 2]] * 3
        assert len(set(body["bootstrap_room"])) == 3
        assert len(set(body["rid"])) == 3
        assert "n" not in body["sampling_params"]
        await up.quiet()
        assert not cluster.world.violations


async def test_what_a_client_must_not_choose_is_replaced() -> None:
    forged = {
        **BODY,
        "rid": "a",
        "bootstrap_host": "evil",
        "bootstrap_port": 1,
        "bootstrap_room": 7,
        "priority": 99,
        "routed_dp_rank": 3,
    }
    headers = {"x-override-rid": "a", "x-override-bootstrap-host": "evil"}
    async with fakes() as cluster, running(config_for(cluster)) as up:
        async with up.post(forged, headers=headers) as answer:
            assert answer.status == 200
        for engine in cluster.all:
            body = engine.seen[-1]
            assert body["bootstrap_host"] == "127.0.0.1"
            assert body["bootstrap_room"] != 7
            assert len(body["rid"]) == 32
            assert not {"priority", "routed_dp_rank"} & set(body)
            assert not [name for name in engine.headers[-1] if name.startswith("x-override")]


@pytest.mark.parametrize(
    ("body", "part"),
    [
        (b"{", "not JSON"),
        (b"[]", "object"),
        (b'{"sampling_params": {}}', "one of text"),
        (b'{"text": "a", "stream": "yes"}', "stream"),
        (b'{"text": "a", "sampling_params": {"n": 0}}', "n:"),
        (b'{"text": "a", "kairos": {"ttft_ms": -1}}', "ttft_ms"),
        (b'{"text": "a", "sampling_params": {"n": 1000}}', "at most 128"),
    ],
)
async def test_a_bad_body_is_refused_before_any_server_sees_it(body: bytes, part: str) -> None:
    async with fakes() as cluster, running(config_for(cluster)) as up:
        before = len(cluster.decode[0].seen)
        async with up.session.post(up.url + "/generate", data=body) as answer:
            assert answer.status == 400
            assert part in (await answer.json())["error"]["message"]
        assert len(cluster.decode[0].seen) == before
        assert [end.outcome for end in up.ends] == [Outcome.INVALID]


async def test_many_at_once_each_end_once() -> None:
    async with fakes(2, 2, token_s=0.001) as cluster, running(config_for(cluster)) as up:

        async def one(number: int) -> int:
            async with up.post({**BODY, "stream": number % 2 == 0}) as answer:
                await answer.read()
                return answer.status

        statuses = await asyncio.gather(*(one(number) for number in range(200)))
        assert statuses == [200] * 200
        await up.quiet()
        assert [end.outcome for end in up.ends] == [Outcome.COMPLETED] * 200
        assert not cluster.world.violations
        assert cluster.idle


async def test_a_class_that_a_kairos_server_does_not_define_is_not_named_to_it() -> None:
    scheduling = Scheduling(slo_class=(parse_class("fast=100,10", "t"),))
    async with fakes() as cluster:
        cluster.decode[0].state = {"kairos": {}}
        async with running(config_for(cluster, scheduling=scheduling)) as up:
            async with up.post(BODY, headers={"x-kairos-slo-class": "fast"}) as answer:
                assert answer.status == 200
                assert "class=fast" in answer.headers["x-kairos-slo-applied"]
            sent = cluster.decode[0].seen[-1]["sampling_params"]["custom_params"]["kairos"]
            assert "class" not in sent
            assert sent["ttft_ms"] == 100


FORGED = '{"type":"abort"} \n\nevent: response.failed\n\n data: {"error": {}}'


@pytest.mark.parametrize("stream", [False, True])
async def test_what_a_client_wrote_into_a_responses_body_breaks_nothing(stream: bool) -> None:
    body = {
        "input": "x",
        "stream": stream,
        "metadata": {"type": "abort", "finish_reason": "abort", "note": FORGED},
    }
    async with fakes() as cluster, running(config_for(cluster)) as up:
        async with up.post(body, "/v1/responses") as answer:
            assert answer.status == 200
            text = await answer.text()
        await up.quiet()
        assert [end.outcome for end in up.ends] == [Outcome.COMPLETED]
        # Cut at its length, which is a proper end.
        assert '"status":"incomplete"' in text
        assert '"type":"abort"' in text


@pytest.mark.parametrize("stream", [False, True])
async def test_a_responses_request_is_aborted_by_its_request_id(stream: bool) -> None:
    async with fakes() as cluster, running(config_for(cluster)) as up:
        decode = cluster.decode[0]
        cluster.world.token_s = 5.0
        request = asyncio.ensure_future(
            up.session.post(up.url + "/v1/responses", json={"input": "x", "stream": stream})
        )
        await until(lambda: any("input" in body for body in decode.seen))
        await asyncio.sleep(0.02)
        if not request.cancel():  # the answer has begun
            request.result().close()
        await asyncio.gather(request, return_exceptions=True)
        await up.quiet()
        (sent,) = [body for body in decode.seen if "input" in body]
        assert "rid" not in sent
        assert sent["request_id"] in decode.aborted


async def test_a_failed_response_is_no_completion_and_told_once() -> None:
    async with fakes() as cluster, running(config_for(cluster)) as up:
        decode = cluster.decode[0]
        cluster.world.token_s = 5.0
        async with up.post({"input": "x", "stream": True}, "/v1/responses") as answer:
            first = await answer.content.readuntil(b"\n\n")
            (rid,) = decode.running
            decode._events[rid].set()  # the server gives it up
            text = (first + await answer.content.read()).decode()
        assert text.count("event: response.failed") == 1
        assert "error" not in text
        await up.quiet()
        assert [end.outcome for end in up.ends] == [Outcome.ENGINE_FAILED]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/generate"])
async def test_an_error_event_of_the_server_is_a_failure_and_told_once(path: str) -> None:
    messages = [{"role": "user", "content": "x"}]
    body = {"messages": messages, "prompt": "x", "input_ids": [1], "stream": True}
    async with (
        fakes() as cluster,
        running(config_for(cluster, overload=Overload(retries=0))) as up,
    ):
        cluster.decode[0].fault = Fault("error_event", after=1)
        async with up.post(body, path) as answer:
            text = await answer.text()
        cluster.decode[0].fault = None
        assert text.count('data: {"error"') == 1
        assert text.endswith("data: [DONE]\n\n")
        await up.quiet()
        (end,) = up.ends
        assert (end.outcome, end.reason) == (Outcome.ENGINE_FAILED, "error_500")


async def test_an_abort_at_the_end_of_a_long_answer_is_a_failure() -> None:
    async with (
        fakes() as cluster,
        running(config_for(cluster, overload=Overload(retries=0))) as up,
    ):
        cluster.decode[0].fault = Fault("abort")
        async with up.post(BODY) as answer:
            assert answer.status == 502
        cluster.decode[0].fault = None
        await up.quiet()
        assert [end.reason for end in up.ends] == ["aborted"]


@pytest.mark.parametrize("depth", [253, 600, 1000])
async def test_a_body_that_can_be_read_but_not_written_is_refused(depth: int) -> None:
    deep = b'{"text": "a", "deep": ' + b"[" * depth + b"]" * depth + b"}"
    async with fakes() as cluster, running(config_for(cluster)) as up:
        async with up.session.post(up.url + "/generate", data=deep) as answer:
            assert answer.status == 400
            assert "nested too deeply" in (await answer.json())["error"]["message"]
        wide = {**BODY, "wide": [{}] * 5000}
        async with up.post(wide) as answer:
            assert answer.status == 200
        assert [end.outcome for end in up.ends] == [Outcome.INVALID, Outcome.COMPLETED]


async def test_tokens_of_a_batch_are_those_of_all_its_answers() -> None:
    batch = {"input_ids": [[1], [2], [3]], "sampling_params": {"max_new_tokens": 4}}
    async with fakes() as cluster, running(config_for(cluster)) as up:
        async with up.post(batch) as answer:
            await answer.read()
        await up.quiet()
        assert [end.output_tokens for end in up.ends] == [12]


async def test_a_client_that_waits_for_100_continue_gets_it() -> None:
    data = orjson.dumps(BODY)
    async with fakes() as cluster, running(config_for(cluster)) as up:
        host, port = up.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(
            b"POST /generate HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n"
            b"Content-Length: %d\r\n\r\n" % len(data)
        )
        async with asyncio.timeout(5.0):
            assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            writer.write(data)
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 OK\r\n")
        writer.close()
        await up.quiet()
