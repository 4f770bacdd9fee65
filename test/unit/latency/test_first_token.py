"""The prefill model behind times to first token."""

import numpy as np
import pytest

from kairos.errors import InputError
from kairos.latency import Chunk, load_profile
from kairos.latency.first_token import (
    FirstToken,
    FirstTokenPath,
    fit_first_tokens,
    prefill_s,
    single_request_chunks,
)

PATH = FirstTokenPath(0.021, 1.8e-6)
PROFILE = load_profile("minimax-m2.5-tp4-h200")
CHUNK = PROFILE.limits.chunk_tokens


def samples(prefixes: tuple[int, ...], largest: int, noise_s: float = 0.0) -> list[FirstToken]:
    random = np.random.default_rng(7)
    found = []
    for prefix in prefixes:
        new = 64
        while new <= (largest if not prefix else CHUNK):
            batches = single_request_chunks(prefix + new, prefix, CHUNK)
            seconds = PATH.seconds(prefix + new) + prefill_s(PROFILE.prefill, batches)
            found.append(FirstToken(batches, seconds + noise_s * random.standard_normal()))
            new *= 2
    return found


def test_model_and_path_are_separated() -> None:
    model, path, fit = fit_first_tokens(samples((0, CHUNK, 4 * CHUNK), 4 * CHUNK))
    assert fit.relative_rms < 1e-9
    assert path.fixed_s == pytest.approx(PATH.fixed_s, rel=1e-4)
    assert path.per_token_s == pytest.approx(PATH.per_token_s, rel=1e-4)
    for name in ("fixed_s", "weight_floor_s", "per_token_s", "per_token_context_s"):
        assert getattr(model, name) == pytest.approx(getattr(PROFILE.prefill, name), rel=1e-4)


def test_a_millisecond_of_noise_moves_predictions_by_two_milliseconds() -> None:
    noisy = samples((0, CHUNK, 4 * CHUNK), 4 * CHUNK, noise_s=0.001)
    model, _, _ = fit_first_tokens(noisy)
    for s in noisy:
        true_s = prefill_s(PROFILE.prefill, s.batches)
        assert abs(prefill_s(model, s.batches) - true_s) < 0.002 * len(s.batches) + 0.01 * true_s


def test_without_long_prompts_the_path_counts_as_prefill() -> None:
    model, path, _ = fit_first_tokens(samples((0, CHUNK), CHUNK))
    assert path.fixed_s == 0.0
    assert model.fixed_s == pytest.approx(PROFILE.prefill.fixed_s + PATH.fixed_s, rel=1e-3)


def test_without_prefixes_the_path_per_token_counts_as_prefill() -> None:
    model, path, _ = fit_first_tokens(samples((0,), 4 * CHUNK))
    assert path.per_token_s == 0.0
    wanted = PROFILE.prefill.per_token_s + PATH.per_token_s
    assert model.per_token_s == pytest.approx(wanted, rel=0.02)


def test_one_outlier_does_not_move_the_fit() -> None:
    spoiled = samples((0, CHUNK, 4 * CHUNK), 4 * CHUNK)
    spoiled[4] = spoiled[4]._replace(seconds=5 * spoiled[4].seconds)
    model, _, fit = fit_first_tokens(spoiled)
    assert fit.outliers >= 1
    assert model.per_token_s == pytest.approx(PROFILE.prefill.per_token_s, rel=0.02)


def test_an_idle_server_computes_a_prompt_in_full_chunks() -> None:
    assert single_request_chunks(250, 30, 100) == (Chunk(30, 100), Chunk(130, 100), Chunk(230, 20))
    assert single_request_chunks(30, 30, 100) == ()


def test_too_few_samples_are_an_error() -> None:
    with pytest.raises(InputError, match="samples"):
        fit_first_tokens(samples((0,), 128))
    with pytest.raises(InputError, match="samples"):
        fit_first_tokens([])
