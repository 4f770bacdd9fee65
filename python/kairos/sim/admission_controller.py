"""Admission in closed loop: what the router would tell each arrival, and what follows from it."""

from collections.abc import Sequence
from dataclasses import replace

from kairos.latency import Profile
from kairos.policy.admission import AdmissionDecision, AdmissionParams, DecodeLoad, forecast
from kairos.policy.jobs import PrefillJob
from kairos.sim.decode_server import DecodeServer
from kairos.sim.prefill_server import PrefillServer

WEAKER = 4.0
"""A degraded request is scheduled with so many times its TTFT objective."""


class AdmissionController:
    """Asks `admission.forecast` about every arrival.

    Args:
        decode: the decode instances; the least loaded one is looked at.
    """

    def __init__(self, profile: Profile, decode: Sequence[DecodeServer]) -> None:
        self._profile = profile
        self._decode = decode
        self._params = AdmissionParams()

    def verdict(
        self,
        job: PrefillJob,
        tpot_slo_s: float,
        server: PrefillServer,
        queued: Sequence[PrefillJob],
        now_s: float,
    ) -> PrefillJob | None:
        """The job as it is to be scheduled; None where it is turned away."""
        profile = self._profile
        decode = min(self._decode, key=lambda each: each.load_tokens)
        load = DecodeLoad(
            len(decode.running) + len(decode.waiting),
            decode.load_tokens,
            profile.limits.kv_tokens,
        )
        # The batch in flight, and with look-ahead the one composed already, come first.
        ready_s = max(now_s, server.free_s)
        seen = forecast(
            job,
            tpot_slo_s,
            queued,
            load,
            ready_s,
            profile.prefill,
            profile.decode,
            profile.limits.chunk_tokens,
            self._params,
        )
        if seen.decision is AdmissionDecision.REJECT:
            return None
        if seen.decision is AdmissionDecision.DEGRADE and seen.ttft_s > job.deadline_s - ready_s:
            slo_s = WEAKER * (job.deadline_s - job.arrival_s)
            return replace(job, deadline_s=job.arrival_s + slo_s)
        return job
