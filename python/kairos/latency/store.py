"""Profile files and learned state on disk, and profiles merged from several."""

import os
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import msgspec

from kairos.errors import InputError
from kairos.latency.profile import Profile, Provenance, parse_profile

PARTS = ("prefill", "decode", "kv", "limits")
_STATE_SCHEMA = 1


def save_profile(profile: Profile, path: str | Path) -> None:
    """Write a profile as JSON, atomically.

    Raises:
        InputError: a value out of range, or the file cannot be written.
    """
    text = msgspec.json.format(msgspec.json.encode(profile), indent=2).decode() + "\n"
    parse_profile(text, str(path))
    _write(Path(path), text, "profile")


def save_state(folder: str | Path, name: str, key: str, state: Any) -> None:
    """Write learned state to `folder`/`name`.json, atomically.

    Args:
        folder: where it is kept.
        name: of the learner.
        key: describes the engine on which it was learned; `load_state` requires the same.
        state: plain values.

    Raises:
        InputError: the file cannot be written.
    """
    text = msgspec.json.encode({"schema": _STATE_SCHEMA, "key": key, "state": state}).decode()
    _write(Path(folder) / f"{name}.json", text, "state")


def load_state(folder: str | Path, name: str, key: str) -> Any:
    """Return the state that `save_state` wrote; None if there is none for this engine.

    Args:
        folder: where it is kept.
        name: of the learner.
        key: describes the engine.

    Raises:
        InputError: the file exists and cannot be read.
    """
    path = Path(folder) / f"{name}.json"
    try:
        saved = msgspec.json.decode(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as error:
        raise InputError(f"cannot read state {path}: {error}") from error
    if not isinstance(saved, dict) or (saved.get("schema"), saved.get("key")) != (
        _STATE_SCHEMA,
        key,
    ):
        return None
    return saved.get("state")


def _write(path: Path, text: str, what: str) -> None:
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        draft.write_text(text, encoding="utf-8")
        draft.replace(path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise InputError(f"cannot write {what} {path}: {error.strerror}") from error


def merge_profiles(base: Profile, other: Profile, parts: Sequence[str], name: str) -> Profile:
    """Return `base` with some of its parts taken from `other`. The provenance names both.

    Args:
        base: profile that has the other parts.
        other: profile that has `parts`.
        parts: any of "prefill", "decode", "kv", "limits".
        name: of the merged profile.

    Raises:
        InputError: no part, or an unknown one.
    """
    unknown = sorted(set(parts) - set(PARTS))
    if unknown or not parts:
        raise InputError(f"merge: parts {list(parts)}; allowed are {', '.join(PARTS)}")
    kinds = (base.provenance.kind, other.provenance.kind)
    source = (
        f"{', '.join(sorted(parts))} of {other.name} ({kinds[1]}: {other.provenance.source}); "
        f"the rest of {base.name} ({kinds[0]}: {base.provenance.source})"
    )
    # A profile is as reliable as its least reliable part.
    kind = next(kind for kind in ("assumed", "learned", "measured") if kind in kinds)
    merged = msgspec.structs.replace(
        base,
        name=name,
        provenance=Provenance(kind, source, date.today().isoformat()),
        **{part: getattr(other, part) for part in parts},
    )
    parse_profile(msgspec.json.encode(merged).decode(), name)
    return merged
