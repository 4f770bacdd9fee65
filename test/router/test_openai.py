"""The OpenAI client of Python as a real client."""

import openai
import pytest

from kairos.router.config.settings import Overload
from kairos.router.request.outcome import Outcome
from support.router_engine import Fault, fakes
from support.router_running import config_for, running

MESSAGES = [{"role": "user", "content": "one two three"}]


def client(url: str) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


async def test_whole_answers() -> None:
    async with fakes() as cluster, running(config_for(cluster)) as up, client(up.url) as openai_:
        chat = await openai_.chat.completions.create(model="m", messages=MESSAGES, max_tokens=3)
        assert chat.choices[0].message.content == "x"
        text = await openai_.completions.create(model="m", prompt="one", max_tokens=3)
        assert text.usage is not None
        assert text.usage.completion_tokens == 3
        body = cluster.decode[0].seen[-1]
        assert body["custom_params"]["kairos"]["class"] == "default"
        assert [end.output_tokens for end in up.ends] == [3, 3]


async def test_streams_with_an_objective_in_the_body() -> None:
    async with fakes() as cluster, running(config_for(cluster)) as up, client(up.url) as openai_:
        stream = await openai_.chat.completions.create(
            model="m",
            messages=MESSAGES,
            max_tokens=5,
            stream=True,
            extra_body={"kairos": {"ttft_ms": 3000}},
        )
        pieces = [chunk.choices[0].delta.content async for chunk in stream]
        assert pieces == ["x"] * 5
        assert cluster.decode[0].seen[-1]["custom_params"]["kairos"]["ttft_ms"] == 3000
        await up.quiet()
        assert up.ends[0].outcome is Outcome.COMPLETED


async def test_a_stream_that_breaks_raises() -> None:
    async with fakes() as cluster, running(config_for(cluster)) as up, client(up.url) as openai_:
        cluster.decode[0].fault = Fault("reset_stream", after=2)
        stream = await openai_.chat.completions.create(
            model="m", messages=MESSAGES, max_tokens=5, stream=True
        )
        for _ in range(2):
            await anext(aiter(stream))
        with pytest.raises(openai.APIError):
            await anext(aiter(stream))


async def test_errors_have_their_types() -> None:
    once = Overload(retries=0)
    async with (
        fakes() as cluster,
        running(config_for(cluster, overload=once)) as up,
        client(up.url) as openai_,
    ):
        with pytest.raises(openai.BadRequestError, match="n: allowed is 1"):
            await openai_.chat.completions.create(model="m", messages=MESSAGES, n=2)
        cluster.decode[0].fault = Fault("status", status=500)
        with pytest.raises(openai.InternalServerError):
            await openai_.chat.completions.create(model="m", messages=MESSAGES)
