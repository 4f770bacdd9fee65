"""A driver for `kairos.calibrate` without servers: a profile's times on a virtual clock."""

from collections.abc import Sequence

import numpy as np

from kairos.calibrate.drive import CalibrationPrompt, DriveError, TimedAnswer, shared_tokens
from kairos.latency import Profile
from kairos.latency.first_token import FirstTokenPath, prefill_s, single_request_chunks


class VirtualEngine:
    """Prefills prompts one after the other, and decodes all prompts that have begun together.

    Args:
        profile: gives the durations.
        path: time of a first token beside prefill.
        jitter_s: tokens reach the client late by a random time up to this, each by itself.
        cache: keep prefixes.

    Attributes:
        now_s: its clock, which `generate` advances.
        calls: prompts and output tokens of every call.
        fails: error that `generate` raises from the n-th call on, by n.
    """

    def __init__(
        self, profile: Profile, path: FirstTokenPath, jitter_s: float = 0.0, cache: bool = True
    ) -> None:
        self.profile = profile
        self.path = path
        self.now_s = 1000.0
        self.calls: list[tuple[Sequence[CalibrationPrompt], int]] = []
        self.fails: dict[int, BaseException] = {}
        self._cached: set[tuple[int, int]] = set()
        self._cache = cache
        self._jitter_s = jitter_s
        self._random = np.random.default_rng(3)

    def now(self) -> float:
        return self.now_s

    def generate(
        self,
        prompts: Sequence[CalibrationPrompt],
        output_tokens: int,
        limit_s: float,
        enough_shared: int | None = None,
    ) -> list[TimedAnswer]:
        self.calls.append((prompts, output_tokens))
        due = [error for n, error in self.fails.items() if n <= len(self.calls)]
        if due:
            raise due[0]
        sent = free = self.now_s
        begun, hits = [], []
        for prompt in prompts:
            first = prompt.parts[0]
            hit = first[0] if self._cache and first in self._cached else 0
            hit = min(hit, prompt.length - 1)
            self._cached.add(first)
            chunks = single_request_chunks(prompt.length, hit, self.profile.limits.chunk_tokens)
            free += prefill_s(self.profile.prefill, chunks)
            begun.append(free + self.path.seconds(prompt.length))
            hits.append(hit)
        times = [[t] for t in begun]
        now = min(begun)
        while True:
            if enough_shared is not None and shared_tokens(times) >= enough_shared:
                break
            left = [i for i, own in enumerate(times) if len(own) < output_tokens]
            active = [i for i in left if begun[i] <= now]
            if not left:
                break
            if not active:
                now = min(begun[i] for i in left)
                continue
            context = sum(prompts[i].length + len(times[i]) for i in active)
            now += self.profile.decode.step_s(len(active), context, context / len(active))
            for i in active:
                times[i].append(now)
        self.now_s = max(own[-1] for own in times)
        if self.now_s - sent > limit_s:
            self.now_s = sent + limit_s
            raise DriveError(f"no end after {limit_s:.0f} s")
        late = [np.sort(own + self._jitter_s * self._random.random(len(own))) for own in times]
        return [TimedAnswer(sent, own.tolist(), hit) for own, hit in zip(late, hits, strict=True)]
