"""Synthetic traces: long-tailed lengths, bursty arrivals, shared prefixes.

Lengths come from log-normal bodies with a Pareto tail. Arrivals are a Gamma renewal process whose
rate drifts between epochs. Prompts that continue an earlier one form trees of `hash_ids`.
"""

import gzip
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from kairos.errors import InputError
from kairos.workload.trace import BLOCK_TOKENS, Trace, TraceRequest

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class LengthDistribution:
    """A distribution of token counts: log-normal bodies with a Pareto tail.

    Attributes:
        bodies: (weight, median in tokens, sigma of the logarithm) of each log-normal part.
        tail_share: part of the requests that is drawn from the tail.
        tail_start: tokens at which the Pareto tail begins.
        tail_index: Pareto exponent; below 2 the untruncated variance is infinite.
        low, high: smallest and largest count.
    """

    bodies: tuple[tuple[float, float, float], ...]
    tail_share: float
    tail_start: float
    tail_index: float
    low: int
    high: int

    def sample(self, count: int, rng: np.random.Generator) -> IntArray:
        """Draw token counts, shape [count]."""
        weights = np.array([weight for weight, _, _ in self.bodies])
        medians = np.array([median for _, median, _ in self.bodies])
        sigmas = np.array([sigma for _, _, sigma in self.bodies])
        part = rng.choice(len(weights), size=count, p=weights / weights.sum())
        body = medians[part] * np.exp(sigmas[part] * rng.standard_normal(count))
        beyond = 1.0 - (self.tail_start / self.high) ** self.tail_index
        tail = self.tail_start * (1.0 - beyond * rng.random(count)) ** (-1.0 / self.tail_index)
        lengths = np.where(rng.random(count) < self.tail_share, tail, body)
        return np.clip(np.rint(lengths), self.low, self.high).astype(np.int64)


@dataclass(frozen=True, slots=True)
class ArrivalProcess:
    """A Gamma renewal process whose rate drifts between epochs.

    Attributes:
        rate_per_s: mean requests per second.
        cv: coefficient of variation of the gaps; 1 is Poisson, above is bursty.
        drift: coefficient of variation of the rate between epochs; 0 keeps it constant.
        epoch_s: length of an epoch, seconds.
    """

    rate_per_s: float
    cv: float
    drift: float = 0.0
    epoch_s: float = 60.0

    def sample(self, count: int, rng: np.random.Generator) -> FloatArray:
        """Draw arrival times in seconds, sorted, the first at 0, shape [count]."""
        shape = 1.0 / self.cv**2
        gaps = rng.gamma(shape, 1.0 / (shape * self.rate_per_s), count)
        at_mean_rate: FloatArray = np.cumsum(gaps) - gaps[0]
        if self.drift == 0.0:
            return at_mean_rate
        # Stretch time so that each epoch runs at its own rate: the inverse of the summed rate.
        epochs = 2 * int(np.ceil(at_mean_rate[-1] / self.epoch_s)) + 2
        shape = 1.0 / self.drift**2
        rates = np.maximum(rng.gamma(shape, 1.0 / shape, epochs), 0.01)
        passed = np.concatenate(([0.0], np.cumsum(rates * self.epoch_s)))
        clock = np.arange(epochs + 1) * self.epoch_s
        return np.asarray(np.interp(at_mean_rate, passed, clock), dtype=np.float64)


@dataclass(frozen=True, slots=True)
class PrefixSharing:
    """Prefixes that prompts share with earlier prompts.

    Attributes:
        common_blocks: leading blocks of 512 tokens that every prompt shares (system prompt).
        continued: part of the requests that continue an earlier prompt.
        mean_age: mean distance to that prompt, in requests.
        tries: earlier prompts that are considered. The longest one that fits is continued, so more
            tries share a larger part of the prompt.
    """

    common_blocks: int = 0
    continued: float = 0.0
    mean_age: float = 1.0
    tries: int = 1


@dataclass(frozen=True, slots=True)
class TrafficPreset:
    """Lengths, arrivals and shared prefixes of one kind of traffic."""

    inputs: LengthDistribution
    outputs: LengthDistribution
    arrivals: ArrivalProcess
    sharing: PrefixSharing = PrefixSharing()


# Presets are fitted to quantiles, means and gaps of the public traces they are named after.
PRESETS = {
    "mooncake-conversation": TrafficPreset(
        LengthDistribution(((1.0, 7022.6, 0.999),), 0.010, 65108.0, 1.605, 892, 124_847),
        LengthDistribution(
            ((0.33, 50.5, 1.496), (0.67, 413.7, 0.31)), 0.0122, 653.4, 1.075, 1, 2000
        ),
        ArrivalProcess(3.31, 1.01, 0.12, 60.0),
        PrefixSharing(common_blocks=1, continued=0.41, mean_age=700.0, tries=24),
    ),
    "azure-conversation": TrafficPreset(
        LengthDistribution(
            ((0.356, 292.7, 0.46), (0.644, 1386.3, 0.435)), 0.019, 3299.5, 4.873, 8, 14_050
        ),
        LengthDistribution(
            ((0.306, 407.0, 0.15), (0.694, 91.8, 0.512)), 0.0346, 450.2, 4.576, 12, 1000
        ),
        ArrivalProcess(5.53, 1.07, 0.21, 600.0),
    ),
    "servegen-r1": TrafficPreset(
        LengthDistribution(((1.0, 345.3, 1.116),), 0.0213, 10976.0, 1.047, 4, 34_962),
        LengthDistribution(
            ((0.656, 424.1, 0.417), (0.344, 527.2, 0.729)), 0.0282, 2037.0, 0.718, 78, 30_354
        ),
        ArrivalProcess(2.51, 1.20, 0.15, 600.0),
    ),
}


def generate(preset_name: str, count: int, seed: int) -> Trace:
    """Generate a synthetic trace; the same arguments give the same trace.

    Args:
        preset_name: key of PRESETS.
        count: number of requests.
        seed: of the generator.

    Raises:
        InputError: unknown preset, or a count out of range.
    """
    preset = PRESETS.get(preset_name)
    if preset is None:
        raise InputError(f"preset {preset_name!r}: allowed are {', '.join(PRESETS)}")
    if not 1 <= count <= 10_000_000:
        raise InputError(f"requests: {count} is out of range, allowed are 1 to 10000000")
    if not 0 <= seed < 2**63:
        raise InputError(f"seed: {seed} is out of range, allowed are 0 to 2^63 - 1")
    # Separate streams, so that changing one part of a preset leaves the others as they were.
    arrival_rng, input_rng, output_rng, sharing_rng = (
        np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(4)
    )
    arrivals = preset.arrivals.sample(count, arrival_rng)
    inputs = preset.inputs.sample(count, input_rng).tolist()
    outputs = preset.outputs.sample(count, output_rng).tolist()
    blocks = _share(inputs, preset.sharing, sharing_rng)
    requests = [
        TraceRequest(round(arrival, 6), length, output, ids)
        for arrival, length, output, ids in zip(
            arrivals.tolist(), inputs, outputs, blocks, strict=True
        )
    ]
    name = f"synthetic-{preset_name}-seed{seed}"
    digest = hashlib.sha256()
    for line in _lines(requests):
        digest.update(line)
    return Trace(name, digest.hexdigest(), requests)


def write_trace(trace: Trace, path: Path) -> None:
    """Write a trace in the normalised format, gzipped; the same trace gives the same bytes."""
    with path.open("wb") as file, gzip.GzipFile("", "wb", fileobj=file, mtime=0) as packed:
        for line in _lines(trace.requests):
            packed.write(line)


def _lines(requests: Sequence[TraceRequest]) -> Iterator[bytes]:
    encoder = msgspec.json.Encoder()
    for request in requests:
        fields = msgspec.structs.asdict(request)
        if not request.hash_ids:
            del fields["hash_ids"]
        yield encoder.encode(fields) + b"\n"


def _share(
    inputs: list[int], sharing: PrefixSharing, rng: np.random.Generator
) -> list[tuple[int, ...]]:
    """`hash_ids` per request.

    A prompt that continues another one starts with all whole blocks of it.
    """
    if sharing.common_blocks == 0 and sharing.continued == 0.0:
        return [()] * len(inputs)
    common = tuple(range(sharing.common_blocks))
    continues = rng.random(len(inputs)) < sharing.continued
    next_id = sharing.common_blocks
    chains: list[tuple[int, ...]] = []
    for i, length in enumerate(inputs):
        chain = common
        if continues[i] and i:
            ages = rng.exponential(sharing.mean_age, sharing.tries).astype(int) + 1
            parents = [i - age for age in ages.tolist() if age <= i and inputs[i - age] < length]
            if parents:
                parent = max(parents, key=inputs.__getitem__)
                shared = max(inputs[parent] // BLOCK_TOKENS, sharing.common_blocks)
                chain = chains[parent][:shared]
        blocks = -(-length // BLOCK_TOKENS)
        fresh = max(0, blocks - len(chain))
        chains.append((*chain[:blocks], *range(next_id, next_id + fresh)))
        next_id += fresh
    return chains
