"""As many streams at once as a router is asked to carry."""

import asyncio
import resource

from msgspec.structs import replace

from kairos.router.request.outcome import Outcome
from support.router_engine import fakes, until
from support.router_running import TIMEOUTS, Running, config_for, running

STREAMS = 1024
TOKENS = 8
FILES = 8 * STREAMS  # both ends of three connections, and room
# Clients, router and servers share a loop here: a health check waits for all of them.
HEALTH_S = 60.0
PATIENT = replace(
    TIMEOUTS,
    first_byte_timeout_s=60.0,
    stream_idle_timeout_s=60.0,
    queue_timeout_s=60.0,
    request_timeout_s=120.0,
    connect_timeout_s=30.0,
)


async def events(up: Running, number: int) -> list[bytes]:
    params = {"max_new_tokens": TOKENS}
    body = {"input_ids": [number], "sampling_params": params, "stream": True}
    async with up.post(body) as answer:
        assert answer.status == 200
        return (await answer.read()).split(b"\n\n")


async def test_1024_streams_at_once_all_come_to_their_end() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < FILES:
        resource.setrlimit(resource.RLIMIT_NOFILE, (FILES, hard))
    async with (
        fakes(2, 2) as cluster,
        running(config_for(cluster, HEALTH_S, timeouts=PATIENT)) as up,
    ):
        cluster.world.flows.clear()
        streams = [asyncio.ensure_future(events(up, n)) for n in range(STREAMS)]
        await until(
            lambda: (
                bool(up.ends)
                or sum(one.answering for one in up.router.handler.active.values()) == STREAMS
            ),
            f"{STREAMS} first tokens",
            limit_s=120.0,
        )
        assert not up.ends, up.ends[:3]  # all at once, so none ends before the last has begun
        cluster.world.flows.set()
        for stream in await asyncio.gather(*streams):
            assert len(stream) == TOKENS + 2
            assert stream[-2] == b"data: [DONE]"
        await up.quiet()
        assert [end.outcome for end in up.ends] == [Outcome.COMPLETED] * STREAMS
        assert {end.attempts for end in up.ends} == {1}
        assert cluster.idle
        assert not cluster.world.violations
