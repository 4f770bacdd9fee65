"""Lengths of the prompts in upstream's requests."""

from sglang.srt.kairos.upstream import Req

from kairos.policy.jobs import PrefillJob


def total_tokens(req: Req) -> int:
    """Return the length of a prompt in tokens.

    An empty prompt counts as one token, because the policy has no job of zero tokens.
    """
    return max(1, len(req.origin_input_ids) + len(req.output_ids))


def cached_tokens(req: Req) -> int:
    """Return the tokens of a waiting prompt that the radix cache holds.

    The last token is always computed, so at least one is left.
    """
    return min(req.num_matched_prefix_tokens or 0, total_tokens(req) - 1)


def computed_tokens(req: Req) -> int:
    """Return the tokens of a started prompt whose KV exists after its latest chunk."""
    return req.extend_end or 0


def must_continue(req: Req) -> bool:
    """Return whether upstream must have this started prompt next, because it is ending it."""
    return req.finished() or req.to_finish is not None


def prefill_job(req: Req) -> PrefillJob:
    """Return the policy's view of a waiting request."""
    return PrefillJob(
        id=req.kairos.number,
        arrival_s=req.kairos.arrival_s,
        deadline_s=req.kairos.ttft_deadline_s,
        total_tokens=total_tokens(req),
        done_tokens=cached_tokens(req),
    )
