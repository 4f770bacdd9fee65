"""Every metric that Kairos adds to a server's /metrics: name, help text, and source.

`kairos.router.observe.metrics` has those of the router.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from kairos.validation import as_number


@dataclass(frozen=True, slots=True)
class EngineMetric:
    """A metric of an engine.

    Attributes:
        name: Prometheus name; the client library appends `_total` to counters.
        help: one line.
        kind: counters only grow while a server runs.
        path: keys into the `kairos` object of /server_info. A metric whose path does not exist
            there is left out.
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
    _prefill("preempted", "gauge", "Started prompts that are preempted now."),
    _prefill("preemptions", "counter", "Preemptions of started prompts."),
    _prefill("overtakes", "counter", "Prompts that finished before one that had started earlier."),
    _prefill("demotions", "counter", "Prompts that were feasible in one plan and not in the next."),
    _prefill("starvation_grants", "counter", "Batches that served a starved prompt out of turn."),
    _prefill("recomputed", "counter", "Preempted prompts whose KV cache was freed."),
    _prefill("prediction_ratio", "gauge", "Measured / predicted batch time, weighted mean."),
    _prefill("prediction_spread", "gauge", "Mean deviation of that ratio."),
    _decode("skipped", "gauge", "Requests that do not run in the current decode step."),
    _decode("skips", "counter", "Times that a running request was skipped."),
    _decode("steps", "counter", "Decode steps decided on."),
    _decode(
        "steps_selection_skipped",
        "counter",
        "Decode steps without a selection, in which all requests run.",
    ),
    _decode("steps_with_skips", "counter", "Decode steps in which a request was skipped."),
    _decode(
        "starvation_grants", "counter", "Steps given to requests without a token for too long."
    ),
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
        "Requests given decode memory that were infeasible already.",
        ("preallocation", "granted_infeasible"),
    ),
    EngineMetric(
        "kairos:decode_turns",
        "Without disaggregation: decode steps that ran before a waiting prompt.",
        "counter",
        ("decode_turns", "taken"),
    ),
    _decode("held", "gauge", "First tokens that are held back now.", ("hold", "held")),
)


def figure(state: Mapping[str, Any], path: tuple[str, ...]) -> float | None:
    """Return the number at `path` in the `kairos` object of /server_info; None if there is none."""
    found: Any = state
    for key in path:
        if not isinstance(found, Mapping) or key not in found:
            return None
        found = found[key]
    return as_number(found)
