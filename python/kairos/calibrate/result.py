"""The profile that fits the samples, and the errors of the fit."""

from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import NamedTuple, TypeVar

import msgspec
import numpy as np

from kairos.calibrate.grid import SkippedPoint
from kairos.calibrate.measure import DecodeMeasurement, Measurement, PrefillMeasurement
from kairos.calibrate.servers import MeasuredServers
from kairos.errors import InputError
from kairos.latency import Chunk, Profile, Provenance
from kairos.latency.first_token import (
    FirstToken,
    FirstTokenPath,
    fit_first_tokens,
    prefill_s,
    single_request_chunks,
)
from kairos.latency.fit import Floats, StepSample, fit_decode

T = TypeVar("T")


class FitErrors(NamedTuple):
    """Relative errors of predictions, as fractions of the measured values.

    Attributes:
        points: number of samples.
        median, p90, worst: of the absolute errors.
    """

    points: int
    median: float
    p90: float
    worst: float


class CalibrationResult(NamedTuple):
    """A fitted profile and its samples.

    Attributes:
        profile: the fit; its KV link is the base profile's.
        path: time of a first token beside prefill. It is no part of the profile.
        steps: samples of decode steps.
        first_tokens: samples of times to first token.
    """

    profile: Profile
    path: FirstTokenPath
    steps: tuple[DecodeMeasurement, ...]
    first_tokens: tuple[PrefillMeasurement, ...]

    def step_s(self, sample: DecodeMeasurement) -> float:
        """Return the predicted time of a step, in seconds."""
        return step_s(self.profile, sample)

    def prefill_s(self, sample: PrefillMeasurement) -> float:
        """Return the predicted time of the forwards alone, in seconds."""
        return prefill_s(self.profile.prefill, _chunks(self.profile, sample))

    def measured_prefill_s(self, sample: PrefillMeasurement) -> float:
        """Return the measured time to first token less the path, in seconds."""
        return sample.seconds - self.path.seconds(sample.length)

    def errors(self) -> dict[str, FitErrors]:
        """Return the errors of the fit, by predicted quantity."""
        return {
            "decode step": _errors(self.steps, self.step_s, lambda s: s.seconds),
            "time to first token": _errors(
                self.first_tokens,
                lambda s: self.prefill_s(s) + self.path.seconds(s.length),
                lambda s: s.seconds,
            ),
            "prefill (less the path)": _errors(
                self.first_tokens, self.prefill_s, self.measured_prefill_s
            ),
        }

    def errors_against(self, truth: Profile) -> dict[str, FitErrors]:
        """Return the errors at the measured points against the profile of emulated servers."""
        chunk = self.profile.limits.chunk_tokens
        return {
            f"decode step, against {truth.name}": _errors(
                self.steps, self.step_s, lambda s: step_s(truth, s)
            ),
            f"prefill, against {truth.name}": _errors(
                self.first_tokens,
                self.prefill_s,
                lambda s: prefill_s(
                    truth.prefill, single_request_chunks(s.length, s.cached, chunk)
                ),
            ),
        }


def step_s(profile: Profile, sample: DecodeMeasurement) -> float:
    """Return the time of a step by `profile`, in seconds."""
    longest = sample.total_context / sample.batch
    return profile.decode.step_s(sample.batch, sample.total_context, longest)


def fit_profile(
    samples: Sequence[Measurement], servers: MeasuredServers, base: Profile, name: str, source: str
) -> CalibrationResult:
    """Fit a profile to samples.

    Args:
        samples: measurements.
        servers: that were measured.
        base: gives the values that cannot be measured from outside: KV link, the share of experts
            that a token activates, the weight of the longest context.
        name: of the profile.
        source: origin of the samples, for the provenance.

    Raises:
        InputError: too few samples.
    """
    steps = tuple(s for s in samples if isinstance(s, DecodeMeasurement))
    first_tokens = tuple(s for s in samples if isinstance(s, PrefillMeasurement))
    decode, _ = fit_decode(
        [StepSample(s.batch, round(s.total_context), s.seconds) for s in steps],
        base.decode.expert_fraction,
    )
    chunk = servers.limits.chunk_tokens
    prefill, path, _ = fit_first_tokens(
        [
            FirstToken(single_request_chunks(s.length, s.cached, chunk), s.seconds)
            for s in first_tokens
        ]
    )
    commands = "; ".join(f"{role}: {text}" for role, text in servers.commands.items())
    provenance = Provenance(
        "measured",
        f"{source}, SGLang {servers.version}, model {servers.model}. {len(steps)} decode points of "
        f"{sum(len(s.blocks_s) for s in steps)} timed blocks, {len(first_tokens)} prefill points "
        f"of {sum(len(s.each_s) for s in first_tokens)} prompts. KV link, expert fraction and "
        f"straggler of {base.name} ({base.provenance.kind}). Started as: {commands}",
        date.today().isoformat(),
    )
    decode = msgspec.structs.replace(decode, straggler=base.decode.straggler)
    profile = Profile(base.schema, name, provenance, prefill, decode, base.kv, servers.limits)
    return CalibrationResult(profile, path, steps, first_tokens)


def write_samples(
    path: Path,
    servers: MeasuredServers,
    samples: Sequence[Measurement],
    skipped: Sequence[SkippedPoint],
) -> None:
    """Write JSON lines: the servers, then every sample, then every skipped point.

    Args:
        path: of the file.
        servers: that were measured.
        samples: in the order of measurement.
        skipped: points without a sample.

    Raises:
        InputError: the file cannot be written.
    """
    lines = [{"servers": servers}, *samples, *({"skipped": point} for point in skipped)]
    try:
        path.write_bytes(b"".join(msgspec.json.encode(line) + b"\n" for line in lines))
    except OSError as error:
        raise InputError(f"cannot write samples {path}: {error.strerror}") from error


def _chunks(profile: Profile, sample: PrefillMeasurement) -> tuple[Chunk, ...]:
    return single_request_chunks(sample.length, sample.cached, profile.limits.chunk_tokens)


def _errors(
    samples: Sequence[T], predicted: Callable[[T], float], measured: Callable[[T], float]
) -> FitErrors:
    found: Floats = np.array([abs(predicted(s) / measured(s) - 1.0) for s in samples])
    median, p90 = (float(x) for x in np.percentile(found, [50, 90]))
    return FitErrors(len(samples), median, p90, float(found.max()))
