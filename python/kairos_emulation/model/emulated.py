"""A causal language model that takes the modelled time and computes its next token only."""

from collections.abc import Iterable

import torch
from sglang.srt.layers.logits_processor import LogitsProcessor, LogitsProcessorOutput
from torch import nn

from kairos.latency import Chunk
from kairos_emulation import device
from kairos_emulation.codes import LOGIT_SCALE, binary_codes, successors
from kairos_emulation.upstream import DeviceModelConfig, ModelBatch


class KairosEmulatedForCausalLM(nn.Module):
    """The "hidden state" of a token is the code of its successor; see `kairos_emulation.codes`.

    Upstream's logits processor and sampler do the rest, log probabilities included.
    """

    def __init__(self, config: DeviceModelConfig, **_kwargs: object) -> None:
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
        """Read the checkpoint to its end and keep nothing."""
        for _ in weights:
            pass

    @torch.no_grad()
    def forward(
        self,
        input_ids: torch.Tensor,
        positions: torch.Tensor,
        forward_batch: ModelBatch,
        **_kwargs: object,
    ) -> LogitsProcessorOutput:
        """Launch the batch on the emulated accelerator and return the logits.

        Args:
            input_ids: token ids of the batch, [tokens].
            positions: their positions in the sequences, [tokens].
            forward_batch: lengths and mode.
        """
        mode = forward_batch.forward_mode
        rids = forward_batch.rids or ()
        if mode.is_idle():
            device.current().idle()
        elif mode.is_decode():
            # Rows behind the requests pad a rank to the largest one.
            contexts = forward_batch.seq_lens_cpu.tolist()
            device.current().decode(contexts[: len(rids)] if rids else contexts, rids)
        elif mode.is_extend():
            chunks = zip(
                forward_batch.extend_prefix_lens_cpu, forward_batch.extend_seq_lens_cpu, strict=True
            )
            device.current().prefill([Chunk(context, new) for context, new in chunks], rids)
        hidden = self.codes[successors(input_ids, positions, self.first, self.last)]
        return self.logits_processor(input_ids, hidden, self.lm_head, forward_batch)


EntryClass = KairosEmulatedForCausalLM
