"""The facts that a server states about itself in /server_info."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import orjson

from kairos.telemetry import is_endpoint

_MAX_CONFIG_BYTES = 16 << 20
_TEXT_CONFIGS = ("text_config", "llm_config", "language_config", "thinker_config")


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """One answer of /server_info; None where the server does not say.

    Attributes:
        start_id: differs after every restart of the server, as far as that can be told: it holds
            the seed, random unless set, the duration of the start, and the epoch of a Kairos
            engine.
        kairos: whether the engine schedules by SLO itself.
        slo_classes: names that a Kairos engine knows.
        telemetry: address at which a Kairos engine publishes its load.
        kv_tokens: KV capacity, tokens.
        max_running: requests in a batch at most.
        vocab_size: token ids are below it.
        prompt_tokens: longest prompt, tokens; None where the server cuts longer ones.
    """

    start_id: str
    kairos: bool = False
    model: str | None = None
    slo_classes: frozenset[str] = frozenset()
    telemetry: str | None = None
    kv_tokens: int | None = None
    max_running: int | None = None
    vocab_size: int | None = None
    prompt_tokens: int | None = None


def read_server_info(data: bytes) -> ServerInfo | None:
    """Read an answer of /server_info; None if it is not one.

    The vocabulary of a server without Kairos is taken from its model's `config.json`, where this
    process can read it: such a server publishes it nowhere. The file is read at most once per path,
    but a file system may block, so the event loop should not call this.
    """
    try:
        answer = orjson.loads(data)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(answer, dict):
        return None
    states = answer.get("internal_states")
    state = _mapping(states[0] if isinstance(states, list) and states else None)
    kairos = _mapping(state.get("kairos"))
    every = {**answer, **state, **kairos}
    model_path, telemetry = _text(answer.get("model_path")), _text(kairos.get("telemetry"))
    classes = answer.get("kairos_slo_class")
    limits = (_count(every.get(name)) for name in ("max_req_input_len", "context_length"))
    known = [limit for limit in limits if limit is not None]
    vocab_size = _count(kairos.get("vocab_size"))
    if vocab_size is None and model_path is not None:
        vocab_size = vocab_size_of(model_path, answer.get("json_model_override_args"))
    return ServerInfo(
        start_id=repr((answer.get("random_seed"), answer.get("startup_time"), kairos.get("epoch"))),
        kairos="kairos" in state,
        model=_text(answer.get("served_model_name")),
        slo_classes=frozenset(
            one.partition("=")[0]
            for one in (classes if isinstance(classes, list) else ())
            if isinstance(one, str) and "=" in one
        ),
        telemetry=telemetry if telemetry is not None and is_endpoint(telemetry) else None,
        kv_tokens=_count(every.get("max_total_num_tokens")),
        max_running=_count(every.get("max_running_requests")),
        vocab_size=vocab_size,
        prompt_tokens=None if answer.get("allow_auto_truncate") else min(known, default=None),
    )


@lru_cache(maxsize=256)
def vocab_size_of(model_path: str, overrides: object = None) -> int | None:
    """Return the vocabulary of a model whose `config.json` is in a folder of this machine.

    `overrides` are the server's `--json-model-override-args`.
    """
    path = Path(model_path) / "config.json"
    try:
        if not Path(model_path).is_absolute() or path.stat().st_size > _MAX_CONFIG_BYTES:
            return None
        config = _mapping(orjson.loads(path.read_bytes()))
        changed = _mapping(orjson.loads(overrides)) if isinstance(overrides, str) else {}
    except (OSError, ValueError):
        return None
    # A multimodal model has a configuration of its text model. Of several sizes the largest is
    # taken, so that no valid token id is refused.
    known: list[Mapping[str, Any]] = [{**config, **changed}]
    known += [_mapping(known[0].get(name)) for name in _TEXT_CONFIGS]
    sizes = [size for one in known if (size := _count(one.get("vocab_size"))) is not None]
    return max(sizes, default=None)


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _count(value: object) -> int | None:
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        return None
    return value
