"""Service-level objectives of a request: their forms and their bounds.

A request can carry its SLO in HTTP headers, in a `kairos` object of the body, or in the engine's
`custom_params`. All three become one `Slo`. Every rejection is an `InputError` that names the
field, the value and what is allowed.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from kairos.errors import InputError
from kairos.validation import Range, parse_number, shown

DEFAULT_CLASS = "default"
APPLIED_HEADER = "x-kairos-slo-applied"
CLASS_HEADER = "x-kairos-slo-class"

# Milliseconds. Wide enough for any service, and narrow enough to catch seconds written for
# milliseconds.
TTFT_RANGE_MS = Range(1.0, 3_600_000.0)
TPOT_RANGE_MS = Range(0.1, 600_000.0)
ELAPSED_RANGE_MS = Range(0.0, 3_600_000.0)

_CLASS_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


@dataclass(frozen=True, slots=True)
class Slo:
    """The objectives that apply to one request; infinite where there is none.

    Attributes:
        ttft_ms: time to first token, milliseconds from arrival.
        tpot_ms: time per output token after the first, milliseconds, as the client sees it.
        slo_class: name of the class it was derived from.
    """

    ttft_ms: float = math.inf
    tpot_ms: float = math.inf
    slo_class: str = DEFAULT_CLASS

    @property
    def best_effort(self) -> bool:
        """Whether the request has no objective at all."""
        return math.isinf(self.ttft_ms) and math.isinf(self.tpot_ms)

    @property
    def objectives(self) -> dict[str, float]:
        """The objectives that there are, milliseconds, by the name of their field."""
        both = {"ttft_ms": self.ttft_ms, "tpot_ms": self.tpot_ms}
        return {name: value for name, value in both.items() if math.isfinite(value)}

    @property
    def ttft_s(self) -> float:
        """Time to first token, seconds."""
        return self.ttft_ms / 1e3

    @property
    def tpot_s(self) -> float:
        """Time per output token, seconds."""
        return self.tpot_ms / 1e3

    def header(self) -> str:
        """Return the value of the response header that echoes the applied SLO."""
        ttft, tpot = (
            f"{value:g}" if math.isfinite(value) else "none"
            for value in (self.ttft_ms, self.tpot_ms)
        )
        return f"ttft-ms={ttft}, tpot-ms={tpot}, class={self.slo_class}"


@dataclass(frozen=True, slots=True)
class SloRequest:
    """The SLO that a request carries; None where its class decides.

    Attributes:
        ttft_ms: time to first token, milliseconds.
        tpot_ms: time per output token, milliseconds.
        slo_class: name of its class.
        elapsed_ms: time that the request has spent before this process, milliseconds.
    """

    ttft_ms: float | None = None
    tpot_ms: float | None = None
    slo_class: str | None = None
    elapsed_ms: float = 0.0

    def over(self, other: "SloRequest") -> "SloRequest":
        """Return the fields of this request, completed by those of `other`."""
        return SloRequest(
            other.ttft_ms if self.ttft_ms is None else self.ttft_ms,
            other.tpot_ms if self.tpot_ms is None else self.tpot_ms,
            other.slo_class if self.slo_class is None else self.slo_class,
            max(self.elapsed_ms, other.elapsed_ms),
        )


@dataclass(frozen=True, slots=True)
class SloClasses:
    """The SLO classes that a server offers.

    Attributes:
        default: applies to a request that names no class.
        named: the other classes by name.
    """

    default: Slo = Slo()
    named: Mapping[str, Slo] = field(default_factory=dict)

    def resolve(self, asked: SloRequest) -> Slo:
        """Return the SLO of a request, completed from its class.

        Raises:
            InputError: the class is not offered here.
        """
        base = self.default
        if asked.slo_class is not None and asked.slo_class != DEFAULT_CLASS:
            known = self.named.get(asked.slo_class)
            if known is None:
                names = ", ".join([DEFAULT_CLASS, *sorted(self.named)])
                raise InputError(f"SLO class: {asked.slo_class!r} is not one of {names}")
            base = known
        return Slo(
            base.ttft_ms if asked.ttft_ms is None else asked.ttft_ms,
            base.tpot_ms if asked.tpot_ms is None else asked.tpot_ms,
            base.slo_class,
        )


def ttft_ms(value: object, where: str) -> float:
    """Validate a TTFT objective in milliseconds; `where` names it in messages."""
    return parse_number(value, where, TTFT_RANGE_MS, "milliseconds")


def tpot_ms(value: object, where: str) -> float:
    """Validate a TPOT objective in milliseconds; `where` names it in messages."""
    return parse_number(value, where, TPOT_RANGE_MS, "milliseconds")


def class_name(value: object, where: str) -> str:
    """Validate an SLO class name; `where` names it in messages."""
    if not isinstance(value, str) or not _CLASS_NAME.fullmatch(value):
        raise InputError(
            f"{where}: {shown(value)} is not a class name; allowed are 1 to 64 letters, digits, "
            "'.', '_' and '-', starting with a letter or digit"
        )
    return value


def parse_class(text: str, where: str) -> Slo:
    """Parse a class definition `NAME=TTFT_MS,TPOT_MS`; `where` names it in messages."""
    name, equals, objectives = text.partition("=")
    ttft, comma, tpot = objectives.partition(",")
    if not equals or not comma:
        raise InputError(f"{where}: {shown(text)} is not NAME=TTFT_MS,TPOT_MS")
    class_name(name, where)
    if name == DEFAULT_CLASS:
        prefix = "--kairos-" if where.startswith("--kairos-") else "--"
        raise InputError(
            f"{where}: the class {DEFAULT_CLASS!r} is set by {prefix}ttft-slo-ms and "
            f"{prefix}tpot-slo-ms"
        )
    return Slo(ttft_ms(ttft, f"{where}, TTFT"), tpot_ms(tpot, f"{where}, TPOT"), name)


def from_headers(headers: Iterable[tuple[str, str]]) -> SloRequest:
    """Read the SLO headers of a request.

    Args:
        headers: (name, value) of all its headers, repeated names included.

    Raises:
        InputError: a malformed value, or two headers for one objective.
    """
    found: dict[str, float] = {}
    named: str | None = None
    for raw_name, value in headers:
        name = raw_name.lower()
        if name == CLASS_HEADER:
            if named is not None:
                raise InputError(f"header {name}: sent more than once")
            named = class_name(value, f"header {name}")
        if name not in _OBJECTIVES:
            continue
        objective, parse = _OBJECTIVES[name]
        if objective in found:
            raise InputError(f"header {name}: the request carries another {objective} header")
        found[objective] = parse(value, f"header {name}")
    return SloRequest(found.get("TTFT"), found.get("TPOT"), named)


def _tpot_ms_of_rate(value: object, where: str) -> float:
    allowed = Range(1e3 / TPOT_RANGE_MS.high, 1e3 / TPOT_RANGE_MS.low)
    return 1e3 / parse_number(value, where, allowed, "tokens per second")


# Header -> (objective, its parser). The canonical names come first, then the aliases that other
# routers and load generators send.
_OBJECTIVES: dict[str, tuple[str, Callable[[object, str], float]]] = {
    "x-kairos-slo-ttft-ms": ("TTFT", ttft_ms),
    "x-kairos-slo-tpot-ms": ("TPOT", tpot_ms),
    "x-slo-ttft-ms": ("TTFT", ttft_ms),
    "x-slo-tpot-ms": ("TPOT", tpot_ms),
    "x-llm-d-slo-ttft-ms": ("TTFT", ttft_ms),
    "x-llm-d-slo-tpot-ms": ("TPOT", tpot_ms),
    "x-sgl-ttft-slo-ms": ("TTFT", ttft_ms),
    "x-sgl-tps-slo": ("TPOT", _tpot_ms_of_rate),
}
SLO_HEADERS = (*_OBJECTIVES, CLASS_HEADER)
"""All header lines that state an SLO, lower case."""


def from_mapping(fields: object, where: str) -> SloRequest:
    """Read a `kairos` object of a request body or of custom_params.

    Args:
        fields: the object; allowed keys are ttft_ms, tpot_ms, class and elapsed_ms.
        where: names it in messages.

    Raises:
        InputError: not an object, an unknown key, or a malformed value.
    """
    if not isinstance(fields, Mapping):
        raise InputError(f"{where}: {shown(fields)} is not an object")
    unknown = sorted(
        str(key) for key in fields.keys() - {"ttft_ms", "tpot_ms", "class", "elapsed_ms"}
    )
    if unknown:
        raise InputError(
            f"{where}: unknown field {shown(unknown[0])}; allowed are ttft_ms, tpot_ms, class, "
            "elapsed_ms"
        )
    ttft, tpot = fields.get("ttft_ms"), fields.get("tpot_ms")
    name, elapsed = fields.get("class"), fields.get("elapsed_ms")
    return SloRequest(
        None if ttft is None else ttft_ms(ttft, f"{where}.ttft_ms"),
        None if tpot is None else tpot_ms(tpot, f"{where}.tpot_ms"),
        None if name is None else class_name(name, f"{where}.class"),
        0.0
        if elapsed is None
        else parse_number(elapsed, f"{where}.elapsed_ms", ELAPSED_RANGE_MS, "milliseconds"),
    )
