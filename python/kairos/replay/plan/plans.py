"""The plans of a replay, one per load."""

from dataclasses import replace

from kairos.latency import Profile
from kairos.replay.plan.plan import Plan, PlanConfig, make_plan
from kairos.workload.trace import Trace


class Plans:
    """Makes the plan of each load once."""

    def __init__(self, trace: Trace, profile: Profile, config: PlanConfig) -> None:
        """Keep what all plans have in common; the load of `config` is not used."""
        self._trace = trace
        self._profile = profile
        self._config = config
        self._by_load: dict[float, Plan] = {}

    def at(self, load: float) -> Plan:
        """Return the plan of a load.

        Raises:
            InputError: see `make_plan`.
        """
        if load not in self._by_load:
            config = replace(self._config, load=load)
            self._by_load[load] = make_plan(self._trace, self._profile, config)
        return self._by_load[load]
