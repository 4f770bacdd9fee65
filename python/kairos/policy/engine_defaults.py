"""Constants of Kairos' prefill servers that the simulator and the replay's arms share with them."""

from kairos.policy.urgency import UrgencyParams

HANDOVER_S = 0.066
"""From the end of prefill to the client's first token, beyond the KV transfer, seconds.

It covers admission and first emission by the decode server. It is a constant because the prefill
server learns of a transfer's end only in its next pass, up to a batch later. It is about the 95th
percentile: prompts are planned to end just in time, so a mean would make half of them late.
"""

HANDOVER_AFTER_PREFILL_S = 0.43
"""The same where decode memory is allocated after prefill, seconds.

The prefill server learns of the allocation in a later pass, and of a batch's end one pass late.
"""

SLICE_S = 0.2
"""Longest batch while an urgent prompt waits, seconds.

Under the overlap schedule an arrival waits for two batches, and the hand-over uses the same time.
"""


def prefill_urgency(transfer_s: float, handover_s: float = HANDOVER_S) -> UrgencyParams:
    """Return the urgency parameters of a Kairos prefill server.

    Args:
        transfer_s: KV transfer of a full chunk, seconds.
        handover_s: `HANDOVER_S`, or `HANDOVER_AFTER_PREFILL_S` where decode memory is allocated
            after prefill.
    """
    return UrgencyParams(slice_s=SLICE_S, post_prefill_s=handover_s + transfer_s)
