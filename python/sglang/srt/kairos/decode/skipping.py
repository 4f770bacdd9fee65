"""Conditions under which requests of a decode server can be skipped."""

import numpy as np
import numpy.typing as npt
from sglang.srt.kairos.upstream import SamplingParams, ScheduleBatch, Scheduler


def skipping_refusal(scheduler: Scheduler) -> str | None:
    """Return why requests of a scheduler cannot be skipped; None if they can."""
    for reason, present in (
        ("not a decode server", scheduler.disaggregation_mode.value != "decode"),
        ("speculative decoding", not scheduler.spec_algorithm.is_none()),
        ("hybrid sliding-window attention", scheduler.is_hybrid_swa),
        ("a state-space model", hasattr(scheduler.req_to_token_pool, "mamba_allocator")),
        ("HiSparse", scheduler.enable_hisparse),
        ("diffusion model", scheduler.dllm_config is not None),
        ("an encoder-decoder model", scheduler.model_config.is_encoder_decoder),
        ("multiplexed prefill and decode", scheduler.enable_pdmux),
    ):
        if present:
            return reason
    return None


def step_obstacle(batch: ScheduleBatch, runs: npt.NDArray[np.bool_]) -> str | None:
    """Return why no request can be skipped in this step; None if requests can.

    Args:
        batch: the running batch.
        runs: shape (requests,): the requests that were selected.
    """
    if any(req.beam_group is not None for req in batch.reqs):
        return "beam search"
    if not batch.check_decode_mem(np.flatnonzero(runs).tolist()):
        return "memory is short"  # upstream can retract only requests of the batch
    return None


def has_penalty(options: SamplingParams) -> bool:
    """Return whether the sampling of a request depends on counts of its own tokens.

    Such a request cannot be skipped. Before each step, upstream counts the newest token that it
    knows, which under overlap is the one before last. After a skipped step it would miss a token.
    """
    return (
        options.frequency_penalty != 0.0
        or options.presence_penalty != 0.0
        or options.repetition_penalty != 1.0
        or options.min_new_tokens > 0
    )
