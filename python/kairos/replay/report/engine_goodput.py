"""Goodput of the engine, searched with further runs."""

from typing import Any

import msgspec

from kairos.replay.plan.campaign import ReplayRun
from kairos.replay.report.goodput import TARGETS, Goodput, largest_load
from kairos.replay.report.results import read_arms
from kairos.replay.run.session import ReplaySession

_TOLERANCE = 0.05  # probes take minutes
_PROBE_TRIES = 3


class EngineGoodput:
    """Searches each arm's goodput with runs at further loads, whose records stay.

    Attributes:
        cut_short: whether a search ended because no more runs were allowed.
    """

    def __init__(self, session: ReplaySession, max_probes: int | None = None) -> None:
        """Prepare a search.

        Args:
            session: makes the runs; its console gets a line for each arm without a result.
            max_probes: number of runs that may be made; None sets no limit.
        """
        self.cut_short = False
        self._session = session
        self._probes_left = max_probes

    def results(self) -> dict[str, Any]:
        """Search the goodput of every arm and return it as in report.json.

        The loads of an arm are None if one of its probes never counted or no further probe was
        allowed.
        """
        found: dict[str, Any] = {}
        for arm in dict.fromkeys(run.arm for run in self._session.runs):
            loads = None
            try:
                loads = self._searched(arm)
            except _NeverCountedError as error:
                self._session.config.console.print(f"{arm}: no goodput: {error}", style="red")
            except _NoProbesLeftError:
                self.cut_short = True
            found[arm] = {"in": "engine", "loads": msgspec.to_builtins(loads)}
        return found

    def _searched(self, arm: str) -> list[Goodput]:
        known = {}
        runs = self._session.runs
        for load in dict.fromkeys(run.load for run in runs if run.arm == arm):
            value = self._attainment(arm, load)
            if value is not None:
                known[load] = value
        results = []
        for target in TARGETS:
            results.append(
                largest_load(lambda load: self._probed(arm, load), target, known, _TOLERANCE)
            )
            known |= {float(x): value for x, value in results[-1].probes.items()}
        return results

    def _probed(self, arm: str, load: float) -> float:
        """End-to-end attainment of a new run, which is repeated until it counts.

        Raises:
            _NeverCountedError: no try counted.
            _NoProbesLeftError: no further run is allowed.
        """
        session = self._session
        run = ReplayRun(arm, load, 1, len(session.runs) + 1, f"{arm}@{load:g}")
        session.runs.append(run)
        for tries in range(_PROBE_TRIES + 1):
            if session.counts(run) and (value := self._attainment(arm, load)) is not None:
                return value
            if self._probes_left == 0:
                raise _NoProbesLeftError
            if tries < _PROBE_TRIES:
                self._probes_left = self._probes_left and self._probes_left - 1
                session.run(run)
        raise _NeverCountedError(f"{_PROBE_TRIES} runs at load {load:g} did not count")

    def _attainment(self, arm: str, load: float) -> float | None:
        """Return the attainment over all runs of an arm at a load that count; None without one."""
        paths = self._session.record_files(arm, load)
        if not paths:
            return None
        (pooled,) = read_arms(paths)
        return pooled.summary.e2e_attainment if pooled.counts else None


class _NeverCountedError(Exception):
    """Every try of a probe was disturbed or lost a server."""


class _NoProbesLeftError(Exception):
    """As many runs were made as `--max-runs` allows."""
