"""An upper bound of attainment, and two references that know the future."""

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from kairos.latency import Profile
from kairos.sim.bounds_kernel import insert_greedily
from kairos.sim.config import SimConfig
from kairos.sim.records import Floats
from kairos.sim.scenario import Scenario
from kairos.sim.simulation import simulate
from kairos.sim.summary import summarise

_WINDOWS_S = (0.5, 1, 2, 3, 5, 8, 12, 20, 30, 50, 80, 120, 200, 400, 800, 1600, 3200)
_STARTS_PER_WINDOW = 3
DROP_SHARES = (0.0, 0.01, 0.02, 0.03, 0.05, 0.08, 0.12)


def prefill_work_s(scenario: Scenario, profile: Profile) -> Floats:
    """Marginal prefill work of every request, seconds, shape [requests]."""
    model, chunk = profile.prefill, profile.limits.chunk_tokens
    pairs = zip(scenario.cached_tokens.tolist(), scenario.input_tokens.tolist(), strict=True)
    return np.array([model.remaining_s(cached, total, chunk) for cached, total in pairs])


def lp_bound_ttft(scenario: Scenario, profile: Profile, instances: int = 1) -> float:
    """Upper bound of TTFT attainment for any preemptive schedule that knows the future, percent.

    A linear program maximises the served (parts of) requests. In no interval of time may the work
    of requests that arrive and are due inside it exceed what the instances can do. The bound is
    optimistic, because parts of requests may be dropped and work is marginal.
    """
    from scipy.optimize import linprog
    from scipy.sparse import csr_matrix

    work = prefill_work_s(scenario, profile)
    arrival, due = scenario.arrival_s, scenario.arrival_s + scenario.ttft_s
    columns: list[npt.NDArray[np.int64]] = []
    capacity: list[float] = []
    for window in _WINDOWS_S:
        for start in np.arange(0.0, arrival[-1], window / _STARTS_PER_WINDOW):
            low, high = np.searchsorted(arrival, [start, start + window])
            inside = low + np.flatnonzero(due[low:high] <= start + window)
            if work[inside].sum() > window * instances:
                columns.append(inside)
                capacity.append(window * instances)
    if not columns:
        return 100.0
    rows = np.repeat(np.arange(len(columns)), [len(inside) for inside in columns])
    inside = np.concatenate(columns)
    matrix = csr_matrix((work[inside], (rows, inside)), shape=(len(columns), len(work)))
    solved = linprog(-np.ones(len(work)), A_ub=matrix, b_ub=capacity, bounds=(0, 1))
    return float(-solved.fun / len(work) * 100.0)


def clairvoyant_ttft(scenario: Scenario, profile: Profile, instances: int = 1) -> float:
    """TTFT attainment of a set of requests chosen with the future known, percent.

    Requests are tried from small to large. A request is kept if all kept requests still meet their
    deadlines under preemptive EDF. The result is no bound: it is the attainment of a fluid server
    without batches and overheads that serves whole requests.
    """
    work = prefill_work_s(scenario, profile) / instances
    due = scenario.arrival_s + scenario.ttft_s
    order = np.argsort(work, kind="stable")
    kept = int(insert_greedily(scenario.arrival_s, due, work, order))
    return 100.0 * kept / len(scenario)


def drop_reference_tpot(scenario: Scenario, config: SimConfig, profile: Profile) -> float:
    """TPOT attainment when the requests with the largest output x context are dropped, percent.

    The best share of DROP_SHARES is taken, and dropped requests count as missed. The reference
    knows the true lengths and is no upper bound.
    """
    cost = scenario.output_tokens * (scenario.input_tokens + scenario.output_tokens / 2)
    order = np.argsort(cost, kind="stable")
    best = 0.0
    for share in DROP_SHARES:
        kept = np.sort(order[: max(1, round(len(order) * (1.0 - share)))])
        served = scenario.only(kept)
        done = simulate(served, replace(config, stages="decode"), profile)
        best = max(best, summarise(done)["tpot_attainment"] * len(kept) / len(order))
    return best
