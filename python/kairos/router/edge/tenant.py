"""A tenant: what its requests may ask for, and how many of them there may be."""

import math
import re
from collections.abc import Iterator
from typing import Annotated, Literal

import msgspec

from kairos.errors import InputError
from kairos.router.config.load import mapping, refuse_unknown
from kairos.router.config.schema import items, printable, read_values, within
from kairos.router.config.settings import Count
from kairos.slo import (
    DEFAULT_CLASS,
    TPOT_RANGE_MS,
    TTFT_RANGE_MS,
    Slo,
    SloClasses,
    SloRequest,
    class_name,
    tpot_ms,
    ttft_ms,
)
from kairos.validation import shown

ANONYMOUS = "anonymous"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


_Ttft = Annotated[float, within(*TTFT_RANGE_MS, "ms")]
_Tpot = Annotated[float, within(*TPOT_RANGE_MS, "ms")]


class Tenant(msgspec.Struct, frozen=True):
    """One tenant. The fields after `offered` are those of the keys file.

    A request may loosen the objectives of its class. It may tighten them only down to the
    tenant's `min_*`; without a `min_*` not at all, unless `may_tighten`.
    """

    name: str
    offered: SloClasses
    weight: Annotated[float, within(0.01, 1000.0), "share against other tenants of a class"] = 1.0
    classes: Annotated[
        tuple[str, ...], items("NAME", class_name), "classes it may choose; all if empty"
    ] = ()
    default_class: Annotated[str, printable("NAME"), "class of its requests that name none"] = (
        DEFAULT_CLASS
    )
    min_ttft_ms: Annotated[_Ttft | None, "tightest TTFT objective"] = None
    max_ttft_ms: Annotated[_Ttft | None, "loosest TTFT objective"] = None
    min_tpot_ms: Annotated[_Tpot | None, "tightest TPOT objective"] = None
    max_tpot_ms: Annotated[_Tpot | None, "loosest TPOT objective"] = None
    out_of_bounds: Annotated[Literal["clamp", "reject"], "what happens beyond the bounds"] = "clamp"
    may_tighten: Annotated[bool, "objectives may be any"] = False
    trust_elapsed: Annotated[bool, "its elapsed_ms counts: it is a gateway, not a user"] = False
    max_concurrent: Annotated[Count | None, "requests at a time"] = None
    requests_per_s: Annotated[
        Annotated[float, within(0.001, 1e6, "requests/s")] | None, "sustained rate of requests"
    ] = None
    burst: Annotated[Count, "requests at once, above requests_per_s"] = 10

    def __post_init__(self) -> None:
        for name in (*self.classes, self.default_class):
            self.offered.resolve(SloRequest(slo_class=name))
        if self.classes and self.default_class not in self.classes:
            raise InputError(
                f"default_class: {self.default_class!r} is not among the tenant's classes, "
                f"{', '.join(self.classes)}"
            )
        for low, high in (("min_ttft_ms", "max_ttft_ms"), ("min_tpot_ms", "max_tpot_ms")):
            least, most = getattr(self, low), getattr(self, high)
            if least is not None and most is not None and least > most:
                raise InputError(f"{low}: {least:g} is above {high}, {most:g}")

    def applied_slo(self, asked: SloRequest) -> Slo:
        """What holds for a request of this tenant.

        Raises:
            InputError: a class that is not offered to the tenant, or, where `out_of_bounds` is
                "reject", an objective beyond the tenant's bounds.
        """
        name = asked.slo_class or self.default_class
        if self.classes and name not in self.classes:
            raise InputError(f"SLO class: {name!r} is not one of {', '.join(self.classes)}")
        base = self.offered.resolve(SloRequest(slo_class=name))
        ttft_floor = self.min_ttft_ms if self.min_ttft_ms is not None else base.ttft_ms
        tpot_floor = self.min_tpot_ms if self.min_tpot_ms is not None else base.tpot_ms
        if self.may_tighten:
            ttft_floor, tpot_floor = TTFT_RANGE_MS[0], TPOT_RANGE_MS[0]
        return Slo(
            self._bounded("ttft_ms", asked.ttft_ms, base.ttft_ms, ttft_floor, self.max_ttft_ms),
            self._bounded("tpot_ms", asked.tpot_ms, base.tpot_ms, tpot_floor, self.max_tpot_ms),
            base.slo_class,
        )

    def elapsed_ms(self, asked: SloRequest) -> float:
        """The time already spent that is believed, milliseconds: a claim moves a request ahead."""
        return asked.elapsed_ms if self.trust_elapsed else 0.0

    def _bounded(
        self, name: str, asked: float | None, base: float, low: float, high: float | None
    ) -> float:
        # What the operator set for the class needs no bound of the tenant.
        if asked is None:
            return base
        if low <= asked and (high is None or asked <= high):
            return asked
        if self.out_of_bounds == "reject":
            up_to = "more" if high is None else f"{high:g}"
            if math.isinf(low):
                raise InputError(
                    f"SLO {name}: {asked:g} is not allowed; this key and its class allow none"
                )
            raise InputError(
                f"SLO {name}: {asked:g} is not allowed; this key allows {low:g} to {up_to}"
            )
        # The upper bound last: a class looser than it must not undo it.
        return min(max(asked, low), high if high is not None else max(asked, low))


def parse_classes(value: object, offered: SloClasses, where: str) -> SloClasses:
    """The classes of a keys file, `NAME: {ttft_ms, tpot_ms}`, on top of those of the flags.

    Raises:
        InputError: malformed, or a class that the flags define too.
    """
    named = dict(offered.named)
    default = offered.default
    for name, objectives in mapping(value, f"{where}: classes").items():
        label = f"{where}: classes.{name}"
        class_name(name, label)
        fields = mapping(objectives, label)
        refuse_unknown(fields, ("ttft_ms", "tpot_ms"), label)
        if set(fields) != {"ttft_ms", "tpot_ms"}:
            raise InputError(f"{label}: needs ttft_ms and tpot_ms")
        slo = Slo(
            ttft_ms(fields["ttft_ms"], f"{label}.ttft_ms"),
            tpot_ms(fields["tpot_ms"], f"{label}.tpot_ms"),
            name,
        )
        if name in named:
            raise InputError(f"{label}: --slo-class defines it too")
        if name == DEFAULT_CLASS:
            default = slo
        else:
            named[name] = slo
    return SloClasses(default, named)


def parse_tenants(
    value: object, offered: SloClasses, where: str
) -> Iterator[tuple[Tenant, list[object]]]:
    """The tenants of a keys file, each with what is written under `keys`.

    Raises:
        InputError: malformed.
    """
    for name, settings in mapping(value, f"{where}: tenants").items():
        label = f"{where}: tenants.{name}"
        if not _NAME.fullmatch(name) or name == ANONYMOUS:
            raise InputError(
                f"{where}: tenants: {shown(name)} is not allowed; allowed are 1 to 64 letters, "
                f"digits, '.', '_' and '-', and not {ANONYMOUS!r}"
            )
        fields = dict(mapping(settings, label))
        keys = fields.pop("keys", None)
        if not isinstance(keys, list) or not keys:
            raise InputError(f"{label}.keys: it must be a list of hashes, at least one")
        errors: list[str] = []
        values = read_values(Tenant, fields, f"{label}.".__add__, errors)
        if errors:
            raise InputError("\n".join(errors))
        try:
            yield Tenant(name, offered, **values), keys
        except InputError as error:
            raise InputError(f"{label}: {error}") from error
