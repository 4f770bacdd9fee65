"""Measure the cost that Kairos adds to a decode step, on upstream's own batch objects on the CPU.

    python scripts/bench_decode.py [--json]

Prints microseconds of CPU time of the deciding thread. `split` and `merge`: half of the batch is
skipped. `unchanged`: decision and learning in a step of all requests that have time to spare.
`tight`: the same where a step takes as long as the TPOT objective allows, so that the policy
selects in every step.
"""

import argparse
import itertools
import os
import sys
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import numpy as np
import orjson

if TYPE_CHECKING:
    from sglang.srt.kairos.upstream import Req, ScheduleBatch, StepScheduler

os.environ.setdefault("SGLANG_PLATFORM", "kairos-cpu")  # nothing here needs a device

SIZES = (8, 64, 256)
VOCABULARY = 1_000
NOW_S = 100.0
CONTEXT = 1_100
WARM_UP = 20


def request(number: int, tpot_ms: float) -> "Req":
    """Return the attributes of an upstream request that batches and Kairos read."""
    from sglang.srt.kairos.request_slo import RequestSlo
    from sglang.srt.kairos.request_state import RequestState, StreamedToken
    from sglang.srt.model_executor.forward_batch_info import CaptureHiddenMode

    from kairos.slo import Slo

    req = SimpleNamespace(
        # Half of its hundred tokens ahead at NOW_S.
        kairos=RequestState(
            RequestSlo(Slo(2_000, tpot_ms), 0.0),
            number,
            first_token=StreamedToken(NOW_S - 0.05 * tpot_ms),
        ),
        origin_input_ids=range(1_000),
        output_ids=range(100),
        finished_reason=None,
        finished=lambda: False,
        to_finish=None,
        beam_group=None,
        return_logprob=False,
        grammar=None,
        return_hidden_states=False,
        return_hidden_states_mode=CaptureHiddenMode.NULL,
        is_retracted=False,
        sampling_params=SimpleNamespace(
            max_new_tokens=1_000,
            frequency_penalty=0.0,
            presence_penalty=0.0,
            repetition_penalty=1.0,
            min_new_tokens=0,
        ),
    )
    return cast("Req", req)


def batch_of(size: int, tpot_ms: float = 50.0) -> "ScheduleBatch":
    """Return an upstream `ScheduleBatch` between two decode steps under the overlap schedule."""
    import torch
    from sglang.srt.managers import schedule_batch
    from sglang.srt.sampling import penaltylib
    from sglang.srt.sampling.sampling_batch_info import SamplingBatchInfo

    batch: ScheduleBatch = schedule_batch.ScheduleBatch(
        reqs=[request(i, tpot_ms) for i in range(size)],
        model_config=SimpleNamespace(is_encoder_decoder=False),
        token_to_kv_pool_allocator=SimpleNamespace(available_size=lambda: 10**6, page_size=1),
        device="cpu",
        enable_overlap=True,
        req_pool_indices=torch.arange(size),
        req_pool_indices_cpu=torch.arange(size),
        seq_lens=torch.full((size,), CONTEXT),
        seq_lens_cpu=torch.full((size,), CONTEXT),
        orig_seq_lens=torch.full((size,), CONTEXT, dtype=torch.int32),
    )
    batch.sampling_info = SamplingBatchInfo(
        temperatures=torch.ones(size, 1),
        top_ps=torch.ones(size),
        top_ks=torch.ones(size, dtype=torch.int32),
        min_ps=torch.zeros(size),
        is_all_greedy=True,
        is_any_greedy=True,
        need_top_p_sampling=False,
        need_top_k_sampling=False,
        need_min_p_sampling=False,
        vocab_size=VOCABULARY,
        device="cpu",
        penalizer_orchestrator=penaltylib.BatchedPenalizerOrchestrator(
            vocab_size=VOCABULARY,
            batch=batch,
            penalizers={
                penaltylib.BatchedFrequencyPenalizer,
                penaltylib.BatchedMinNewTokensPenalizer,
                penaltylib.BatchedPresencePenalizer,
            },
        ),
    )
    return batch


def cpu_us(work: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Return mean and 99th percentile of `work`, microseconds of this thread's CPU time."""
    taken = np.empty(repeats)
    for at in range(repeats):
        begin = time.thread_time()
        work()
        taken[at] = time.thread_time() - begin
    return float(taken.mean() * 1e6), float(np.quantile(taken, 0.99) * 1e6)


def split_and_merge(size: int, repeats: int) -> dict[str, float]:
    """Measure splitting and merging a batch of which half is skipped."""
    import torch
    from sglang.srt.kairos.decode.split import merged, split

    torch.set_num_threads(1)
    whole = batch_of(size)
    run, skip = list(range(0, size, 2)), list(range(1, size, 2))
    split_s, merge_s = [], []
    for _ in range(WARM_UP + repeats):
        begin = time.thread_time()
        parts = split(whole, run, skip)
        middle = time.thread_time()
        whole = merged(*parts)
        split_s.append(middle - begin)
        merge_s.append(time.thread_time() - middle)
    apart, together = np.array(split_s[WARM_UP:]), np.array(merge_s[WARM_UP:])
    return {
        f"split_mean_us_{size}": float(apart.mean() * 1e6),
        f"split_p99_us_{size}": float(np.quantile(apart, 0.99) * 1e6),
        f"merge_mean_us_{size}": float(together.mean() * 1e6),
        f"merge_p99_us_{size}": float(np.quantile(together, 0.99) * 1e6),
    }


def unchanged(name: str, size: int, repeats: int) -> dict[str, float]:
    """Measure the decision on a step in which all requests run, and learning from it.

    Args:
        name: "unchanged" or "tight".
    """
    from sglang.srt.kairos.decode.batcher import DecodeBatcher
    from sglang.srt.kairos.decode.counters import DecodeCounters
    from sglang.srt.kairos.decode.retraction import RetractionOrder
    from sglang.srt.kairos.decode.rows import DecodeRows
    from sglang.srt.kairos.decode.selection import DecodeSelection
    from sglang.srt.kairos.decode.steps import DecodeSteps
    from sglang.srt.kairos.shared_clock import SharedClock

    from kairos.latency import load_profile
    from kairos.latency.steps import CONTEXT_KNOTS
    from kairos.latency.table import StepTable
    from kairos.policy.length import LengthEstimator
    from kairos.policy.slack import SlackPolicy
    from kairos.slo import Slo, SloClasses

    profile = load_profile("minimax-m2.5-tp4-h200")
    limits = profile.limits
    prior = StepTable.from_model(profile.decode, 256, limits.kv_tokens, knots=CONTEXT_KNOTS)
    clock = SharedClock(1, lambda: NOW_S)
    steps = DecodeSteps(prior, clock, overlap=True)
    policy = SlackPolicy(prior, 256, lengths=LengthEstimator())
    rows = DecodeRows(SloClasses(Slo(2_000, 50)))
    batcher = DecodeBatcher(
        DecodeSelection(policy, rows, steps, clock, None, DecodeCounters()),
        clock,
        overlap=True,
        retraction=RetractionOrder(policy, rows, reload_s_per_token=1e-6),
    )
    scheduler = cast("StepScheduler", SimpleNamespace(last_batch=None, _pause_intervals=()))
    step_s = prior.step_s(size, CONTEXT * size, CONTEXT)
    batch = batch_of(size, 1e3 * step_s if name == "tight" else 50.0)
    iterations = itertools.count(1)

    def step() -> None:
        assert batcher.update(lambda _, same: same, scheduler, batch) is batch
        iteration = next(iterations)
        vars(batch)["forward_iter"] = iteration  # upstream's `run_batch` does
        batcher.merge_launched(scheduler)
        steps.observe(batch, iteration * step_s, batcher.selection_skipped)

    for _ in range(600):
        step()
    assert batcher.selection_skipped == (name == "unchanged")
    mean, p99 = cpu_us(step, repeats)
    return {f"{name}_mean_us_{size}": mean, f"{name}_p99_us_{size}": p99}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of lines")
    parser.add_argument("--repeats", type=int, default=2_000, help="measured calls (%(default)s)")
    args = parser.parse_args()
    figures: dict[str, float] = {}
    for size in SIZES:
        figures.update(split_and_merge(size, args.repeats))
        for name in ("unchanged", "tight"):
            figures.update(unchanged(name, size, args.repeats))
    if args.json:
        print(orjson.dumps(figures, option=orjson.OPT_INDENT_2).decode())
    else:
        for name, value in figures.items():
            print(f"{name:28} {value:10.1f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
