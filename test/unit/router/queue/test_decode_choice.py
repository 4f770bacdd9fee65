"""Of several decode instances, which one takes a request."""

from typing import Any

from kairos.router.placement.load import WorkerLoad
from support.dispatching import dispatcher, work


def chosen(*reports: dict[str, Any], now_s: float = 1.0) -> str:
    made = dispatcher(decode=len(reports))
    for at, report in enumerate(reports):
        made.loads(f"d{at}", WorkerLoad(1.0, **report), 1.0)
    made.offer(work(1, arrival_s=now_s), now_s)
    (sent,) = made.dispatch(now_s)
    return sent.decode


def test_shorter_steps_count_most() -> None:
    crowded = {"running": 60, "kv_used_tokens": 600_000, "slack_s": 9.0}
    assert chosen(crowded, {"running": 1, "kv_used_tokens": 10_000, "slack_s": -1.0}) == "d1"


def test_of_equal_steps_that_with_more_slack() -> None:
    assert chosen({"running": 4, "slack_s": -0.2}, {"running": 4, "slack_s": 0.3}) == "d1"
    assert chosen({"running": 4, "slack_s": 0.3}, {"running": 4, "slack_s": -0.2}) == "d0"


def test_of_equal_slack_that_with_more_memory() -> None:
    assert chosen({"kv_used_tokens": 9_000}, {"kv_used_tokens": 1_000}) == "d1"


def test_slack_of_a_stale_report_does_not_count() -> None:
    assert chosen({"running": 4}, {"running": 4, "slack_s": 0.3}) == "d1"
    assert chosen({"running": 4}, {"running": 4, "slack_s": 0.3}, now_s=9.0) == "d0"
