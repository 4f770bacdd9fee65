"""Clients, router and servers, any order of events: each request ends once and leaves nothing."""

import asyncio
import time
from contextlib import AsyncExitStack, suppress
from typing import Any

import aiohttp
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from msgspec.structs import replace
from prometheus_client.parser import text_string_to_metric_families

from kairos.router.config.settings import Overload
from kairos.router.upstream.abort import ABORT_LIMIT_S
from support.router_engine import Fakes, Fault, until
from support.router_running import TIMEOUTS, Running, config_for, running

LIMITS = replace(
    TIMEOUTS,
    first_byte_timeout_s=0.3,
    stream_idle_timeout_s=0.3,
    queue_timeout_s=0.5,
    request_timeout_s=3.0,
    connect_timeout_s=0.3,
)
# Two attempts, each with an end of its own; far more than that is "for ever".
BOUND_S = LIMITS.request_timeout_s + 4 * ABORT_LIMIT_S
GAUGES = (
    *("queued_requests", "queued_sequences", "queued_bytes", "reading_bytes"),
    *("running_requests", "live_rooms"),
)
KINDS = ("status", "hang", "reset_headers", "reset_stream", "garbage", "drip", "incomplete",
         "kv_failure", "stopped")  # fmt: skip

engines = st.integers(0, 3)


class Machine(RuleBasedStateMachine):
    @initialize(retries=st.integers(0, 2))
    def begin(self, retries: int) -> None:
        self.loop = asyncio.new_event_loop()
        self.stack = AsyncExitStack()
        self.clients: list[asyncio.Task[Any]] = []
        self.down: set[int] = set()
        self.loop.run_until_complete(self._begin(retries))

    async def _begin(self, retries: int) -> None:
        self.cluster = Fakes(2, 2, prefill_s=0.002, token_s=0.001)
        await self.cluster.start()
        self.stack.push_async_callback(self.cluster.stop)
        config = config_for(self.cluster, timeouts=LIMITS, overload=Overload(retries=retries))
        self.up: Running = await self.stack.enter_async_context(running(config))

    @rule(stream=st.booleans(), tokens=st.integers(1, 30), batch=st.integers(1, 3))
    def request(self, stream: bool, tokens: int, batch: int) -> None:
        body = {
            "input_ids": [1, 2, 3] if batch == 1 else [[1, 2, 3]] * batch,
            "sampling_params": {"max_new_tokens": tokens},
            "stream": stream and batch == 1,
        }
        self.clients.append(self.loop.create_task(self._client(body)))
        self._pass(0.001)

    @rule(which=st.integers(0, 50))
    def leave(self, which: int) -> None:
        alive = [client for client in self.clients if not client.done()]
        if alive:
            alive[which % len(alive)].cancel()
            self._pass(0.001)

    @rule(engine=engines, kind=st.sampled_from(KINDS), after=st.integers(0, 3))
    def fault(self, engine: int, kind: str, after: int) -> None:
        self.cluster.all[engine].fault = Fault(kind, after=after)

    @rule(engine=engines)
    def mend(self, engine: int) -> None:
        self.cluster.all[engine].fault = None

    @rule(engine=engines)
    def kill(self, engine: int) -> None:
        if engine not in self.down:
            self.down.add(engine)
            self.loop.run_until_complete(self.cluster.all[engine].stop())

    @rule(engine=engines)
    def revive(self, engine: int) -> None:
        if engine in self.down:
            self.down.discard(engine)
            self.cluster.all[engine].seed += 1
            self.loop.run_until_complete(self.cluster.all[engine].start())

    @rule(seconds=st.sampled_from([0.001, 0.01, 0.05]))
    def wait(self, seconds: float) -> None:
        self._pass(seconds)

    @invariant()
    def holds(self) -> None:
        if not hasattr(self, "up"):
            return
        assert not self.cluster.world.violations
        oldest_s = time.monotonic() - BOUND_S
        assert all(
            context.receipt.at_s > oldest_s for context in self.up.router.handler.active.values()
        )

    def teardown(self) -> None:
        if hasattr(self, "up"):
            try:
                self.loop.run_until_complete(self._end())
            finally:
                self.loop.run_until_complete(self.stack.aclose())
                self.loop.close()

    async def _end(self) -> None:
        for engine in self.cluster.all:
            engine.fault = None
        for index in list(self.down):
            await self.cluster.all[index].start()
        await asyncio.wait_for(asyncio.gather(*self.clients, return_exceptions=True), BOUND_S)
        await self.up.quiet()
        await until(lambda: self.cluster.idle, "idle servers")
        router, ends = self.up.router, self.up.ends
        assert len(ends) <= len(self.clients)  # a client may have left before it was heard
        assert len({end.request_id for end in ends}) == len(ends)
        assert next(router.handler._ids) == len(ends) + 1, "each received request ended once"
        router.gauges()
        values: dict[str, float] = {}
        for family in text_string_to_metric_families(router.metrics.exposition().decode()):
            for sample in family.samples:
                values[sample.name] = values.get(sample.name, 0.0) + sample.value
        assert values.get("kairos_router_requests_total", 0) == len(ends)
        for name in GAUGES:
            assert values[f"kairos_router_{name}"] == 0, name
        assert not self.cluster.world.violations

    async def _client(self, body: dict[str, Any]) -> None:
        with suppress(aiohttp.ClientError):
            async with self.up.post(body) as answer:
                data = await answer.read()
                if answer.status == 200 and body["stream"]:
                    last = data.split(b"\n\n")[-2]
                    assert last == b"data: [DONE]" or last.startswith(b'data: {"error":'), last
                elif answer.status != 200:
                    assert b"error" in data

    def _pass(self, seconds: float) -> None:
        self.loop.run_until_complete(asyncio.sleep(seconds))


TestMachine = Machine.TestCase
TestMachine.settings = settings(
    max_examples=3,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
