"""A causal language model that takes the modelled time and computes nothing but its next token."""

from collections.abc import Iterable
from typing import Any

import torch
from sglang.srt.layers.logits_processor import LogitsProcessor, LogitsProcessorOutput
from sglang.srt.model_executor.forward_batch_info import ForwardBatch
from torch import nn

from kairos.latency import Chunk
from kairos_emulation import device
from kairos_emulation.codes import LOGIT_SCALE, binary_codes, successors


class KairosEmulatedForCausalLM(nn.Module):
    """The "hidden state" of a token is the code of its successor, see `codes`.

    Upstream's logits processor and sampler do the rest, logprobs included.
    `config.output_tokens` is the range of ids that are generated.
    """

    def __init__(self, config: Any, **_kwargs: Any) -> None:
        super().__init__()
        self.config = config
        self.first, self.last = config.output_tokens
        codes = binary_codes(config.vocab_size)
        self.codes = nn.Parameter(codes, requires_grad=False)
        self.lm_head = nn.Module()
        self.lm_head.weight = nn.Parameter(codes * LOGIT_SCALE, requires_grad=False)
        # Every tensor-parallel rank holds the whole head.
        self.logits_processor = LogitsProcessor(config, skip_all_gather=True)

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        for _ in weights:
            pass

    @torch.no_grad()
    def forward(
        self,
        input_ids: torch.Tensor,
        positions: torch.Tensor,
        forward_batch: ForwardBatch,
        **_kwargs: Any,
    ) -> LogitsProcessorOutput:
        mode = forward_batch.forward_mode
        if mode.is_decode():
            device.current().decode(forward_batch.seq_lens_cpu.tolist(), forward_batch.rids or ())
        elif mode.is_extend():
            chunks = zip(
                forward_batch.extend_prefix_lens_cpu, forward_batch.extend_seq_lens_cpu, strict=True
            )
            device.current().prefill(
                [Chunk(context, new) for context, new in chunks], forward_batch.rids or ()
            )
        hidden = self.codes[successors(input_ids, positions, self.first, self.last)]
        return self.logits_processor(input_ids, hidden, self.lm_head, forward_batch)


EntryClass = KairosEmulatedForCausalLM
