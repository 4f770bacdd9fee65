"""How much output a request is expected to make, learned from those that ended."""

from kairos.policy.length import LengthEstimator, group_of
from kairos.router.queue.demand import RequestDemand

UNKNOWN_OUTPUT = 1024
"""Tokens of KV held free for a sequence's output while no lengths are known."""
_REFRESH = 25
"""Expected lengths are computed anew after this many completions."""
_MAX_EXPECTED = 4096
_CLASSES = 16


class Outputs:
    """Means by SLO class and prompt length, see `LengthEstimator`; of the first 16 classes each its
    own."""

    def __init__(self) -> None:
        self._lengths = LengthEstimator(classes=_CLASSES)
        self._seen = 0
        self._expected: dict[tuple[int, int], float] = {}  # (group, most tokens) -> tokens
        self._classes: dict[str, int] = {}

    def observe(self, work: RequestDemand, tokens: int) -> None:
        """A request ended by itself after this number of tokens, of all its sequences."""
        self._lengths.observe(self._group(work), max(1, tokens // work.sequences))
        if self._seen % _REFRESH == 0:
            self._expected.clear()
        self._seen += 1

    def expected(self, work: RequestDemand) -> float:
        """Tokens that all its sequences will make together."""
        key = self._group(work), work.max_output_tokens // work.sequences
        expected = self._expected.get(key)
        if expected is None:
            expected = self._lengths.expected_remaining(key[0], 0, key[1])
            if expected is None:
                expected = float(min(key[1], UNKNOWN_OUTPUT))
            if len(self._expected) >= _MAX_EXPECTED:
                self._expected.clear()
            self._expected[key] = expected
        return expected * work.sequences

    def kv_tokens(self, work: RequestDemand) -> int:
        """KV that it is expected to hold in the end."""
        return work.input_tokens + int(self.expected(work))

    def _group(self, work: RequestDemand) -> int:
        name = work.slo.slo_class
        known = self._classes
        index = known.setdefault(name, len(known)) if len(known) < _CLASSES else known.get(name, 0)
        return group_of(index, work.input_tokens)
