"""Replays on servers with data-parallel attention ranks: load, servers and figures."""

import json
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from kairos.cluster import DpAttention
from kairos.errors import InputError
from kairos.replay import cli
from kairos.replay.report.simulated import settings_of
from kairos.replay.report.summary import summarise
from kairos.replay.run.comparison import differences
from kairos.replay.run.forwards import Forward, device_use
from kairos.replay.run.session import ReplaySession
from support.replay import header, record


def session_in(folder: Path, *flags: str) -> ReplaySession:
    folder.mkdir()
    trace = folder / "trace.jsonl"
    request = {"input_tokens": 900, "output_tokens": 1}
    trace.write_text("".join(json.dumps({"arrival_s": i, **request}) + "\n" for i in range(12)))
    options = cli.parse_options(["--trace", str(trace), "--out", str(folder), *flags])
    return ReplaySession(options, (), lambda _: None, Console())


def span_s(session: ReplaySession) -> float:
    return session._plans.at(0.9).workload.trace.span_s


def test_load_1_is_the_capacity_of_all_prefill_ranks(tmp_path: Path) -> None:
    one = session_in(tmp_path / "one")
    ranks = session_in(tmp_path / "ranks", "--dp-attention", "2,3", "--instances", "2P1D")
    assert one.config.dp_attention == DpAttention()
    assert ranks.config.dp_attention == DpAttention(2, 3)
    assert span_s(one) == pytest.approx(4 * span_s(ranks))


def test_wrong_ranks_are_refused_before_a_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--dp-attention two"):
        session_in(tmp_path / "out", "--dp-attention", "two")


def test_runs_with_other_ranks_are_not_compared_and_have_no_simulation() -> None:
    one, ranks = header("kairos"), header("kairos", dp_attention="2")
    assert any("dp_attention" in line for line in differences(one, ranks))
    assert settings_of(one) is not None
    assert settings_of(ranks) is None


def test_effective_load_counts_the_prefill_ranks() -> None:
    records = [record(0), record(1)]
    one = summarise([(header(), records)]).effective_load
    ranks = summarise([(header(dp_attention="2,4"), records)]).effective_load
    assert one is not None
    assert ranks == pytest.approx(one / 2)


def test_barrier_idle_is_the_share_of_decode_steps_spent_waiting() -> None:
    work = Forward(
        role="decode", pid=1, kind="decode", batch=1, tokens=1, launch_s=0.0,
        duration_s=0.02, end_s=0.02, bubble_s=0.0,
    )  # fmt: skip
    prefill = msgspec.structs.replace(work, role="prefill", kind="prefill", waited_s=0.01)
    short = msgspec.structs.replace(work, pid=2, waited_s=0.008)
    idle = msgspec.structs.replace(work, pid=3, kind="idle", batch=0, waited_s=0.01)
    use = device_use([work, short, idle, prefill], 1.0)
    assert use is not None
    assert use.decode_barrier_idle_percent == pytest.approx(100 * 0.018 / 0.06)
    alone = device_use([work, prefill], 1.0)
    assert alone is not None
    assert alone.decode_barrier_idle_percent is None
