"""How long a prompt is, and what identifies its beginning, without running the model's template.

Three sources, best first: `input_ids` are counted; text is tokenized where a tokenizer file is
given; else the tokens follow from the bytes, by a ratio per model that is learned from the
`prompt_tokens` that servers report.
"""

import asyncio
import heapq
import itertools
import os
from array import array
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import xxhash

from kairos.errors import InputError
from kairos.latency.calibration import Calibration
from kairos.router.paths import CHAT, COMPLETIONS, GENERATE, RESPONSES

BLOCK_TOKENS = 64
BLOCK_BYTES = 256
"""Blocks of text where it is not tokenized: 64 tokens of four bytes."""
MAX_BLOCKS = 1024
"""Blocks hashed of one prompt: the first 65,536 tokens decide where it goes."""
BYTES_PER_TOKEN = 4.0
MESSAGE_TOKENS = 4
"""What a template adds to a message, about."""
MEDIA_TOKENS = 256
"""What an image, a sound or a file is taken for; nothing is known of them here."""
_DIGEST_TOKENS = 4
"""What the digest in its place counts as."""
_INLINE_BYTES = 16_384
"""More text than this is hashed off the event loop."""
_MAX_TOKENIZED = 1 << 20
"""Longer text is estimated: it would keep the short ones of others waiting for seconds."""
_MAX_MODELS = 64
# What an endpoint reads. It ignores the fields of the others, which would make a prompt look
# shorter than it is.
_SALTS = ("cache_salt", "extra_key", "lora_path", "model")
_MEDIA = ("image_data", "video_data", "audio_data")
_FIELDS = {
    GENERATE: ("input_ids", "text", "input_embeds", *_MEDIA),
    COMPLETIONS: ("prompt",),
    CHAT: ("input_ids", "messages", "tools"),
    RESPONSES: ("input", "instructions", "tools"),
}


@dataclass(frozen=True, slots=True)
class PromptTokens:
    """The size of a request's prompts.

    Attributes:
        tokens: of all prompts together, at least 1.
        exact: counted from ids, not estimated.
        blocks: hashes of the leading blocks of the first prompt; each covers those before it.
        block_tokens: tokens of one block.
        model: whose ratio was used, "" where none was.
        source: "ids", "tokenizer" or "bytes".
        raw: tokens before the learned correction.
    """

    tokens: int
    exact: bool
    blocks: tuple[int, ...]
    block_tokens: int
    model: str
    source: str
    raw: float


class ShortestFirst:
    """Threads that take the smallest piece of work first.

    A short prompt thus does not wait behind long ones.

    Args:
        threads: that work at the same time.
    """

    def __init__(self, threads: int) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="tokens")
        self._free = threads
        self._numbers = itertools.count()
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []

    async def run(
        self, size: int, work: Callable[..., PromptTokens], *arguments: Any
    ) -> PromptTokens:
        """The result of `work`, which takes time in proportion to `size`."""
        loop = asyncio.get_running_loop()
        if self._free:
            self._free -= 1
        else:
            turn = loop.create_future()
            heapq.heappush(self._waiting, (size, next(self._numbers), turn))
            try:
                await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():
                    self._next()
                raise
        try:
            return await loop.run_in_executor(self._pool, work, *arguments)
        finally:
            self._next()

    def close(self) -> None:
        """Stop the threads; what they work on is finished first."""
        self._pool.shutdown(cancel_futures=True)

    def _next(self) -> None:
        while self._waiting:
            _, _, turn = heapq.heappop(self._waiting)
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1


class TokenCounter:
    """Counts prompts of /generate, completions, chat completions and responses.

    Args:
        tokenizer: a `tokenizer.json` or a folder that holds one; None: estimate from bytes.
        threads: that tokenize; the library releases the interpreter lock.

    Raises:
        InputError: the tokenizer cannot be read.
    """

    def __init__(self, tokenizer: str | Path | None = None, threads: int = 2) -> None:
        self._tokenizer = None if tokenizer is None else _load(Path(tokenizer))
        self._threads = ShortestFirst(threads)
        self._ratios: OrderedDict[tuple[str, str], Calibration] = OrderedDict()

    async def count(self, path: str, body: Mapping[str, Any]) -> PromptTokens:
        """Return tokens and block hashes of a parsed request body.

        Fields that are missing or of unknown shape count nothing: the server judges validity.

        Raises:
            InputError: `input_ids` that are not integers.
        """
        body = {name: body[name] for name in (*_FIELDS[path], *_SALTS) if name in body}
        model = body.get("model")
        model = model if isinstance(model, str) else ""
        media_tokens, media = _media(body)
        salt = _salt(body, media)
        if (embeddings := body.get("input_embeds")) is not None:
            count = _embeddings(embeddings)
            return PromptTokens(max(count, 1), True, (), BLOCK_TOKENS, "", "ids", count)
        ids = _ids(body)
        if ids is not None:
            count = sum(map(len, ids)) + media_tokens
            blocks = _id_blocks(ids[0], salt)
            return PromptTokens(
                max(count, 1), not media_tokens, blocks, BLOCK_TOKENS, "", "ids", count
            )
        texts, extra = _texts(body)
        extra += media_tokens
        size = sum(map(len, texts))
        if self._tokenizer is None or size > _MAX_TOKENIZED:
            if size <= _INLINE_BYTES:
                return self._of_bytes(texts, extra, salt, model)
            return await self._threads.run(size, self._of_bytes, texts, extra, salt, model)
        return await self._threads.run(size, self._tokenized, texts, extra, salt, model)

    def observe(self, counted: PromptTokens, prompt_tokens: int) -> None:
        """A server reported how long a prompt was. Exact counts and nonsense teach nothing."""
        if counted.exact or prompt_tokens <= 0 or counted.raw < 1.0:
            return
        key = counted.model, counted.source
        ratio = self._ratios.pop(key, None) or Calibration()
        ratio.observe(counted.raw, float(prompt_tokens))
        self._ratios[key] = ratio
        if len(self._ratios) > _MAX_MODELS:
            self._ratios.popitem(last=False)

    def errors(self) -> dict[str, dict[str, float]]:
        """Return the learned correction, the relative spread of its error and its samples.

        The keys are "source/model".
        """
        return {
            f"{source}/{model}": {
                "factor": ratio.factor,
                "spread": ratio.spread,
                "samples": float(ratio.samples),
            }
            for (model, source), ratio in self._ratios.items()
        }

    def close(self) -> None:
        """Stop the threads; what they work on is finished first."""
        self._threads.close()

    def _of_bytes(self, texts: Sequence[str], extra: int, salt: int, model: str) -> PromptTokens:
        encoded = [text.encode("utf-8", "surrogatepass") for text in texts]
        raw = sum(map(len, encoded)) / BYTES_PER_TOKEN + extra
        factor = self._factor(model, "bytes")
        block_tokens = max(1, round(BLOCK_BYTES / BYTES_PER_TOKEN * factor))
        blocks = _chain(encoded[0] if encoded else b"", BLOCK_BYTES, salt)
        tokens = max(1, round(raw * factor))
        return PromptTokens(tokens, False, blocks, block_tokens, model, "bytes", raw)

    def _tokenized(self, texts: Sequence[str], extra: int, salt: int, model: str) -> PromptTokens:
        assert self._tokenizer is not None
        clean = [text.encode("utf-8", "replace").decode() for text in texts]
        encoded = [list(e.ids) for e in self._tokenizer.encode_batch_fast(clean)]
        raw = float(sum(map(len, encoded)) + extra)
        tokens = max(1, round(raw * self._factor(model, "tokenizer")))
        blocks = _id_blocks(encoded[0], salt) if encoded else ()
        return PromptTokens(tokens, False, blocks, BLOCK_TOKENS, model, "tokenizer", raw)

    def _factor(self, model: str, source: str) -> float:
        ratio = self._ratios.get((model, source))
        return 1.0 if ratio is None else min(max(ratio.factor, 0.05), 20.0)


def _load(path: Path) -> Any:
    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.is_file():
        raise InputError(f"tokenizer: {file} does not exist; give a tokenizer.json or its folder")
    # Its own threads would compete with the event loop for cores.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises plain Exception
        raise InputError(f"tokenizer: {file} is not a tokenizer: {error}") from error


def _embeddings(value: Any) -> int:
    """Tokens of prompts given as embeddings: a list of vectors, or a list of such lists."""
    if not isinstance(value, list) or not value or not isinstance(value[0], list):
        return 0
    batch = value[0] and isinstance(value[0][0], list)
    return sum(map(len, value)) if batch else len(value)


def _salt(body: Mapping[str, Any], media: str) -> int:
    """Prompts share cached prefixes only under the same salt, adapter, extra key and media."""
    parts = [*(body.get(name) for name in _SALTS), media]
    return xxhash.xxh3_64_intdigest(
        orjson.dumps([p if isinstance(p, str) else None for p in parts])
    )


def _ids(body: Mapping[str, Any]) -> list[Sequence[int]] | None:
    """Prompts given as token ids; None if they are not."""
    for name in ("input_ids", "prompt"):
        value = body.get(name)
        if not isinstance(value, list) or not value:
            continue
        if isinstance(value[0], int):
            return [value]
        if all(isinstance(prompt, list) and prompt for prompt in value):
            return value
    return None


def _texts(body: Mapping[str, Any]) -> tuple[list[str], int]:
    """Prompts as text, and tokens beyond it. A conversation is one text, its messages in order."""
    for name in ("text", "prompt", "input"):
        value = body.get(name)
        if isinstance(value, str):
            return _with_instructions(body, [value]), MESSAGE_TOKENS * (name == "input")
        if isinstance(value, list) and value and all(isinstance(text, str) for text in value):
            return value, 0
    messages = body.get("messages", body.get("input"))
    if not isinstance(messages, list):
        return [""], 0
    parts: list[str] = []
    extra = 0
    tools = body.get("tools")
    if isinstance(tools, list) and tools:
        parts.append(orjson.dumps(tools, default=str).decode())
    for message in messages:
        if not isinstance(message, Mapping):
            continue
        extra += MESSAGE_TOKENS
        parts.append(f"{message.get('role', '')}\n")
        for piece, is_media in _content(message):
            extra += (MEDIA_TOKENS - _DIGEST_TOKENS) * is_media
            parts.append(piece)
        parts.append("\n")
    return _with_instructions(body, ["".join(parts)]), extra


def _content(message: Mapping[str, Any]) -> Iterator[tuple[str, bool]]:
    """Yield the pieces of a message as text, and whether each is an image, a sound or a file.

    The text of such a piece is its digest, so that messages with other media share no prefix.
    """
    content = message.get("content")
    if isinstance(content, str):
        yield content, False
    elif isinstance(content, list):
        for piece in content:
            text = piece.get("text") if isinstance(piece, Mapping) else piece
            if isinstance(text, str):
                yield text, False
            else:
                yield _digest(piece), True
    calls = message.get("tool_calls")
    if isinstance(calls, list) and calls:
        yield orjson.dumps(calls, default=str).decode(), False


def _digest(media: object) -> str:
    return xxhash.xxh3_64_hexdigest(orjson.dumps(media, default=str))


def _media(body: Mapping[str, Any]) -> tuple[int, str]:
    """Tokens of the media beside a prompt of /generate, and a digest of them."""
    given = [body[name] for name in _MEDIA if body.get(name)]
    count = sum(len(value) if isinstance(value, list) else 1 for value in given)
    return MEDIA_TOKENS * count, _digest(given) if given else ""


def _with_instructions(body: Mapping[str, Any], texts: list[str]) -> list[str]:
    instructions = body.get("instructions")
    if isinstance(instructions, str):
        return [f"{instructions}\n{texts[0]}", *texts[1:]]
    return texts


def _id_blocks(ids: Sequence[int], salt: int) -> tuple[int, ...]:
    try:
        data = array("q", ids[: MAX_BLOCKS * BLOCK_TOKENS]).tobytes()
    except (TypeError, OverflowError) as error:
        raise InputError(f"input_ids: must be integers: {error}") from error
    return _chain(data, 8 * BLOCK_TOKENS, salt + 1)


def _chain(data: bytes, block: int, salt: int) -> tuple[int, ...]:
    """Hashes of the whole blocks of `data`, each seeded with the one before."""
    view = memoryview(data)
    blocks = []
    state = salt & 0xFFFFFFFFFFFFFFFF
    for start in range(0, min(len(data) - block + 1, MAX_BLOCKS * block), block):
        state = xxhash.xxh3_64_intdigest(view[start : start + block], state)
        blocks.append(state)
    return tuple(blocks)
