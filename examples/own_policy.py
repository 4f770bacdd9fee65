"""Compare a prefill policy of your own with Kairos', in the simulator.

    python scripts/make_trace.py mooncake-conversation trace.jsonl.gz --requests 500
    python examples/own_policy.py --trace trace.jsonl.gz

The policy is a rank: it gives every waiting prompt a sort key, lowest first. All flags of
`kairos simulate` work. docs/how-to/write-a-policy.md says what a rank sees.
"""

import sys
from typing import Any

import numpy as np

from kairos.sim.baselines.prefill import BASELINES, Baseline


def density(jobs: Any, start_s: float) -> Any:
    """Remaining work over the time that is left for it.

    Args:
        jobs: structured array, a row per waiting prompt.
        start_s: when the batch starts, seconds.
    """
    return jobs["left_s"] / np.maximum(jobs["deadline"] - start_s, 1e-3)


BASELINES["density"] = Baseline(density, preemptive=True)

if __name__ == "__main__":
    from kairos.sim.cli import main  # after the policy has its name

    policies = ["--stages", "prefill", "--prefill-policy", "fcfs,density,urgency"]
    sys.exit(main([*policies, *sys.argv[1:]]))
