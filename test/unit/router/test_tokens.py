"""Token counts and block hashes of request bodies."""

import asyncio
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from kairos.errors import InputError
from kairos.router.paths import CHAT, COMPLETIONS, GENERATE, RESPONSES
from kairos.router.request.token_counter import (
    BLOCK_TOKENS,
    MAX_BLOCKS,
    MEDIA_TOKENS,
    MESSAGE_TOKENS,
    ShortestFirst,
    TokenCounter,
)


@pytest.fixture
def counter():
    made = TokenCounter()
    yield made
    made.close()


async def count(counter, body):
    """By the endpoint that reads such a body."""
    paths = {"messages": CHAT, "prompt": COMPLETIONS, "input": RESPONSES}
    path = next((path for name, path in paths.items() if name in body), GENERATE)
    return await counter.count(path, body)


@pytest.fixture
def tokenizer_file(tmp_path):
    """One token per word."""
    words = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1, "b": 2}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


@pytest.mark.parametrize(
    ("body", "tokens"),
    [
        ({"input_ids": [1, 2, 3]}, 3),
        ({"input_ids": [[1, 2, 3], [4]]}, 4),
        ({"prompt": [5] * 200}, 200),
        ({"prompt": [[5] * 10, [6] * 10]}, 20),
    ],
)
async def test_ids_are_counted(counter, body, tokens):
    counted = await count(counter, body)
    assert (counted.tokens, counted.exact, counted.source) == (tokens, True, "ids")
    assert counted.block_tokens == BLOCK_TOKENS


@pytest.mark.parametrize(
    ("body", "tokens"),
    [
        ({"text": "x" * 400}, 100),
        ({"text": ["x" * 400, "y" * 40]}, 110),
        ({"prompt": "é" * 200}, 100),
        ({"input": "x" * 400}, 100 + MESSAGE_TOKENS),
        ({"messages": [{"role": "user", "content": "x" * 394}]}, 100 + MESSAGE_TOKENS),
        (
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [{"type": "text", "text": "x" * 394}, {"type": "image_url"}],
                    }
                ]
            },
            100 + MESSAGE_TOKENS + MEDIA_TOKENS,
        ),
        ({}, 1),
        ({"messages": 3}, 1),
        ({"messages": [None, 4, {"role": 2, "content": {"x": 1}}]}, 1 + MESSAGE_TOKENS),
    ],
)
async def test_without_a_tokenizer_text_is_estimated_from_its_bytes(counter, body, tokens):
    counted = await count(counter, body)
    assert (counted.tokens, counted.exact, counted.source) == (tokens, False, "bytes")


async def test_tools_and_instructions_count(counter):
    asked = {"messages": [{"role": "user", "content": "x" * 100}]}
    plain = await count(counter, asked)
    tools = [{"type": "function", "function": {"name": "f" * 400}}]
    more = await count(
        counter, {"messages": [{"role": "user", "content": "x" * 100}], "tools": tools}
    )
    told = await count(counter, {"input": "x", "instructions": "y" * 400})
    assert more.tokens >= plain.tokens + 100
    assert told.tokens >= 100


async def test_with_a_tokenizer_text_is_tokenized(tokenizer_file):
    for path in (tokenizer_file, tokenizer_file / "tokenizer.json"):
        counter = TokenCounter(path)
        counted = await count(counter, {"prompt": "a b a \ud800", "model": "m"})
        assert (counted.tokens, counted.source) == (4, "tokenizer")
        counter.close()


async def test_tokenized_text_and_ids_have_the_same_blocks(tokenizer_file):
    counter = TokenCounter(tokenizer_file)
    text = await count(counter, {"prompt": "a b " * 100})
    ids = await count(counter, {"prompt": [1, 2] * 100})
    assert text.blocks == ids.blocks
    assert len(ids.blocks) == 3
    counter.close()


async def test_the_ratio_is_learned_per_model_with_its_error(counter):
    body = {"prompt": "x" * 4_000, "model": "m"}
    for _ in range(200):
        counter.observe(await count(counter, body), 1_500)
    assert (await count(counter, body)).tokens == pytest.approx(1_500, rel=0.02)
    assert (await count(counter, {**body, "model": "other"})).tokens == 1_000
    error = counter.errors()["bytes/m"]
    assert error["samples"] == 200
    assert error["spread"] < 0.05
    blocks = (await count(counter, body)).block_tokens
    assert blocks == 96  # 256 bytes


async def test_nonsense_teaches_nothing_and_models_are_bounded(counter):
    counted = await count(counter, {"prompt": "x" * 4_000, "model": "m"})
    counter.observe(counted, 0)
    counter.observe(await count(counter, {"prompt": [1, 2, 3]}), 500)
    assert counter.errors() == {}
    for i in range(1_000):
        counter.observe(await count(counter, {"prompt": "x" * 40, "model": f"m{i}"}), 10)
    assert len(counter.errors()) == 64


@given(st.lists(st.integers(0, 300_000), min_size=1, max_size=600), st.integers(0, 599))
async def test_blocks_agree_exactly_as_far_as_the_prompts_do(ids, at):
    counter = TokenCounter()
    other = list(ids)
    at = min(at, len(ids) - 1)
    other[at] += 1
    first = (await count(counter, {"input_ids": ids})).blocks
    second = (await count(counter, {"input_ids": other})).blocks
    assert len(first) == len(ids) // BLOCK_TOKENS
    same = [a == b for a, b in zip(first, second, strict=True)]
    assert same == [i < at // BLOCK_TOKENS for i in range(len(first))]
    counter.close()


@pytest.mark.parametrize("field", ["cache_salt", "extra_key", "lora_path", "model"])
async def test_salted_prompts_share_nothing(counter, field):
    for prompt in ({"prompt": "x" * 900}, {"input_ids": [7] * 900}):
        plain = (await count(counter, prompt)).blocks
        salted = (await count(counter, {**prompt, field: "s"})).blocks
        assert plain
        assert not set(plain) & set(salted)


async def test_the_hashed_part_is_bounded(counter):
    counted = await count(counter, {"input_ids": [1] * (MAX_BLOCKS * BLOCK_TOKENS + 5_000)})
    assert len(counted.blocks) == MAX_BLOCKS
    long = await count(counter, {"text": "x" * 2_000_000})
    assert (len(long.blocks), long.tokens) == (MAX_BLOCKS, 500_000)


@pytest.mark.parametrize("ids", [[1, "x"], [1, None], [2**70], [1.5, 2]])
async def test_ids_that_are_none_are_refused(counter, ids):
    with pytest.raises(InputError, match="input_ids: must be integers"):
        await count(counter, {"input_ids": [3, *ids]})


@pytest.mark.parametrize("content", [None, "{", "[]"])
def test_a_tokenizer_that_is_none_is_refused(tmp_path, content):
    file = tmp_path / "tokenizer.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(InputError, match="tokenizer: "):
        TokenCounter(file)


@pytest.mark.parametrize(
    ("path", "read", "ignored"),
    [
        (GENERATE, {"text": "x" * 400}, {"prompt": [1], "messages": [], "input": "x"}),
        (COMPLETIONS, {"prompt": "x" * 400}, {"input_ids": [1], "text": "x", "input": "x"}),
        (CHAT, {"messages": [{"content": "x" * 400}]}, {"prompt": [1], "text": "x", "input": "x"}),
        (RESPONSES, {"input": "x" * 400}, {"input_ids": [1], "prompt": [1], "messages": []}),
    ],
)
async def test_fields_that_an_endpoint_ignores_do_not_count(counter, path, read, ignored):
    assert await counter.count(path, {**ignored, **read}) == await counter.count(path, read)


async def test_a_conversation_given_as_ids_is_counted_by_them(counter):
    body = {"messages": [{"content": "x" * 400}], "input_ids": [1] * 7}
    assert (await counter.count(CHAT, body)).tokens == 7


async def test_text_that_would_hold_up_others_is_estimated(tokenizer_file):
    counter = TokenCounter(tokenizer_file)
    for size, source in ((1000, "tokenizer"), (2 << 20, "bytes")):
        counted = await counter.count("/generate", {"text": "a " * (size // 2)})
        assert counted.source == source
    counter.close()


async def test_other_images_beside_one_text_share_no_blocks(counter):
    beside = [
        (await count(counter, {"text": "x" * 4000, "image_data": image})).blocks
        for image in ("one", "two")
    ]
    inside = [
        await count(
            counter,
            {"messages": [{"role": "user", "content": [{"image_url": i}, {"text": "x" * 4000}]}]},
        )
        for i in ("one", "two")
    ]
    for first, second in (beside, [one.blocks for one in inside]):
        assert first
        assert not set(first) & set(second)


async def test_every_image_counts(counter):
    images = [str(number) for number in range(20)]
    text = {"text": "x" * 400}
    plain = await count(counter, text)
    counted = await count(counter, {**text, "image_data": images})
    assert counted.tokens == plain.tokens + 20 * MEDIA_TOKENS


async def test_embeddings_are_one_prompt(counter):
    counted = await count(counter, {"input_embeds": [[0.5] * 8] * 3})
    assert (counted.tokens, counted.exact) == (3, True)


async def test_a_short_prompt_overtakes_long_ones():
    queue, ended = ShortestFirst(1), []
    free = threading.Event()

    def work(name):
        free.wait(5.0)
        ended.append(name)

    tasks = [asyncio.ensure_future(queue.run(size, work, size)) for size in (500, 900, 800, 3)]
    await asyncio.sleep(0)
    free.set()
    await asyncio.gather(*tasks)
    queue.close()
    assert ended == [500, 3, 800, 900]
