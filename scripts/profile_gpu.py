"""Measure the step times of one model instance on a GPU and write them as a latency profile.

Torch kernels of the model's true shapes stand in for the engine: the GEMMs of attention and
experts, attention with a KV cache, routing and sampling. One layer of one tensor-parallel rank is
timed and multiplied by the number of layers, so nothing of the model has to be loaded.

What it leaves out, and a profile says so: communication between ranks, quantised weights, kernels
that are better (or worse) than torch's, the engine's own work on the host. Calibrate on the running
engine where that is possible; this is for when it is not.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path

import torch
from torch.nn import functional as F  # noqa: N812
from torch.nn.attention.bias import causal_lower_right

from kairos.errors import InputError
from kairos.latency import Chunk, InstanceLimits, Profile, Provenance, load_profile, save_profile
from kairos.latency.fit import PrefillSample, StepSample, fit_decode, fit_prefill

EXAMPLES = """\
examples:
  # On an H200, the model class of the shipped profile as one of four tensor-parallel ranks:
  python scripts/profile_gpu.py --out profile.json --samples samples.json

  # Try it on a CPU with a model of toy shapes (the numbers mean nothing):
  python scripts/profile_gpu.py --device cpu --toy --out /tmp/toy.json
"""


@dataclass(frozen=True)
class Shapes:
    """A mixture-of-experts transformer, and the part of it that one rank has.

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
        return torch.randn(*shape, device=self.device, dtype=self.dtype) * 0.02

    def prefill(self, chunks: list[Chunk]) -> Callable[[], None]:
        """A batch of prompts' chunks through the layer."""
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
            self._experts(x + torch.cat(parts) @ self.out)

        return run

    def decode(self, batch: int, context: int) -> Callable[[], None]:
        """One token of each of `batch` requests with `context` tokens of KV."""
        d = self.shapes.head_dim
        x = self.random(batch, self.shapes.hidden)
        k, v = self._kv(batch, context)

        def run() -> None:
            q = (x @ self.qkv)[:, : self.q_heads * d].view(batch, self.q_heads, 1, d)
            mixed = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
            self._experts(x + mixed.reshape(batch, -1) @ self.out)

        return run

    def logits(self, rows: int) -> Callable[[], None]:
        """Vocabulary projection and choice of the next token, once a step."""
        x = self.random(rows, self.shapes.hidden)

        def run() -> None:
            (x @ self.head).argmax(-1)

        return run

    def _kv(self, batch: int, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
        shape = (batch, self.kv_heads, tokens, self.shapes.head_dim)
        return self.random(*shape), self.random(*shape)

    def _experts(self, x: torch.Tensor) -> torch.Tensor:
        """Top-k routing and the experts' two GEMMs, all tokens of an expert together."""
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
            return torch._grouped_mm(x, w, offs=counts.cumsum(0).to(torch.int32))
        parts = x.split(counts.tolist())
        return torch.cat([part @ w[i] for i, part in enumerate(parts)])


def captured(run: Callable[[], None], device: str) -> Callable[[], None]:
    """`run` as a CUDA graph, as servers launch decode steps: one by one, the launches of a small
    step would take longer than the step."""
    if device == "cpu":
        return run
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        run()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def timed(run: Callable[[], None], device: str, repeats: int) -> float:
    """Median seconds of one call, after two that are not counted."""
    for _ in range(2):
        run()
    if device == "cpu":
        seconds = []
        for _ in range(repeats):
            begin = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - begin)
        return statistics.median(seconds)
    events = [(torch.cuda.Event(True), torch.cuda.Event(True)) for _ in range(repeats)]
    for begin, end in events:
        begin.record()
        run()
        end.record()
    torch.cuda.synchronize()
    return statistics.median(begin.elapsed_time(end) for begin, end in events) / 1e3


def measure(
    layer: Layer, limits: InstanceLimits, repeats: int, report: Callable[[str], None]
) -> dict:
    """Raw samples: seconds of a whole forward, i.e. all layers and the vocabulary projection."""
    layers = layer.shapes.layers
    prefill, decode = [], []
    with torch.inference_mode():
        for new in _steps(64, limits.chunk_tokens):
            for context in (0, *_steps(limits.chunk_tokens, 16 * limits.chunk_tokens)):
                seconds = layers * timed(
                    layer.prefill([Chunk(context, new)]), layer.device, repeats
                )
                seconds += timed(layer.logits(1), layer.device, repeats)
                prefill.append({"new": new, "context": context, "seconds": seconds})
                report(f"prefill of {new} tokens behind {context}: {1e3 * seconds:.2f} ms")
        for batch in _steps(1, limits.max_batch):
            for context in _steps(512, max(512, limits.kv_tokens // 2)):
                if batch * context > limits.kv_tokens:
                    continue
                step = captured(layer.decode(batch, context), layer.device)
                last = captured(layer.logits(batch), layer.device)
                seconds = layers * timed(step, layer.device, repeats)
                seconds += timed(last, layer.device, repeats)
                decode.append({"batch": batch, "context": context, "seconds": seconds})
                report(f"decode of {batch} x {context} tokens: {1e3 * seconds:.2f} ms")
    return {"prefill": prefill, "decode": decode}


def fitted(samples: dict, base: Profile, shapes: Shapes, name: str, source: str) -> Profile:
    """`base` with prefill and decode constants that describe the samples."""
    floor = min(s["seconds"] for s in samples["prefill"] if s["context"] == 0)
    prefill, prefill_fit = fit_prefill(
        [PrefillSample([Chunk(s["context"], s["new"])], s["seconds"]) for s in samples["prefill"]],
        floor,
    )
    decode, decode_fit = fit_decode(
        [
            StepSample(s["batch"], s["batch"] * s["context"], s["seconds"])
            for s in samples["decode"]
        ],
        shapes.top_k / shapes.experts,
    )
    print(
        f"fit: prefill within {100 * prefill_fit.relative_rms:.1f} % rms, decode within "
        f"{100 * decode_fit.relative_rms:.1f} % rms"
    )
    provenance = Provenance("measured", source, f"{date.today():%Y-%m-%d}")
    fields = {"name": name, "provenance": provenance, "prefill": prefill, "decode": decode}
    return Profile(**{f: fields.get(f, getattr(base, f)) for f in base.__struct_fields__})


def _steps(low: int, high: int) -> list[int]:
    """Powers of four times `low`, and `high`."""
    found = []
    while low < high:
        found.append(low)
        low *= 4
    return [*found, high]


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--out", type=Path, required=True, metavar="FILE", help="the profile")
    add("--samples", type=Path, metavar="FILE", help="raw samples (default: beside the profile)")
    add("--device", default="cuda", help="cuda or cpu (default cuda)")
    add("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    add("--ranks", type=int, default=4, help="tensor-parallel ranks of an instance (default 4)")
    add("--base", default="minimax-m2.5-tp4-h200", help="profile whose KV link and limits are kept")
    add("--name", default="measured", help="of the profile")
    add("--repeats", type=int, default=9, help="timings of each shape (default 9)")
    add("--toy", action="store_true", help="tiny shapes and limits, to try the script")
    options = parser.parse_args(argv)
    try:
        base = load_profile(options.base)
        limits, shapes = base.limits, Shapes(ranks=options.ranks)
        if options.toy:
            limits, shapes = InstanceLimits(256, 16_384, 16), TOY
            torch.set_num_threads(1)
        if options.device != "cpu" and not torch.cuda.is_available():
            raise InputError(f"--device {options.device}: no GPU here; --device cpu --toy tries it")
        torch.manual_seed(0)
        layer = Layer(shapes, options.device, getattr(torch, options.dtype))
        samples = measure(layer, limits, options.repeats, lambda text: print(text, flush=True))
        device = "CPU" if options.device == "cpu" else torch.cuda.get_device_name()
        source = (
            f"scripts/profile_gpu.py on {device}, torch {torch.__version__}, {options.dtype}: one "
            f"layer of one of {shapes.ranks} ranks, times {shapes.layers}; {asdict(shapes)}. "
            "Without communication between ranks and without the engine. KV link and limits of "
            f"{base.name}." + (" Toy shapes: the numbers mean nothing." if options.toy else "")
        )
        profile = fitted(samples, base, shapes, options.name, source)
        save_profile(profile, options.out)
        raw = options.samples or options.out.with_suffix(".samples.json")
        raw.write_text(json.dumps({"source": source, **samples}, indent=1) + "\n")
    except (InputError, OSError) as error:
        print(f"profile_gpu: {error}", file=sys.stderr)
        return 2
    print(f"{options.out}, raw samples in {raw}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
