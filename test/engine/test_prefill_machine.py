"""A state machine over real servers: whatever clients and operators do in whatever order, every
request ends and rows, tokens and locks are given back."""

import time
from dataclasses import replace

import httpx
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from kairos.cluster import Cluster
from support.clusters import on
from support.configs import KAIROS
from support.pair import Streaming, kairos_state, wait_idle

# Upstream loses sight of a request whose client leaves in the moment in which a paused server goes
# on. The timeout of its handshake ends it then.
HANDSHAKE_S = 15
OPERATED = replace(KAIROS, env=(("SGLANG_DISAGGREGATION_BOOTSTRAP_TIMEOUT", f"{HANDSHAKE_S}"),))
AFTER_PREFILL = replace(
    OPERATED, args=(*KAIROS.args, "--disaggregation-decode-allocation-policy", "prefill_complete")
)
OPTIMISTIC = replace(
    OPERATED,
    args=(*KAIROS.args, "--optimistic-prefill-attempts", "2"),
    env=(*OPERATED.env, ("SGLANG_TEST_FORCE_OPTIMISTIC_PREFILL_RETRY_PROB", "0.5")),
)
PAGES = replace(OPERATED, args=(*KAIROS.args, "--page-size", "16"))
NO_CACHE = replace(OPERATED, args=(*KAIROS.args, "--disable-radix-cache"))
NO_OVERLAP = replace(OPERATED, args=(*KAIROS.args, "--disable-overlap-schedule"))

NEW_TOKENS = 3
STARTED_LIMIT = 16  # docs, limits


class Traffic(RuleBasedStateMachine):
    """Clients of a pair."""

    cluster: Cluster

    def __init__(self) -> None:
        super().__init__()
        self.open: list[Streaming] = []
        self.ended: list[Streaming] = []

    @rule(
        tokens=st.sampled_from([20, 500, 2_049, 9_000, 40_000]),
        ttft_ms=st.sampled_from([100, 1_000, 20_000]),
    )
    def arrive(self, tokens: int, ttft_ms: int) -> None:
        self.open.append(
            Streaming(self.cluster, tokens, NEW_TOKENS, slo={"ttft_ms": ttft_ms}).__enter__()
        )

    @precondition(lambda self: self.open)
    @rule(at=st.integers(0, 100))
    def abort(self, at: int) -> None:
        request = self._taken(at)
        request.abort()
        self.ended.append(request)

    @precondition(lambda self: self.open)
    @rule(at=st.integers(0, 100))
    def disconnect(self, at: int) -> None:
        self._taken(at).__exit__()

    @rule()
    def flush(self) -> None:
        """Refused while requests are there; they continue either way."""
        httpx.post(f"{self.cluster.prefill[0].url}/flush_cache", timeout=30)

    @rule(seconds=st.sampled_from([0.05, 0.5]))
    def wait(self, seconds: float) -> None:
        time.sleep(seconds)
        assert planner(self.cluster)["preempted"] < STARTED_LIMIT

    def teardown(self) -> None:
        for request in self.open:
            request.wait_finished()
            assert request.made == NEW_TOKENS
        for request in self.ended:
            request.wait_finished()
        for request in (*self.open, *self.ended):
            request.__exit__()
        wait_idle(self.cluster, 3.0 * HANDSHAKE_S)
        assert planner(self.cluster)["preempted"] == 0
        # Upstream compares its pools with the cache when it flushes.
        self._post("flush_cache", {})

    def _taken(self, at: int) -> Streaming:
        return self.open.pop(at % len(self.open))

    def _post(self, path: str, fields: dict[str, str]) -> None:
        answer = httpx.post(f"{self.cluster.prefill[0].url}/{path}", json=fields, timeout=30)
        assert answer.status_code == 200, answer.text


class Operation(Traffic):
    """The same, and their operator."""

    def __init__(self) -> None:
        super().__init__()
        self.paused = False

    @precondition(lambda self: not self.paused)
    @rule(mode=st.sampled_from(["in_place", "retract"]))
    def pause(self, mode: str) -> None:
        self._post("pause_generation", {"mode": mode})
        self.paused = True

    @precondition(lambda self: self.paused)
    @rule()
    def resume(self) -> None:
        self._post("continue_generation", {})
        self.paused = False

    def teardown(self) -> None:
        if self.paused:
            self.resume()
        super().teardown()


def planner(cluster: Cluster) -> dict[str, int]:
    state = kairos_state(cluster.prefill[0])
    assert state is not None
    assert isinstance(state["planner"], dict), state["planner"]
    return state["planner"]


@on(KAIROS)
def test_everything_is_given_back_whatever_clients_do(cluster: Cluster) -> None:
    run(Traffic, cluster, examples=2)


@on(OPERATED, long=(AFTER_PREFILL, OPTIMISTIC, PAGES, NO_CACHE, NO_OVERLAP))
def test_everything_is_given_back_whatever_operators_do(cluster: Cluster) -> None:
    run(Operation, cluster, examples=3)


def run(machine: type[Traffic], cluster: Cluster, examples: int) -> None:
    run_state_machine_as_test(
        type(machine.__name__, (machine,), {"cluster": cluster}),
        settings=settings(
            max_examples=examples,
            stateful_step_count=12,
            deadline=None,
            phases=[Phase.generate],  # a real server does not do the same twice
            suppress_health_check=list(HealthCheck),
        ),
    )
