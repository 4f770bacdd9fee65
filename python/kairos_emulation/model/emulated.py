"""A causal language model that takes the modelled time and computes nothing but its next token."""

from collections.abc import Iterable
from typing import Any

import torch
from sglang.srt.layers.logits_processor import LogitsProcessor, LogitsProcessorOutput
from sglang.srt.model_executor.forward_batch_info import ForwardBatch
from torch import nn

from kairos.latency import Chunk
from kairos_emulation import device

# Logits of two tokens differ by at least twice this: sampling at any sane temperature agrees
# with greedy.
_LOGIT_SCALE = 20.0


class KairosEmulatedForCausalLM(nn.Module):
    """The next token is a function of position and token, whatever the batch looks like.

    The "hidden state" of a token is the binary code of its successor and the head holds the code
    of every token, so upstream's logits processor finds the successor as the largest logit and
    answers logprob requests by itself. `config.output_tokens` bounds the successors.
    """

    def __init__(self, config: Any, **_kwargs: Any) -> None:
        super().__init__()
        self.config = config
        first, last = config.output_tokens
        self.first, self.count = first, last - first + 1
        codes = _binary_codes(config.vocab_size)
        self.codes = nn.Parameter(codes, requires_grad=False)
        self.lm_head = nn.Module()
        self.lm_head.weight = nn.Parameter(codes * _LOGIT_SCALE, requires_grad=False)
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
            device.current().decode(forward_batch.seq_lens_cpu.tolist())
        elif mode.is_extend():
            chunks = zip(
                forward_batch.extend_prefix_lens_cpu, forward_batch.extend_seq_lens_cpu, strict=True
            )
            device.current().prefill([Chunk(context, new) for context, new in chunks])
        hidden = self.codes[self.successor(input_ids, positions)]
        return self.logits_processor(input_ids, hidden, self.lm_head, forward_batch)

    def successor(self, tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Next token ids, int64, same shape; mixes both arguments so that texts do not cycle."""
        mixed = tokens * 2_654_435_761 + positions * 40_503
        return (mixed ^ (mixed >> 15)) % self.count + self.first


def _binary_codes(count: int) -> torch.Tensor:
    """Rows of +1 and -1, all different: [count, bits], float32."""
    bits = max(1, (count - 1).bit_length())
    numbers = torch.arange(count).unsqueeze(1)
    return ((numbers >> torch.arange(bits)) & 1).float() * 2 - 1


EntryClass = KairosEmulatedForCausalLM
