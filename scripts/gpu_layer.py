"""One layer of a mixture-of-experts transformer in torch, with random weights."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional as F  # noqa: N812  the name in torch's own documentation
from torch.nn.attention.bias import causal_lower_right

from kairos.errors import InputError
from kairos.latency import Chunk


@dataclass(frozen=True)
class Shapes:
    """Shapes of a mixture-of-experts transformer, and the share of one rank.

    Attributes:
        layers, hidden, vocab: of the model.
        q_heads, kv_heads, head_dim: of attention.
        experts, top_k, expert_width: of each layer's expert block.
        ranks: tensor parallelism: heads and expert widths are divided by it.
    """

    layers: int = 62
    hidden: int = 3072
    vocab: int = 200_064
    q_heads: int = 48
    kv_heads: int = 8
    head_dim: int = 128
    experts: int = 256
    top_k: int = 8
    expert_width: int = 1536
    ranks: int = 4

    def __post_init__(self) -> None:
        for name in ("q_heads", "kv_heads", "expert_width", "vocab"):
            if self.ranks < 1 or getattr(self, name) % self.ranks:
                raise InputError(
                    f"--ranks {self.ranks}: does not divide {name} {getattr(self, name)}"
                )


TOY = Shapes(2, 64, 256, 4, 2, 16, 8, 2, 32, 1)


class Layer:
    """One layer of one rank with random weights."""

    def __init__(self, shapes: Shapes, device: str, dtype: torch.dtype) -> None:
        s, r = shapes, shapes.ranks
        self.shapes, self.device, self.dtype = shapes, device, dtype
        self.q_heads, self.kv_heads = s.q_heads // r, s.kv_heads // r
        self.width = s.expert_width // r
        qkv = (self.q_heads + 2 * self.kv_heads) * s.head_dim
        self.qkv = self.random(s.hidden, qkv)
        self.out = self.random(self.q_heads * s.head_dim, s.hidden)
        self.router = self.random(s.hidden, s.experts)
        self.up = self.random(s.experts, s.hidden, 2 * self.width)
        self.down = self.random(s.experts, self.width, s.hidden)
        self.head = self.random(s.hidden, s.vocab // r)

    def random(self, *shape: int) -> torch.Tensor:
        """Return small random values of this shape."""
        return torch.randn(*shape, device=self.device, dtype=self.dtype) * 0.02

    def prefill(self, chunks: list[Chunk]) -> Callable[[], None]:
        """Return a function that runs a batch of prompt chunks through the layer."""
        d = self.shapes.head_dim
        x = self.random(sum(c.new for c in chunks), self.shapes.hidden)
        caches = [self._kv(1, c.context + c.new) for c in chunks]

        def run() -> None:
            q = (x @ self.qkv)[:, : self.q_heads * d]
            parts, at = [], 0
            for chunk, (k, v) in zip(chunks, caches, strict=True):
                own = q[at : at + chunk.new].view(1, chunk.new, self.q_heads, d).transpose(1, 2)
                at += chunk.new
                mask = causal_lower_right(chunk.new, chunk.context + chunk.new)
                mixed = F.scaled_dot_product_attention(own, k, v, attn_mask=mask, enable_gqa=True)
                parts.append(mixed.transpose(1, 2).reshape(chunk.new, -1))
            self.experts(x + torch.cat(parts) @ self.out)

        return run

    def decode(self, batch: int, context: int) -> Callable[[], None]:
        """Return a function that runs one token of each request through the layer.

        Args:
            batch: number of requests.
            context: tokens of KV of each.
        """
        d = self.shapes.head_dim
        x = self.random(batch, self.shapes.hidden)
        k, v = self._kv(batch, context)

        def run() -> None:
            q = (x @ self.qkv)[:, : self.q_heads * d].view(batch, self.q_heads, 1, d)
            mixed = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
            self.experts(x + mixed.reshape(batch, -1) @ self.out)

        return run

    def logits(self, rows: int) -> Callable[[], None]:
        """Return a function that projects `rows` rows to the vocabulary and selects tokens."""
        x = self.random(rows, self.shapes.hidden)

        def run() -> None:
            (x @ self.head).argmax(-1)

        return run

    def _kv(self, batch: int, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
        shape = (batch, self.kv_heads, tokens, self.shapes.head_dim)
        return self.random(*shape), self.random(*shape)

    def experts(self, x: torch.Tensor) -> torch.Tensor:
        """Return the output of the expert block for rows of hidden states, [tokens, hidden].

        The tokens of an expert go through its two GEMMs together.
        """
        weight, chosen = (x @ self.router).softmax(-1).topk(self.shapes.top_k)
        flat = chosen.flatten()
        order = flat.argsort()
        rows = x[order // self.shapes.top_k]
        # Not `bincount`, which waits for the device.
        counts = torch.zeros(self.shapes.experts, dtype=torch.int64, device=x.device)
        counts.scatter_add_(0, flat, torch.ones_like(flat))
        gate, value = self._grouped(rows, self.up, counts).chunk(2, -1)
        done = self._grouped(F.silu(gate) * value, self.down, counts)
        scaled = done * weight.flatten()[order, None]
        return torch.zeros_like(x).index_add_(0, order // self.shapes.top_k, scaled)

    def _grouped(self, x: torch.Tensor, w: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        if self.device != "cpu" and hasattr(torch, "_grouped_mm"):
            grouped_mm: Callable[..., torch.Tensor] = torch._grouped_mm
            return grouped_mm(x, w, offs=counts.cumsum(0).to(torch.int32))
        parts = torch.split(x, counts.tolist())
        return torch.cat([part @ w[i] for i, part in enumerate(parts)])
