"""The prompts that wait for decode memory, as the preallocation policy reads them."""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from sglang.srt.kairos.decode.rows import DecodeRows
from sglang.srt.kairos.request_state import StreamedToken
from sglang.srt.kairos.upstream import Req

from kairos.latency import Chunk, PrefillModel
from kairos.policy.length import Floats, LengthEstimator
from kairos.policy.preallocation import PreallocationRequest, shortest_prefill_s


class WaitingPrompt(NamedTuple):
    """A request as far as it does not change while it waits.

    Attributes:
        request: for the policy.
        output_tokens: tokens of output that it came with, the first one not counted.
        length_group: its group in the estimate of output lengths.
        max_new_tokens: limit of its output.
    """

    request: PreallocationRequest
    output_tokens: int
    length_group: int
    max_new_tokens: float


class DecodePrompts:
    """Prompts of one decode server, kept from pass to pass.

    Args:
        prefill: predicts prefill; None where memory is allocated after prefill, when no work is
            left.
        rows: knows the groups of output lengths.
        page_size: tokens per page of KV memory.
    """

    def __init__(self, prefill: PrefillModel | None, rows: DecodeRows, page_size: int) -> None:
        self._prefill = prefill
        self._rows = rows
        self._page_size = page_size
        self._known: dict[int, WaitingPrompt] = {}

    @property
    def ids(self) -> set[int]:
        """Numbers of the requests that are kept."""
        return set(self._known)

    def keep(self, prompts: Iterable[WaitingPrompt]) -> None:
        """Keep these prompts and no others."""
        self._known = {prompt.request.id: prompt for prompt in prompts}

    def of(self, req: Req) -> WaitingPrompt:
        """Return the prompt of an upstream request."""
        state = req.kairos
        made = max(len(req.output_ids) - 1, 0)
        # A retracted request has streamed its first token, so its TTFT deadline no longer counts.
        streams = isinstance(state.first_token, StreamedToken)
        deadline_s = math.inf if streams else state.ttft_deadline_s
        known = self._known.get(state.number)
        if known is not None and (known.output_tokens, known.request.deadline_s) == (
            made,
            deadline_s,
        ):
            return known
        # Upstream's allocator gives whole pages.
        pages = -(-(len(req.origin_input_ids) + made) // self._page_size)
        tokens = pages * self._page_size
        min_prefill_s = 0.0
        if self._prefill is not None:
            whole_s = self._prefill.batch_s([Chunk(0, tokens)])
            min_prefill_s = shortest_prefill_s(whole_s, state.slo.ttft_s)
        request = PreallocationRequest(
            state.number,
            tokens,
            state.arrival_s,
            deadline_s,
            min_prefill_s,
            prefill_server=f"{req.bootstrap_host}:{req.bootstrap_port}",
            best_effort=not streams and math.isinf(deadline_s),
        )
        limit = float(req.sampling_params.max_new_tokens)
        return WaitingPrompt(request, made, self._rows.length_group(req), limit)


def remaining_outputs(prompts: Sequence[WaitingPrompt], lengths: LengthEstimator) -> Floats:
    """Return the expected further output of each prompt, tokens, shape (prompts,)."""
    return lengths.remaining(
        np.array([prompt.length_group for prompt in prompts], np.int64),
        np.array([prompt.output_tokens for prompt in prompts], np.int64),
        np.array([prompt.max_new_tokens for prompt in prompts]),
    )
