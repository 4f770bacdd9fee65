"""Every metric that Kairos adds to a server's /metrics: name, help text, and where the figure is.

`kairos.router.observe.metrics` has those of the router.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from kairos.validation import as_number


@dataclass(frozen=True, slots=True)
class EngineMetric:
    """Attributes:
    name: Prometheus name; counters get `_total` appended by the client library.
    help: one line.
    kind: counters only grow while a server runs.
    path: keys into the `kairos` object of /server_info; absent there, it is absent here.
    """

    name: str
    help: str
    kind: Literal["counter", "gauge"]
    path: tuple[str, ...]


def _prefill(field: str, kind: Literal["counter", "gauge"], text: str) -> EngineMetric:
    return EngineMetric(f"kairos:prefill_{field}", text, kind, ("planner", field))


def _decode(
    field: str, kind: Literal["counter", "gauge"], text: str, path: tuple[str, ...] = ()
) -> EngineMetric:
    return EngineMetric(f"kairos:decode_{field}", text, kind, ("decode", *(path or (field,))))


ENGINE_METRICS: tuple[EngineMetric, ...] = (
    EngineMetric(
        "kairos:invalid_slos",
        "Requests whose SLO was malformed and replaced by the default.",
        "counter",
        ("invalid_slos",),
    ),
    _prefill("preempted", "gauge", "Started prompts that are set aside now."),
    _prefill("preemptions", "counter", "Times that a started prompt was set aside."),
    _prefill("overtakes", "counter", "Prompts that finished before one that had started earlier."),
    _prefill("demotions", "counter", "Prompts given up that had been going to be on time."),
    _prefill(
        "starvation_grants", "counter", "Batches that served a prompt that had waited too long."
    ),
    _prefill("recomputed", "counter", "Set-aside prompts whose KV cache was given back."),
    _prefill("prediction_ratio", "gauge", "Measured / predicted batch time, weighted mean."),
    _prefill("prediction_spread", "gauge", "Mean deviation of that ratio."),
    _decode("skipped", "gauge", "Requests that sit out the current decode step."),
    _decode("skips", "counter", "Times that a request sat out decode steps."),
    _decode("steps", "counter", "Decode steps decided on."),
    _decode(
        "steps_selection_skipped", "counter", "Decode steps before which nobody was looked at."
    ),
    _decode("steps_with_skips", "counter", "Decode steps that some request sat out."),
    _decode("starvation_grants", "counter", "Turns given to requests that had sat out too long."),
    _decode("retractions", "counter", "Requests moved out of KV memory."),
    _decode(
        "prediction_ratio",
        "gauge",
        "Measured / predicted step time, median.",
        ("measured_over_predicted", "p50"),
    ),
    _decode("granted", "counter", "Requests given decode memory.", ("preallocation", "granted")),
    _decode(
        "granted_infeasible",
        "counter",
        "Of them, those that were late already.",
        ("preallocation", "granted_infeasible"),
    ),
    EngineMetric(
        "kairos:decode_turns",
        "Without disaggregation: decode steps that went before a waiting prompt.",
        "counter",
        ("decode_turns", "taken"),
    ),
    _decode("held", "gauge", "First tokens that are held back now.", ("hold", "held")),
)


def figure(state: Mapping[str, Any], path: tuple[str, ...]) -> float | None:
    """The number at `path` in the `kairos` object of /server_info; None where there is none."""
    found: Any = state
    for key in path:
        if not isinstance(found, Mapping) or key not in found:
            return None
        found = found[key]
    return as_number(found)
