"""Admission in closed loop: the decision on each arrival, and its effect on the later ones."""

from collections.abc import Sequence
from dataclasses import replace

from kairos.latency import Profile
from kairos.policy.admission import AdmissionDecision, AdmissionParams, InstanceLoad, forecast
from kairos.policy.jobs import PrefillJob
from kairos.sim.decode_rank import DecodeRank
from kairos.sim.prefill_server import PrefillServer, PromptProgress

DEGRADED_TTFT_FACTOR = 4.0
"""A degraded request is scheduled with its TTFT objective multiplied by this factor."""


class AdmissionController:
    """Applies `kairos.policy.admission.forecast` to every arrival.

    Args:
        profile: predicts prefill and decode.
        prefill: the only prefill instance.
        decode: the ranks of all decode instances; the forecast uses the least loaded one.
        prompts: progress of all requests.
    """

    def __init__(
        self,
        profile: Profile,
        prefill: PrefillServer,
        decode: Sequence[DecodeRank],
        prompts: PromptProgress,
    ) -> None:
        self._profile = profile
        self._prefill = prefill
        self._decode = decode
        self._prompts = prompts
        self._params = AdmissionParams()
        self._unfinished: dict[int, PrefillJob] = {}

    def admit(self, job: PrefillJob, tpot_slo_s: float, now_s: float) -> PrefillJob | None:
        """Decide on an arrival.

        Args:
            job: the request.
            tpot_slo_s: its TPOT objective, seconds.
            now_s: simulated time, seconds.

        Returns:
            The job as it is to be scheduled, with a later deadline where it is degraded; None
            where it is rejected.
        """
        self._update_progress()
        # The batch in flight, and with look-ahead the one composed already, come first.
        ready_s = max(now_s, self._prefill.free_s)
        seen = forecast(job, tpot_slo_s, self._load(), ready_s, self._profile, self._params)
        if seen.decision is AdmissionDecision.REJECT:
            return None
        if seen.decision is AdmissionDecision.DEGRADE and seen.ttft_s > job.deadline_s - ready_s:
            slo_s = DEGRADED_TTFT_FACTOR * (job.deadline_s - job.arrival_s)
            job = replace(job, deadline_s=job.arrival_s + slo_s)
        self._unfinished[job.id] = job
        return job

    def _update_progress(self) -> None:
        """Drop jobs whose prompt is computed, and set the computed tokens of the others."""
        done = self._prompts.done
        self._unfinished = {
            job.id: replace(job, done_tokens=done[job.id])
            for job in self._unfinished.values()
            if done[job.id] < job.total_tokens
        }

    def _load(self) -> InstanceLoad:
        decode = min(self._decode, key=lambda each: each.load_tokens)
        return InstanceLoad(
            list(self._unfinished.values()),
            len(decode.running) + len(decode.waiting),
            decode.load_tokens,
            self._profile.limits.kv_tokens,
        )
