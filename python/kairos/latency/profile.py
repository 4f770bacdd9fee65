"""Profile files: the latency models of one engine on one kind of machine, as validated JSON."""

import json
import math
import re
from importlib import resources
from pathlib import Path

import msgspec

from kairos.errors import InputError
from kairos.latency.decode import DecodeModel
from kairos.latency.kv import KvLink
from kairos.latency.prefill import PrefillModel

SCHEMA = 1


class Provenance(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where the numbers come from.

    Attributes:
        kind: "assumed", "measured" or "learned".
        source: the formula, command or data behind them.
        date: ISO date on which they were written.
    """

    kind: str
    source: str
    date: str


class InstanceLimits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one instance can hold.

    Attributes:
        chunk_tokens: new tokens in one prefill batch at most.
        kv_tokens: tokens of KV cache.
        max_batch: requests in one decode step at most.
    """

    chunk_tokens: int
    kv_tokens: int
    max_batch: int


class Profile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One engine's latency models. All durations are seconds, all lengths tokens."""

    schema: int
    name: str
    provenance: Provenance
    prefill: PrefillModel
    decode: DecodeModel
    kv: KvLink
    limits: InstanceLimits


def builtin_profiles() -> list[str]:
    """Names of the profiles that ship with Kairos."""
    folder = resources.files("kairos.latency") / "profiles"
    return sorted(
        f.name.removesuffix(".json") for f in folder.iterdir() if f.name.endswith(".json")
    )


def load_profile(name_or_path: str | Path) -> Profile:
    """Load a shipped profile by name, or any profile by path.

    Raises:
        InputError: unreadable, not JSON, unknown or missing field, value out of range. The
            message names the file, the line and the field.
    """
    name = str(name_or_path)
    if re.fullmatch(r"[\w.-]+", name) and not name.endswith(".json") and not Path(name).exists():
        shipped = builtin_profiles()
        if name not in shipped:
            raise InputError(
                f"unknown profile {name!r}: shipped profiles are {', '.join(shipped)}; "
                "a path to a JSON file works too"
            )
        text = (resources.files("kairos.latency") / "profiles" / f"{name}.json").read_text()
        return parse_profile(text, f"{name}.json")
    try:
        text = Path(name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read profile {name}: {error}") from error
    return parse_profile(text, name)


def parse_profile(text: str, file: str) -> Profile:
    """Decode and validate the JSON `text`; `file` only labels errors."""
    try:
        json.loads(text)  # for its line numbers; msgspec reports byte offsets
    except json.JSONDecodeError as error:
        raise InputError(f"{file}, line {error.lineno}: not JSON: {error.msg}") from error
    try:
        profile = msgspec.json.decode(text, type=Profile)
    except msgspec.ValidationError as error:
        reason, _, path = str(error).partition(" - at `$")
        field = path.strip("`.")
        missing = re.search(r"field `(\w+)`", reason)
        named = field if not missing else f"{field}.{missing[1]}".strip(".")
        raise InputError(
            f"{file}, line {_line_of(text, named)}, field {named}: {reason}"
        ) from error
    for field, value, low, high in _ranges(profile):
        if not (math.isfinite(value) and low <= value <= high):
            raise InputError(
                f"{file}, line {_line_of(text, field)}, field {field}: {value!r} is out of range, "
                f"allowed are {low:g} to {high:g}"
            )
    if not profile.decode.step_s(1, 0) > 0.0:
        raise InputError(
            f"{file}, line {_line_of(text, 'decode')}, field decode: a step would take no time"
        )
    return profile


def _ranges(p: Profile) -> list[tuple[str, float, float, float]]:
    """(field, value, lowest, highest). Bounds are far from any real machine: they catch
    milliseconds written for seconds and negative coefficients, under which a step would get
    faster with load and every policy would misbehave."""
    tiny, second = 1e-12, 1.0
    return [
        ("schema", p.schema, SCHEMA, SCHEMA),
        ("prefill.fixed_s", p.prefill.fixed_s, 0.0, second),
        ("prefill.weight_floor_s", p.prefill.weight_floor_s, 0.0, second),
        ("prefill.per_token_s", p.prefill.per_token_s, tiny, second),
        ("prefill.per_token_context_s", p.prefill.per_token_context_s, 0.0, 1e-3),
        ("decode.fixed_s", p.decode.fixed_s, 0.0, second),
        ("decode.experts_s", p.decode.experts_s, 0.0, second),
        ("decode.expert_fraction", p.decode.expert_fraction, 0.0, 1.0),
        ("decode.per_context_token_s", p.decode.per_context_token_s, 0.0, 1e-3),
        ("decode.per_request_s", p.decode.per_request_s, 0.0, second),
        ("decode.straggler", p.decode.straggler, 0.0, 1.0),
        ("kv.fixed_s", p.kv.fixed_s, 0.0, 10.0),
        ("kv.bytes_per_token", p.kv.bytes_per_token, 1.0, 1e9),
        ("kv.bytes_per_s", p.kv.bytes_per_s, 1e3, 1e15),
        ("limits.chunk_tokens", p.limits.chunk_tokens, 16, 1e7),
        ("limits.kv_tokens", p.limits.kv_tokens, 16, 1e10),
        ("limits.max_batch", p.limits.max_batch, 1, 1e6),
    ]


def _line_of(text: str, field: str) -> int:
    """Line of a dotted field in JSON text; of its parent where the field itself is missing."""
    position = 0
    for part in field.split("."):
        found = text.find(f'"{part}"', position)
        if found < 0:
            break
        position = found
    return text.count("\n", 0, position) + 1
