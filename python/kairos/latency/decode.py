"""The time of one decode step."""

import msgspec


class DecodeModel(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Predicts t = fixed + experts * share(B) + per_context_token * K + per_request * B.

    `share(B) = 1 - (1 - expert_fraction)^B` is the expected share of expert weights that a batch
    of B tokens touches in a mixture-of-experts model; a dense model sets `experts_s` to 0.
    K is the KV that is read, in tokens: the sum of the contexts. Where the attention kernel pads to
    the longest row, K is a blend of that sum and B * max context, weighted by `straggler`.

    Attributes:
        fixed_s: launch cost and dense weights, seconds.
        experts_s: time to read all expert weights once, seconds.
        expert_fraction: share of the experts that one token activates, 0 to 1.
        per_context_token_s: time to read the KV of one token, seconds.
        per_request_s: sampling and bookkeeping of one request, seconds.
        straggler: 0: cost follows the total context; 1: cost follows the longest row.
    """

    fixed_s: float
    experts_s: float
    expert_fraction: float
    per_context_token_s: float
    per_request_s: float
    straggler: float = 0.0

    def step_s(self, batch: int, total_context: float, max_context: float = 0) -> float:
        """Return the predicted duration of one decode step, seconds.

        Args:
            batch: requests in the step; 0 costs nothing.
            total_context: sum of their context lengths, tokens.
            max_context: longest of them, tokens; used when `straggler` > 0.
        """
        if batch <= 0:
            return 0.0
        context = (1.0 - self.straggler) * total_context + self.straggler * batch * max_context
        shared_s = self.shared_s(batch)
        return shared_s + self.per_context_token_s * context + self.per_request_s * batch

    def shared_s(self, batch: int) -> float:
        """Return the seconds of a step that data-parallel ranks share: fixed cost and experts.

        Args:
            batch: requests of all ranks together.
        """
        return self.fixed_s + self.experts_s * (1.0 - (1.0 - self.expert_fraction) ** batch)
