"""One run: the seed of its prompts, and the servers at its end."""

from collections.abc import Callable
from pathlib import Path

import pytest

from kairos.cluster import ServerDiedError
from kairos.latency import load_profile
from kairos.replay.client.record import RequestOutcome
from kairos.replay.client.target import UrlTarget
from kairos.replay.plan.plan import PlanConfig
from kairos.replay.plan.plans import Plans
from kairos.replay.run.runner import content_seed, last_check
from kairos.replay.run.servers import RunServers
from kairos.workload.synthetic import generate
from support.replay import record, run_config


@pytest.fixture(scope="module")
def plans() -> Plans:
    trace = generate("servegen-r1", 10, 0)
    return Plans(trace, load_profile("tiny-fast"), PlanConfig(load=0.9))


def test_servers_that_keep_their_cache_get_new_prompts_each_run(
    tmp_path: Path, plans: Plans
) -> None:
    plan = plans.at(0.9)
    assert content_seed(run_config(tmp_path), plan) == plan.config.seed
    there = run_config(tmp_path, url="http://h:1")
    assert len({content_seed(there, plan) for _ in range(9)} | {plan.config.seed}) == 10


def test_server_that_dies_with_the_last_request_is_noticed() -> None:
    """The connections of a server break some time before its process has ended."""

    def dying() -> Callable[[], None]:
        calls = iter([None] * 3)

        def check() -> None:
            if next(calls, "dead"):
                raise ServerDiedError("decode-0", 1, Path("none.log"), "serving")

        return check

    good, broken = record(0), record(1, [], RequestOutcome.CONNECTION_ERROR)
    assert last_check([good, broken], servers(dying())).startswith("decode-0 died")
    assert last_check([good], servers(dying())) == ""
    assert last_check([broken], servers(lambda: None), within_s=0.01) == ""


def servers(check: Callable[[], None]) -> RunServers:
    return RunServers(UrlTarget("http://h:1"), {}, send_slo=True, check=check)
