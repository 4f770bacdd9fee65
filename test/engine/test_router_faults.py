"""What goes wrong between the router and a real pair, or with its processes, in each phase of a
request: one end in bounded time, nothing left anywhere, and the next request is served."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from typing import Any

import pytest
from msgspec.structs import replace

from kairos.cluster import Cluster, Server
from kairos.cluster.supervise import descendants
from kairos.router.config.settings import Observability, Overload, RouterConfig, Scheduling, Workers
from kairos.router.paths import CHAT, COMPLETIONS, GENERATE
from kairos.router.request.outcome import Outcome
from kairos.router.upstream import abort as aborts
from kairos.router.workers.endpoint import WorkerEndpoint
from support.clusters import on
from support.configs import KAIROS
from support.faulty_link import Break, FaultyLink, linked
from support.pair import fresh_prompt, occupancy, wait_idle
from support.router_engine import until
from support.router_running import TIMEOUTS, Running, running

LEGS = ("prefill", "decode")
LONG_PROMPT = 60_000  # some three seconds of prefill
LONG_OUTPUT = 20_000
SILENCE_S = 2.0
BOUND_S = 15.0  # for a request to end, whatever happens
ABORT_LIMIT_S = 1.0  # 5 for users; here it is what a hanging leg costs
PATIENT = replace(TIMEOUTS, first_byte_timeout_s=60.0, stream_idle_timeout_s=60.0)
IMPATIENT = replace(TIMEOUTS, first_byte_timeout_s=SILENCE_S, stream_idle_timeout_s=SILENCE_S)
# Bodies of which a server of 0.5.23 died. The last one stops a scheduler for as long as it is
# searched; `prompt` with the text of an id is refused because it does the same as `input_ids` with
# one. Others are in the unit tests of the checks.
IDS = [20, 21, 22]
MESSAGES = [{"role": "user", "content": "a"}]
KILLERS: list[tuple[str, dict[str, Any]]] = [
    (GENERATE, {"input_ids": [IDS, []]}),
    (GENERATE, {"input_ids": [1 << 20]}),
    (GENERATE, {"input_ids": IDS, "return_logprob": True, "top_logprobs_num": 129}),
    (GENERATE, {"input_ids": IDS, "return_logprob": True, "logprob_start_len": -100}),
    (GENERATE, {"input_ids": IDS, "sampling_params": {"top_k": 3_000_000_000}}),
    (GENERATE, {"input_ids": IDS, "positional_embed_overrides": [1]}),
    (GENERATE, {"input_ids": IDS, "custom_labels": {"a": "b"}}),
    (GENERATE, {"input_ids": IDS, "session_params": {"id": [1]}}),
    (CHAT, {"messages": MESSAGES, "chat_template_kwargs": {"spaces_between_special_tokens": [1]}}),
    (COMPLETIONS, {"prompt": [["1048576"]]}),
    (COMPLETIONS, {"prompt": IDS, "logprobs": "129"}),
    (COMPLETIONS, {"prompt": "a", "min_tokens": 2, "stop_token_ids": [1 << 20]}),
    (COMPLETIONS, {"prompt": "a", "logit_bias": {"30": 1e38}, "temperature": 1e-5}),
    (COMPLETIONS, {"prompt": "a", "stop_regex": "(.*.*.*.*)*\\x01"}),
]


@pytest.fixture(autouse=True)
def short_aborts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aborts, "ABORT_LIMIT_S", ABORT_LIMIT_S)


class Asked:
    """A streaming request, as its client sees it."""

    def __init__(self, up: Running, prompt: int, output: int) -> None:
        self.status = 0
        self.text = ""
        self.read = asyncio.ensure_future(self._read(up, prompt, output))

    @property
    def events(self) -> list[str]:
        return self.text.split("\n\n")[:-1]

    async def _read(self, up: Running, prompt: int, output: int) -> None:
        params = {"max_new_tokens": output, "temperature": 0, "ignore_eos": True}
        body = {"input_ids": fresh_prompt(prompt), "sampling_params": params, "stream": True}
        async with up.post(body) as answer:
            self.status = answer.status
            async for piece in answer.content.iter_any():
                self.text += piece.decode()


class Rig:
    """A pair, its links, the router in front of them, and a client."""

    def __init__(self, cluster: Cluster, links: dict[str, FaultyLink], up: Running) -> None:
        self.servers: dict[str, Server] = {leg: getattr(cluster, leg)[0] for leg in LEGS}
        self.links = links
        self.up = up
        self._cluster = cluster

    @property
    def active_requests(self) -> list[Any]:
        return list(self.up.router.handler.active.values())

    @asynccontextmanager
    async def at(self, phase: str, leg: str) -> AsyncIterator[Asked]:
        """A request that is in a phase, at one of the servers."""
        match phase:
            case "queued":
                async with self.queued() as asked:
                    yield asked
            case "bootstrapping":
                yield await self.bootstrapping(leg)
            case "prefilling":
                yield await self.prefilling()
            case "transferring":
                async with self.transferring() as asked:
                    yield asked
            case "streaming":
                yield await self.streaming()

    @asynccontextmanager
    async def queued(self) -> AsyncIterator[Asked]:
        """A request that waits for a pair, and is dispatched afterwards."""
        self._offer_servers(False)
        asked = Asked(self.up, 100, LONG_OUTPUT)
        dispatcher = self.up.router.dispatcher
        await until(lambda: dispatcher.snapshot(0.0)["queue"]["requests"] == 1)
        yield asked
        self._offer_servers(True)
        self.up.router.waiting.schedule_dispatch()

    async def bootstrapping(self, leg: str) -> Asked:
        """A request that one server waits with, because the other one has not got it."""
        other = self.links["decode" if leg == "prefill" else "prefill"]
        other.hold = True
        asked = Asked(self.up, 100, LONG_OUTPUT)
        name = "prefill_bootstrap_queue_reqs" if leg == "prefill" else "decode_transfer_queue_reqs"
        await self._seen(leg, lambda held: held[name] == 1)
        await until(lambda: other.held == 1)
        other.hold = False
        return asked

    async def prefilling(self) -> Asked:
        asked = Asked(self.up, LONG_PROMPT, LONG_OUTPUT)
        await self._seen("decode", lambda held: held["decode_transfer_queue_reqs"] == 1)
        await self._seen("prefill", lambda held: held["num_used_tokens"] > 0)
        return asked

    async def streaming(self) -> Asked:
        asked = Asked(self.up, 100, LONG_OUTPUT)
        await until(lambda: len(asked.events) > 2, "tokens")
        return asked

    @asynccontextmanager
    async def transferring(self) -> AsyncIterator[Asked]:
        """A request whose KV nobody takes note of, because the decode server is stopped."""
        asked = await self.prefilling()
        with stopped(self.servers["decode"]):
            await until(lambda: any(one.attempt.prefill_body for one in self.active_requests))
            yield asked

    async def ended(self, asked: Asked, outcome: Outcome) -> None:
        """Check that it ended so, once, in bounded time, as its client was told."""
        async with asyncio.timeout(BOUND_S):
            await asked.read
        async with asyncio.timeout(BOUND_S):
            await self.up.quiet()
        assert [end.outcome for end in self.up.ends] == [outcome], self.up.ends
        status = {Outcome.ENGINE_FAILED: 502, Outcome.EXPIRED: 504}[outcome]
        if asked.status == 200:
            assert asked.events[-1].startswith('data: {"error":'), asked.text[-300:]
            assert "[DONE]" not in asked.text
        else:
            assert asked.status == status
            assert '"error"' in asked.text

    async def idle(self, leg: str) -> None:
        """Return when a server holds nothing any more."""
        await self._seen(leg, lambda held: not any(held.values()))

    async def healthy(self) -> None:
        """Check that nothing is left and the next request is served."""
        await asyncio.to_thread(wait_idle, self._cluster)
        await self.up.ready()
        before = len(self.up.ends)
        asked = Asked(self.up, 50, 4)
        await asked.read
        assert (asked.status, asked.events[-1]) == (200, "data: [DONE]")
        await self.up.quiet()
        assert [end.outcome for end in self.up.ends[before:]] == [Outcome.COMPLETED]
        await asyncio.to_thread(wait_idle, self._cluster)

    async def _seen(self, leg: str, condition: Callable[[dict[str, int]], bool]) -> None:
        async with asyncio.timeout(BOUND_S):
            while not condition(await asyncio.to_thread(occupancy, self.servers[leg])):
                await asyncio.sleep(0.01)

    def _offer_servers(self, available: bool) -> None:
        for link in self.links.values():
            self.up.router.dispatcher.set_available(link.key, available)


@asynccontextmanager
async def rigged(cluster: Cluster, patient: bool = True) -> AsyncIterator[Rig]:
    async with AsyncExitStack() as stack:
        links = {
            leg: await stack.enter_async_context(linked(getattr(cluster, leg)[0].url))
            for leg in LEGS
        }
        bootstrap_port = cluster.prefill[0].bootstrap_port
        config = RouterConfig(
            workers=Workers(
                prefill=(WorkerEndpoint("prefill", links["prefill"].url, bootstrap_port),),
                decode=(WorkerEndpoint("decode", links["decode"].url),),
                health_interval_s=0.5,
            ),
            scheduling=Scheduling(profile="tiny-fast"),
            overload=Overload(retries=0),
            timeouts=PATIENT if patient else IMPATIENT,
            observability=Observability(access_log="off"),
        )
        up = await stack.enter_async_context(running(config))
        await up.quiet()  # probes are over: what breaks from here on is the request
        yield Rig(cluster, links, up)


@contextmanager
def stopped(server: Server) -> Iterator[None]:
    """A server none of whose processes runs."""
    pids = [server.pid, *descendants(server.pid)]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


@on(KAIROS)
@pytest.mark.parametrize("leg", LEGS)
@pytest.mark.parametrize("fault", ["refused", "before_headers", "in_headers", "in_body"])
async def test_a_connection_that_breaks_once_the_request_is_dispatched(
    cluster: Cluster, leg: str, fault: str
) -> None:
    async with rigged(cluster) as rig:
        link = rig.links[leg]
        async with rig.queued() as asked:
            if fault == "refused":
                link.refuse()
            else:
                link.break_at = Break(fault)
        await rig.ended(asked, Outcome.ENGINE_FAILED)
        assert asked.status == 502 or fault == "in_body"
        assert link.broken == (fault != "refused")
        await link.open()
        await rig.healthy()


@on(KAIROS)
@pytest.mark.parametrize("leg", LEGS)
async def test_a_server_that_does_not_get_what_was_sent(cluster: Cluster, leg: str) -> None:
    async with rigged(cluster, patient=False) as rig:
        link = rig.links[leg]
        link.hold = True
        asked = Asked(rig.up, 100, 4)
        await until(lambda: link.held == 1)
        link.hold = False
        await rig.ended(asked, Outcome.EXPIRED)
        await rig.healthy()


@on(KAIROS)
@pytest.mark.parametrize("leg", LEGS)
@pytest.mark.parametrize("phase", ["bootstrapping", "prefilling"])
async def test_a_leg_that_is_reset_before_the_first_token(
    cluster: Cluster, leg: str, phase: str
) -> None:
    async with rigged(cluster) as rig:
        async with rig.at(phase, leg) as asked:
            rig.links[leg].reset()
        await rig.ended(asked, Outcome.ENGINE_FAILED)
        assert asked.status == 502
        await rig.healthy()


@on(KAIROS)
async def test_a_body_of_which_an_engine_dies_never_reaches_one(cluster: Cluster) -> None:
    async with rigged(cluster) as rig:
        for path, body in KILLERS:
            async with rig.up.post(body, path) as answer:
                assert answer.status == 400, (path, body, await answer.text())
                assert (await answer.json())["error"]["type"] == "invalid_request_error"
        await rig.up.quiet()
        assert {end.outcome for end in rig.up.ends} == {Outcome.INVALID}
        await rig.healthy()


@on(KAIROS)
@pytest.mark.parametrize("leg", LEGS)
async def test_a_leg_that_falls_silent_while_prefill_runs(cluster: Cluster, leg: str) -> None:
    async with rigged(cluster, patient=False) as rig:
        asked = await rig.prefilling()
        rig.links[leg].silence()
        await rig.ended(asked, Outcome.EXPIRED)
        assert asked.status == 504
        await rig.healthy()


@on(KAIROS)
async def test_a_decode_leg_that_is_reset_while_the_kv_comes(cluster: Cluster) -> None:
    async with rigged(cluster) as rig:
        async with rig.transferring() as asked:
            rig.links["decode"].reset()
        await rig.ended(asked, Outcome.ENGINE_FAILED)
        assert asked.status == 502
        await rig.healthy()


@on(KAIROS)
@pytest.mark.parametrize("fault", ["in_body", "silence"])
async def test_a_stream_that_breaks_ends_with_an_error_event(cluster: Cluster, fault: str) -> None:
    async with rigged(cluster, patient=fault != "silence") as rig:
        asked = await rig.streaming()
        link = rig.links["decode"]
        if fault == "silence":
            link.silence()
        else:
            link.break_at = Break.IN_BODY
        await rig.ended(asked, Outcome.EXPIRED if fault == "silence" else Outcome.ENGINE_FAILED)
        assert asked.status == 200
        await rig.healthy()


@on(KAIROS)
@pytest.mark.parametrize("leg", LEGS)
async def test_a_server_that_is_stopped_while_prefill_runs(cluster: Cluster, leg: str) -> None:
    async with rigged(cluster, patient=False) as rig:
        asked = await rig.prefilling()
        with stopped(rig.servers[leg]):
            await rig.ended(asked, Outcome.EXPIRED)
            assert asked.status == 504
        await rig.healthy()


@on(KAIROS)
@pytest.mark.parametrize("leg", LEGS)
async def test_a_server_that_is_stopped_while_tokens_stream(cluster: Cluster, leg: str) -> None:
    async with rigged(cluster, patient=False) as rig:
        asked = await rig.streaming()
        with stopped(rig.servers[leg]):
            if leg == "prefill":  # its work is done
                before = len(asked.events)
                await until(lambda: len(asked.events) > before + 100)
                asked.read.cancel()
            else:
                await rig.ended(asked, Outcome.EXPIRED)
        await rig.healthy()


@on(KAIROS)
@pytest.mark.long
@pytest.mark.parametrize(
    ("leg", "phase"),
    [
        ("decode", "queued"),
        *((leg, "bootstrapping") for leg in LEGS),
        ("decode", "transferring"),
        *((leg, "streaming") for leg in LEGS),
    ],
)
async def test_a_server_that_is_killed(cluster: Cluster, leg: str, phase: str) -> None:
    other = "decode" if leg == "prefill" else "prefill"
    async with rigged(cluster) as rig:
        async with rig.at(phase, leg) as asked:
            os.kill(rig.servers[leg].pid, signal.SIGKILL)
        if (leg, phase) == ("prefill", "streaming"):  # its work is done
            before = len(asked.events)
            await until(lambda: len(asked.events) > before + 100)
            asked.read.cancel()
            await rig.up.quiet()
        else:
            await rig.ended(asked, Outcome.ENGINE_FAILED)
        await rig.idle(other)
    cluster.stop()
    cluster.start()  # for the tests that follow
