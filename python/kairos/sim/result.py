"""Results of simulations."""

from dataclasses import dataclass

from kairos.sim.config import SimConfig
from kairos.sim.decode_server import DecodeServer
from kairos.sim.prefill_server import PrefillServer
from kairos.sim.records import SimRecords
from kairos.sim.scenario import Scenario


@dataclass(frozen=True, slots=True)
class SimResult:
    """A simulation that ran until every request was served or refused.

    Attributes:
        scenario: the requests.
        config: the simulated configuration.
        records: times and token counts of each request.
        prefill, decode: the instances after the last event.
    """

    scenario: Scenario
    config: SimConfig
    records: SimRecords
    prefill: list[PrefillServer]
    decode: list[DecodeServer]


@dataclass(frozen=True, slots=True)
class ShardedResult:
    """Figures of a sharded simulation; all of them are simulated except `router_us`.

    Attributes:
        ttft_attainment: percent of the requests.
        ttft_p50_s, ttft_p99_s: seconds.
        rejected: requests.
        cached_share: percent of the prompt tokens that prefix caches held.
        most_waiting: largest number of requests in one dispatcher's queue.
        router_us: CPU time of the dispatchers per request on this machine, microseconds.
    """

    ttft_attainment: float
    ttft_p50_s: float
    ttft_p99_s: float
    rejected: int
    cached_share: float
    most_waiting: int
    router_us: float
