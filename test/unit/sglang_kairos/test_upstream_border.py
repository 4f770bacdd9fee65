"""The Protocols of `sglang.srt.kairos.upstream` agree with the installed SGLang."""

import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from typing import Protocol

import pytest
from sglang.srt.kairos import upstream

import kairos_patches
from support.upstream_source import UpstreamClass, upstream_class

# Attributes that Kairos adds to upstream's objects.
OWN = {"kairos"}
# Protocols of functions that Kairos hands to upstream.
CALLBACKS = {"DeviceTimeReporter"}
VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def protocols() -> Iterator[type]:
    for module in pkgutil.iter_modules(upstream.__path__):
        members = vars(importlib.import_module(f"{upstream.__name__}.{module.name}"))
        for member in members.values():
            if (
                isinstance(member, type)
                and getattr(member, "_is_protocol", False)
                and member.__module__.startswith(upstream.__name__)
                and member.__module__.endswith(f".{module.name}")
                and member.__name__ not in CALLBACKS
            ):
                yield member


PROTOCOLS = list(protocols())
NAMES = [protocol.__name__ for protocol in PROTOCOLS]


def class_names(protocol: type) -> list[str]:
    """The upstream classes that a Protocol's docstring begins with."""
    text = re.sub(r"\s+", "", (protocol.__doc__ or "").partition(": ")[0])
    return re.findall(r"`([\w.]+)`", text)


def class_of(name: str) -> UpstreamClass:
    """The class with this full name: SGLang's from its source, others from their module."""
    if name.startswith("sglang."):
        return upstream_class(name)
    module, _, class_name = name.rpartition(".")
    loaded = getattr(importlib.import_module(module), class_name)
    methods = {one: inspect.Signature() for one in dir(loaded) if callable(getattr(loaded, one))}
    return UpstreamClass([name], set(dir(loaded)) - methods.keys(), methods)


def own_members(protocol: type) -> set[str]:
    annotated = inspect.get_annotations(protocol)
    defined = {
        name
        for name, value in vars(protocol).items()
        if isinstance(value, property) or inspect.isfunction(value)
    }
    # Python gives every Protocol an `__init__` of its own.
    return (annotated.keys() | defined) - OWN - {"__init__", "__subclasshook__"}


def complaint(protocol: type, name: str, found: UpstreamClass) -> str | None:
    """Why upstream's class does not have a member as a Protocol declares it; None if it does."""
    declared = vars(protocol).get(name)
    if not inspect.isfunction(declared):
        return None if name in found.attributes else f"no attribute {name}"
    # A class is called to make an instance.
    signature = found.methods.get("__init__" if name == "__call__" else name)
    if signature is None:
        return f"no method {name}"
    parameters = list(inspect.signature(declared).parameters.values())[1:]
    return incompatibility(name, parameters, signature)


def incompatibility(
    name: str, declared: list[inspect.Parameter], signature: inspect.Signature
) -> str | None:
    """Why calls by the declared parameters do not fit upstream's signature; None if they do."""
    theirs = dict(signature.parameters)
    positional = [one for one in theirs.values() if one.kind is not one.KEYWORD_ONLY]
    used = set()
    for at, ours in enumerate(declared):
        if ours.kind in VARIADIC:
            continue
        if ours.kind is ours.POSITIONAL_ONLY:
            other = positional[at] if at < len(positional) else None
        else:
            other = theirs.get(ours.name)
            if (
                other is not None
                and ours.kind is ours.POSITIONAL_OR_KEYWORD
                and positional.index(other) != at
            ):
                return f"{name}: {ours.name} is at another position"
        if other is None:
            return f"{name}: no parameter {ours.name}"
        if ours.default is not ours.empty and other.default is other.empty:
            return f"{name}: {ours.name} has no default"
        used.add(other.name)
    required = {
        one.name
        for one in theirs.values()
        if one.default is one.empty and one.kind not in VARIADIC and one.name not in used
    }
    return f"{name}: also needs {sorted(required)}" if required else None


def test_the_border_is_found() -> None:
    assert set(NAMES) | CALLBACKS >= {name for name in upstream.__all__ if name != "SamplingFields"}


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=NAMES)
def test_upstream_has_every_member(protocol: type) -> None:
    names = class_names(protocol)
    assert names, f"the docstring of {protocol.__name__} names no class of SGLang"
    for name in names:
        found = class_of(name)
        wrong = [complaint(protocol, member, found) for member in sorted(own_members(protocol))]
        assert [one for one in wrong if one] == [], name


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=NAMES)
def test_the_manifest_pins_the_upstream_class(protocol: type) -> None:
    """By the class, or by members of it or of its bases."""
    pinned = kairos_patches.symbols()
    for name in class_names(protocol):
        if name.startswith("sglang."):
            names = tuple(f"{one}." for one in upstream_class(name).names)
            assert any(f"{symbol}.".startswith(names) for symbol in pinned), name


class RenamedAttribute(Protocol):
    """`sglang.srt.managers.schedule_batch.Req`"""

    @property
    def bootstrap_chamber(self) -> int | None: ...


class RenamedMethod(Protocol):
    """`sglang.srt.managers.schedule_batch.Req`"""

    def has_finished(self) -> bool: ...


class AttributeForMethod(Protocol):
    """`sglang.srt.managers.schedule_batch.Req`"""

    finished: bool


class RenamedParameter(Protocol):
    """`sglang.srt.lora.lora_manager.LoRAManager`"""

    def validate_lora_batch(self, adapters: set[str | None]) -> bool: ...


class MissingParameter(Protocol):
    """`sglang.srt.lora.lora_manager.LoRAManager`"""

    def validate_lora_batch(self) -> bool: ...


class InventedDefault(Protocol):
    """`sglang.srt.lora.lora_manager.LoRAManager`"""

    def validate_lora_batch(self, lora_ids: set[str | None] | None = None) -> bool: ...


@pytest.mark.parametrize(
    ("protocol", "expected"),
    [
        (RenamedAttribute, "no attribute bootstrap_chamber"),
        (RenamedMethod, "no method has_finished"),
        (AttributeForMethod, "no attribute finished"),
        (RenamedParameter, "validate_lora_batch: no parameter adapters"),
        (MissingParameter, "validate_lora_batch: also needs ['lora_ids']"),
        (InventedDefault, "validate_lora_batch: lora_ids has no default"),
    ],
)
def test_a_member_that_upstream_does_not_have_is_found(protocol: type, expected: str) -> None:
    (member,) = own_members(protocol)
    (name,) = class_names(protocol)
    assert complaint(protocol, member, upstream_class(name)) == expected
