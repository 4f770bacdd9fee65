"""Attainment and throughput of a finished simulation."""

from typing import Any

import numpy as np
import numpy.typing as npt

from kairos.sim.records import Flags
from kairos.sim.result import SimResult


def summarise(done: SimResult, chosen: Flags | None = None) -> dict[str, Any]:
    """Figures of a simulation.

    Attainment counts the requests with an objective alone. Requests that admission rejected count
    as missed, and are left out of the quantiles of times.

    Args:
        done: the simulation.
        chosen: requests to count, shape [requests]; None counts all.

    Returns:
        Figures by name; attainments are percent of the counted requests.
    """
    scenario, records = done.scenario, done.records
    mask = np.ones(len(scenario), bool) if chosen is None else chosen
    output = scenario.output_tokens
    served = ~records.refused
    ttft = np.where(served, records.first_s - scenario.arrival_s, np.nan)
    ttft_ok = ttft <= scenario.ttft_s * (1 + 1e-9)
    steps = np.maximum(output - 1, 1)
    tpot_ok = records.last_s - records.first_s <= scenario.tpot_s * steps * (1 + 1e-9)
    engine = records.last_s - np.where(
        np.isnan(records.admitted_s), records.last_s, records.admitted_s
    )
    engine_ok = engine <= scenario.tpot_s * steps * (1 + 1e-9)
    both = ttft_ok & tpot_ok
    has_ttft, has_tpot = np.isfinite(scenario.ttft_s), np.isfinite(scenario.tpot_s)
    scored = has_ttft | has_tpot
    longest = scenario.input_tokens >= np.quantile(scenario.input_tokens, 0.9)
    # To the last token, as on an engine: over the arrivals alone, an overloaded server that catches
    # up afterwards would look faster than it is.
    makespan = _quantile(records.last_s[served], 1.0) - float(scenario.arrival_s[0])
    waited = (records.admitted_s - records.prefilled_s)[mask & served]
    waited = waited[~np.isnan(waited)]
    busy = sum(server.busy_s for server in done.decode)
    made = float((output[mask & served] - 1).sum())

    def percent(flags: Flags, among: Flags) -> float:
        return 100.0 * float(flags[among].mean()) if among.any() else float("nan")

    return {
        "requests": int(mask.sum()),
        "ttft_attainment": percent(ttft_ok, mask & has_ttft),
        "tpot_attainment": percent(tpot_ok, mask & has_tpot),
        "tpot_attainment_engine_clock": percent(engine_ok, mask & has_tpot),
        "e2e_attainment": percent(both, mask & scored),
        "goodput_tokens_per_s": _rate(float(output[mask & scored & both].sum()), makespan),
        "tokens_per_s": _rate(float(output[mask & served].sum()), makespan),
        "tokens_per_busy_s": _rate(made, busy),
        "longest10_ttft_attainment": percent(ttft_ok, mask & longest & has_ttft),
        "longest10_tpot_attainment": percent(tpot_ok, mask & longest & has_tpot),
        "refused": int(records.refused[mask].sum()),
        "e2e_attainment_of_admitted": percent(both, mask & served & scored),
        "ttft_mean_s": _mean(ttft[mask & served]),
        "tpot_mean_s": _mean(
            ((records.last_s - records.first_s) / steps)[mask & served & (output > 1)]
        ),
        "ttft_p50_s": _quantile(ttft[mask & served], 0.5),
        "ttft_p99_s": _quantile(ttft[mask & served], 0.99),
        "longest10_ttft_p99_s": _quantile(ttft[mask & served & longest], 0.99),
        "max_ttft_over_slo": _quantile((ttft / scenario.ttft_s)[mask & served & has_ttft], 1.0),
        "max_stall_s": float(records.stall_s[mask].max()),
        "wait_p90_s": _quantile(waited, 0.9) if len(waited) else 0.0,
        "barrier_idle": _barrier_idle(done),
        "makespan_s": makespan,
        "retractions": sum(server.retractions for server in done.decode),
    }


def _barrier_idle(done: SimResult) -> float:
    """Return the share of the time of all steps that ranks wait for the slowest rank."""
    waited_s = sum(server.barrier_idle_s for server in done.decode)
    busy_s = sum(len(server.ranks) * server.busy_s for server in done.decode)
    return waited_s / busy_s if busy_s > 0.0 else 0.0


def _quantile(values: npt.NDArray[np.float64], share: float) -> float:
    return float(np.quantile(values, share)) if len(values) else float("nan")


def _mean(values: npt.NDArray[np.float64]) -> float:
    return float(values.mean()) if len(values) else float("nan")


def _rate(amount: float, seconds: float) -> float:
    return amount / seconds if seconds > 0.0 else 0.0
