"""Small scenarios for the simulator's tests."""

import numpy as np

from kairos.latency import DecodeModel, InstanceLimits, KvLink, PrefillModel, Profile, Provenance
from kairos.sim.scenario import Scenario


def poisson(
    requests: int, rate: float, inputs: int | None, outputs: int, seed: int = 0
) -> Scenario:
    """Poisson arrivals; prompts of `inputs` tokens, log-normal when None."""
    rng = np.random.default_rng(seed)
    arrival = np.cumsum(rng.exponential(1.0 / rate, requests))
    lengths = np.full(requests, inputs or 1, np.int64)
    if inputs is None:
        lengths = np.minimum(rng.lognormal(7.5, 1.0, requests).astype(np.int64) + 1, 60_000)
    made = np.full(requests, outputs, np.int64)
    if inputs is None:
        made = rng.integers(1, 2 * outputs, requests)
    zeros = np.zeros(requests, np.int64)
    return Scenario(
        arrival,
        lengths,
        made,
        zeros,
        np.full(requests, 2.0),
        np.full(requests, 0.03),
        zeros,
    )


def flat_profile(batch_s: float, max_batch: int = 64, kv_tokens: int = 100_000) -> Profile:
    """Every prefill batch and every decode step takes `batch_s`; transfers are free."""
    return Profile(
        schema=1,
        name="flat",
        provenance=Provenance("assumed", "test", "2026-01-01"),
        prefill=PrefillModel(batch_s, 0.0, 1e-12, 0.0),
        decode=DecodeModel(batch_s, 0.0, 1.0, 0.0, 0.0),
        kv=KvLink(0.0, 1.0, 1e15),
        limits=InstanceLimits(100, kv_tokens, max_batch),
    )


def one_by_one(arrivals: list[float], outputs: list[int]) -> Scenario:
    """Prompts that are prefilled at once; every decode step of `flat_profile` takes its time."""
    n = len(arrivals)
    ones = np.ones(n, np.int64)
    return Scenario(
        np.array(arrivals),
        ones,
        np.array(outputs),
        0 * ones,
        np.full(n, 9.0),
        np.full(n, 0.5),
        0 * ones,
    )
