"""Settings as typed fields of `msgspec` structs: `name: Annotated[type, limits, "help"] = default`.

The annotation is the one description of a setting. The command line, the configuration file, error
messages and the reference are made of it.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import msgspec
from msgspec import Meta

from kairos.errors import InputError
from kairos.validation import Range, shown


def within(low: float, high: float, unit: str = "") -> Meta:
    """Allow numbers of a closed range."""
    extra = {"metavar": unit.upper() or "N", "allowed": f"{Range(low, high)} {unit}".rstrip()}
    return Meta(ge=low, le=high, extra=extra)


def printable(metavar: str) -> Meta:
    """Allow texts without control characters."""
    extra = {"metavar": metavar, "allowed": "printable texts of at least one character"}
    return Meta(pattern=r"\A[^\x00-\x1f\x7f-\x9f]+\Z", extra=extra)


def items(metavar: str, read: Callable[[Any, str], Any]) -> Meta:
    """Describe a list; `read` makes an item of an untyped value and the place that errors name."""
    return Meta(extra={"metavar": metavar, "read": read})


@dataclass(frozen=True, slots=True)
class SettingField:
    """One setting.

    Attributes:
        kind: its annotated type.
        metavar: form of a value on the command line; None for a switch.
        allowed: its values for an error message; empty where the error itself tells them.
        read_item: of a list: reads an item.
    """

    name: str
    kind: Any
    default: Any
    help: str
    metavar: str | None
    allowed: str
    read_item: Callable[[Any, str], Any] | None

    @property
    def flag(self) -> str:
        return flag_of(self.name)

    @property
    def default_text(self) -> str:
        """The default as documents show it."""
        if self.default in (None, ()):
            return "none"
        if self.default is False:
            return "off"
        value = self.default.value if isinstance(self.default, Enum) else self.default
        return f"{value:.10g}" if isinstance(value, float) else str(value)

    def read(self, value: object, where: str) -> Any:
        """Return an untyped value as the type of the field.

        Raises:
            InputError: `where`, the value and what is allowed.
        """
        if self.read_item is not None:
            if not isinstance(value, list | tuple):
                raise InputError(f"{where}: {shown(value)} is not a list")
            return tuple(self.read_item(item, where) for item in value)
        try:
            return msgspec.convert(value, self.kind, strict=False, dec_hook=_existing_file)
        except msgspec.ValidationError as error:
            problem = f"{shown(value)} is not allowed; allowed are {self.allowed}"
            raise InputError(f"{where}: {problem if self.allowed else error}") from None


def flag_of(name: str) -> str:
    """Return the command line's spelling of a setting."""
    return f"--{name.replace('_', '-')}"


def settings_of(group: type[msgspec.Struct]) -> dict[str, SettingField]:
    """Return the settings of a group by name; fields without a help text are none."""
    found = {}
    for field in msgspec.structs.fields(group):
        if get_origin(field.type) is not Annotated:
            continue
        base, *metadata, text = _flat(field.type)
        extra: dict[str, Any] = {"metavar": "FILE"} if base is Path else {}
        for limits in metadata:
            extra |= limits.extra
        if base is bool:
            extra["allowed"] = "true and false"
        if choices := _choices(base):
            extra |= {"metavar": "{" + ",".join(choices) + "}", "allowed": ", ".join(choices)}
        allowed = extra.get("allowed", "")
        found[field.name] = SettingField(
            name=field.name,
            kind=field.type,
            default=field.default,
            help=text,
            metavar=extra.get("metavar"),
            allowed=f"whole numbers from {allowed}" if base is int else allowed,
            read_item=extra.get("read"),
        )
    return found


def read_values(
    group: type[msgspec.Struct],
    given: Mapping[str, object],
    where: Callable[[str], str],
    errors: list[str],
) -> dict[str, Any]:
    """Read untyped values given for a group, by the settings' names.

    Args:
        where: what errors call a setting, from its name.
        errors: receives a message for each value that is not allowed.
    """
    known = settings_of(group)
    values = {}
    for name, value in given.items():
        try:
            if name not in known:
                raise InputError(f"{where(name)}: unknown field; known are {', '.join(known)}")
            values[name] = known[name].read(value, where(name))
        except InputError as error:
            errors.append(str(error))
    return values


def _flat(kind: Any) -> Iterator[Any]:
    """Yield the innermost type of an annotation, None aside, then its metadata."""
    if get_origin(kind) is Annotated:
        base, *metadata = get_args(kind)
        yield from _flat(base)
        yield from metadata
    elif get_origin(kind) in (Union, UnionType):
        yield from _flat(next(part for part in get_args(kind) if part is not type(None)))
    else:
        yield kind


def _choices(kind: Any) -> list[str]:
    if get_origin(kind) is Literal:
        return [str(value) for value in get_args(kind)]
    if isinstance(kind, type) and issubclass(kind, Enum):
        return [str(member.value) for member in kind]
    return []


def _existing_file(_: type, value: object) -> Any:
    """Read a path, the only type of a setting that msgspec does not know."""
    path = Path(value) if isinstance(value, str | Path) else Path()
    if not path.exists():
        raise ValueError(f"there is no file {shown(str(path))}; give the path of a file")
    if not path.is_file() or not os.access(path, os.R_OK):
        raise ValueError(f"{shown(str(path))} cannot be read; give a file that this user may read")
    return path
