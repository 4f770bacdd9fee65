"""Measure the step times of one model instance on a GPU and write them as a latency profile.

Torch kernels of the model's true shapes stand in for the engine: the GEMMs of attention and
experts, attention with a KV cache, routing and sampling. One layer of one tensor-parallel rank is
measured and multiplied by the number of layers, so no weights are loaded.

Not included, as the profile's provenance says: communication between ranks, quantised weights, the
difference between torch's kernels and the engine's, and the engine's work on the host. Where the
engine runs, `kairos calibrate` measures it instead.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import TypedDict

import msgspec
import torch
from gpu_layer import TOY, Layer, Shapes

from kairos.errors import InputError
from kairos.latency import Chunk, InstanceLimits, Profile, Provenance, load_profile, save_profile
from kairos.latency.fit import PrefillSample, StepSample, fit_decode, fit_prefill

DEFAULT_BASE = "minimax-m2.5-tp4-h200"

EXAMPLES = """\
examples:
  # On an H200, the model class of the shipped profile as one of four tensor-parallel ranks:
  python scripts/profile_gpu.py --out profile.json --samples samples.json

  # A trial on a CPU with toy shapes (the figures have no meaning):
  python scripts/profile_gpu.py --device cpu --toy --out /tmp/toy.json
"""


def captured(run: Callable[[], None], device: str) -> Callable[[], None]:
    """Return `run` as a CUDA graph, as servers launch decode steps.

    Launched one by one, the kernels of a small step take longer to launch than to run.
    """
    if device == "cpu":
        return run
    # torch does not annotate the constructors of its streams and events.
    aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        run()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def timed(run: Callable[[], None], device: str, repeats: int) -> float:
    """Return the median seconds of one call, after two warm-up calls."""
    for _ in range(2):
        run()
    if device == "cpu":
        seconds = []
        for _ in range(repeats):
            begin = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - begin)
        return statistics.median(seconds)
    events = [(_timing_event(), _timing_event()) for _ in range(repeats)]
    for before, after in events:
        before.record()
        run()
        after.record()
    torch.cuda.synchronize()
    return statistics.median(float(b.elapsed_time(a)) for b, a in events) / 1e3


def _timing_event() -> torch.cuda.Event:
    # torch does not annotate the constructors of its streams and events.
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


class PrefillTime(TypedDict):
    """Seconds of a prefill of `new` tokens behind `context` cached tokens."""

    new: int
    context: int
    seconds: float


class DecodeTime(TypedDict):
    """Seconds of a decode step of `batch` requests with `context` tokens each."""

    batch: int
    context: int
    seconds: float


class Samples(TypedDict):
    """Times of whole forwards."""

    prefill: list[PrefillTime]
    decode: list[DecodeTime]


def measure(
    layer: Layer, limits: InstanceLimits, repeats: int, report: Callable[[str], None]
) -> Samples:
    """Measure whole forwards: all layers and the vocabulary projection.

    Args:
        layer: to measure.
        limits: bounds of chunks, batches and contexts.
        repeats: calls of each shape.
        report: receives a line per sample.
    """
    layers = layer.shapes.layers
    prefill: list[PrefillTime] = []
    decode: list[DecodeTime] = []
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


def fitted(samples: Samples, base: Profile, shapes: Shapes, name: str, source: str) -> Profile:
    """Return `base` with prefill and decode constants that fit the samples."""
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
    return msgspec.structs.replace(
        base, name=name, provenance=provenance, prefill=prefill, decode=decode
    )


def _steps(low: int, high: int) -> list[int]:
    """Return powers of four times `low`, and `high`."""
    found = []
    while low < high:
        found.append(low)
        low *= 4
    return [*found, high]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    # fmt: off
    add = parser.add_argument_group("files").add_argument
    add("--out", type=Path, required=True, metavar="FILE", help="the profile")
    add("--samples", type=Path, metavar="FILE",
        help="the samples (default: beside the profile, with the suffix .samples.json)")
    add("--name", default="measured", help="name of the profile (default %(default)s)")
    add("--base", default=DEFAULT_BASE, metavar="NAME|FILE",
        help="profile that gives KV link and limits (default %(default)s)")
    add = parser.add_argument_group("measurement").add_argument
    add("--device", default="cuda", help="cuda or cpu (default %(default)s)")
    add("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16",
        help="type of weights and activations (default %(default)s)")
    add("--ranks", type=int, default=4, metavar="N",
        help="tensor-parallel ranks of an instance (default %(default)s)")
    add("--repeats", type=int, default=9, metavar="N",
        help="calls of each shape, of which the median counts (default %(default)s)")
    add("--toy", action="store_true", help="tiny shapes and limits, for a trial of the script")
    # fmt: on
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and write the profile.

    Args:
        argv: arguments without the program's name; None takes the process's own.

    Returns:
        0, or 2 for bad input.
    """
    options = _parser().parse_args(argv)
    try:
        base = load_profile(options.base)
        limits, shapes = base.limits, Shapes(ranks=options.ranks)
        if options.toy:
            limits, shapes = InstanceLimits(256, 16_384, 16), TOY
            torch.set_num_threads(1)
        if options.device != "cpu" and not torch.cuda.is_available():
            raise InputError(f"--device {options.device}: no GPU here; try --device cpu --toy")
        torch.manual_seed(0)
        layer = Layer(shapes, options.device, getattr(torch, options.dtype))
        samples = measure(layer, limits, options.repeats, lambda text: print(text, flush=True))
        source = _source(options, shapes, base)
        profile = fitted(samples, base, shapes, options.name, source)
        save_profile(profile, options.out)
        raw = options.samples or options.out.with_suffix(".samples.json")
        raw.write_text(json.dumps({"source": source, **samples}, indent=1) + "\n")
    except (InputError, OSError) as error:
        print(f"profile_gpu: {error}", file=sys.stderr)
        return 2
    print(f"{options.out}, samples in {raw}")
    return 0


def _source(options: argparse.Namespace, shapes: Shapes, base: Profile) -> str:
    device = "CPU" if options.device == "cpu" else torch.cuda.get_device_name()
    return (
        f"scripts/profile_gpu.py on {device}, torch {torch.__version__}, {options.dtype}: one "
        f"layer of one of {shapes.ranks} ranks, times {shapes.layers}; {asdict(shapes)}. "
        "Without communication between ranks and without the engine. KV link and limits of "
        f"{base.name}." + (" Toy shapes: the figures have no meaning." if options.toy else "")
    )


if __name__ == "__main__":
    sys.exit(main())
