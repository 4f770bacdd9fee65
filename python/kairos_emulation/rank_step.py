"""One step of data-parallel attention ranks, which all end with the slowest of them."""

from typing import NamedTuple

from kairos.latency import Profile


class RankWork(NamedTuple):
    """The work of one rank in a step, as upstream gathers it from all ranks.

    Attributes:
        prefill: whether the rank computes prompts; otherwise it decodes.
        tokens: new tokens; those of a decode step are its requests. 0 for an idle rank.
        attention_pairs: pairs of a query and a key that attention computes.
    """

    prefill: bool
    tokens: int
    attention_pairs: int

    def own_s(self, profile: Profile) -> float:
        """Return the part of a step that grows with this rank's work alone, seconds."""
        if not self.prefill:
            decode = profile.decode
            context_s = decode.per_context_token_s * self.attention_pairs
            return context_s + decode.per_request_s * self.tokens
        if not self.tokens:
            return 0.0
        # A query is paired with its own key too, of which the profile counts half.
        area = self.attention_pairs - self.tokens / 2
        return profile.prefill.work_s(self.tokens, area) - profile.prefill.fixed_s


class StepTimes(NamedTuple):
    """Times of a step on one rank, in seconds.

    Attributes:
        duration_s: of the step, the same on all ranks.
        waited_s: part of it in which the rank waits for the slowest one.
    """

    duration_s: float
    waited_s: float


class RankStep(NamedTuple):
    """A step of all ranks of a server.

    The ranks meet in the all-to-all of every layer. So a step begins when the last of them is free,
    and takes

        fixed + experts(requests of all ranks) + max over ranks(own part)

    Attributes:
        ranks: their work, by rank.
        free_s: monotonic time at which the last rank has ended the step before.
    """

    ranks: tuple[RankWork, ...]
    free_s: float

    def times(self, rank: int, profile: Profile) -> StepTimes:
        """Return the times of the step on a rank.

        Args:
            rank: index of the rank.
            profile: its coefficients of single tokens and requests are those of one rank.
        """
        own = [work.own_s(profile) for work in self.ranks]
        slowest = max(own)
        common = [profile.prefill.fixed_s] if any(work.prefill for work in self.ranks) else []
        requests = sum(work.tokens for work in self.ranks if not work.prefill)
        if requests:
            common.append(profile.decode.shared_s(requests))
        return StepTimes(max(common, default=0.0) + slowest, slowest - own[rank])
