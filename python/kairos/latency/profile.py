"""Profile files: the latency models of one engine on one kind of machine, as validated JSON."""

import json
import operator
import re
from importlib import resources
from pathlib import Path

import msgspec

from kairos.errors import InputError
from kairos.latency.decode import DecodeModel
from kairos.latency.kv import KvLink
from kairos.latency.prefill import PrefillModel
from kairos.validation import Range, check_range

SCHEMA = 1

RANKS = Range(1, 1_024)
"""Data-parallel attention ranks of a decode server."""


class Provenance(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The origin of a profile's numbers.

    Attributes:
        kind: "assumed", "measured" or "learned".
        source: the formula, command or data that they come from.
        date: ISO date on which they were written.
    """

    kind: str
    source: str
    date: str


class InstanceLimits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The capacity of one instance.

    Attributes:
        chunk_tokens: most new tokens in one prefill batch.
        kv_tokens: tokens of KV cache.
        max_batch: most requests in one decode step.
    """

    chunk_tokens: int
    kv_tokens: int
    max_batch: int


class Profile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The latency models of one engine. All durations are seconds, all lengths tokens.

    `ranks` is the number of data-parallel attention ranks of a decode server on the described
    machine. `decode.fixed_s` and `decode.experts_s` are common to all ranks; the costs per request
    and per token of context, `limits.kv_tokens` and `limits.max_batch` are those of one rank.
    """

    schema: int
    name: str
    provenance: Provenance
    prefill: PrefillModel
    decode: DecodeModel
    kv: KvLink
    limits: InstanceLimits
    ranks: int = 1


# By field. The bounds are far from any real machine: they catch milliseconds written for seconds,
# and negative coefficients, under which a step gets faster with load.
_RANGES = {
    "schema": Range(SCHEMA, SCHEMA),
    "prefill.fixed_s": Range(0.0, 1.0),
    "prefill.weight_floor_s": Range(0.0, 1.0),
    "prefill.per_token_s": Range(1e-12, 1.0),
    "prefill.per_token_context_s": Range(0.0, 1e-3),
    "decode.fixed_s": Range(0.0, 1.0),
    "decode.experts_s": Range(0.0, 1.0),
    "decode.expert_fraction": Range(0.0, 1.0),
    "decode.per_context_token_s": Range(0.0, 1e-3),
    "decode.per_request_s": Range(0.0, 1.0),
    "decode.straggler": Range(0.0, 1.0),
    "kv.fixed_s": Range(0.0, 10.0),
    "kv.bytes_per_token": Range(1.0, 1e9),
    "kv.bytes_per_s": Range(1e3, 1e15),
    "limits.chunk_tokens": Range(16, 1e7),
    "limits.kv_tokens": Range(16, 1e10),
    "limits.max_batch": Range(1, 1e6),
    "ranks": RANKS,
}


def builtin_profiles() -> list[str]:
    """Return the names of the profiles that ship with Kairos."""
    folder = resources.files("kairos.latency") / "profiles"
    return sorted(
        f.name.removesuffix(".json") for f in folder.iterdir() if f.name.endswith(".json")
    )


def load_profile(name_or_path: str | Path) -> Profile:
    """Load a shipped profile by name, or any profile by path.

    Raises:
        InputError: the file is unreadable or not JSON, a field is unknown or missing, or a value is
            out of range. The message names the file, the line and the field.
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
    """Decode and validate a profile.

    Args:
        text: JSON.
        file: names it in messages.

    Raises:
        InputError: see `load_profile`.
    """
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
    for field, allowed in _RANGES.items():
        value = operator.attrgetter(field)(profile)
        check_range(f"{file}, line {_line_of(text, field)}, field {field}", value, allowed)
    if not profile.decode.step_s(1, 0) > 0.0:
        raise InputError(
            f"{file}, line {_line_of(text, 'decode')}, field decode: a step would take no time"
        )
    return profile


def _line_of(text: str, field: str) -> int:
    """Return the line of a dotted field in JSON text, or of its parent if the field is missing."""
    position = 0
    for part in field.split("."):
        found = text.find(f'"{part}"', position)
        if found < 0:
            break
        position = found
    return text.count("\n", 0, position) + 1
