"""Successors of tokens in the emulated model, and their codes."""

import pytest
import torch

from kairos_emulation.codes import LOGIT_SCALE, binary_codes, successors

FIRST, LAST = 2, 95


@pytest.mark.parametrize("count", [1, 2, 94, 1024])
def test_the_largest_logit_is_the_encoded_token(count):
    codes = binary_codes(count)
    logits = codes @ (codes * LOGIT_SCALE).T
    assert torch.equal(logits.argmax(-1), torch.arange(count))
    if count > 1:
        best, second = logits.topk(2).values.unbind(-1)
        assert (best - second).min() >= 2 * LOGIT_SCALE


def test_successors_stay_in_range_and_use_all_of_it():
    tokens = torch.arange(1024).repeat(32)
    positions = torch.arange(32).repeat_interleave(1024)
    out = successors(tokens, positions, FIRST, LAST)
    assert sorted(out.unique().tolist()) == list(range(FIRST, LAST + 1))


def test_successors_depend_on_the_token_and_on_the_position():
    token, position = torch.tensor([5]), torch.tensor([7])
    here = successors(token, position, FIRST, LAST)
    others = successors(torch.arange(50), position, FIRST, LAST)
    later = successors(token, torch.arange(50), FIRST, LAST)
    assert (others != here).any()
    assert (later != here).any()


def test_successors_do_not_depend_on_the_rest_of_the_batch():
    tokens, positions = torch.arange(100), torch.arange(100) * 37
    together = successors(tokens, positions, FIRST, LAST)
    alone = [
        successors(t[None], p[None], FIRST, LAST) for t, p in zip(tokens, positions, strict=True)
    ]
    assert torch.equal(together, torch.cat(alone))


def test_a_generated_text_does_not_run_into_a_short_cycle():
    token, text = torch.tensor([40]), []
    for position in range(500):
        token = successors(token, torch.tensor([position]), FIRST, LAST)
        text.append(int(token))
    for period in range(1, 50):
        assert text[-period:] != text[-2 * period : -period]
