"""On the path of a server: random selection of the requests of a decode step.

Python imports this module at start. Every step skips about half of the requests, different ones
each time: far more splitting and merging than any sensible policy asks for.
"""

import os

import numpy as np

from kairos.policy.slack import SlackPolicy

_random = np.random.default_rng(1)


def _select(self, residents, now_s):
    del now_s
    residents["runs"] = _random.random(len(residents)) < 0.5
    if not residents["runs"].any():
        residents["runs"][_random.integers(len(residents))] = True
    return self.running_step_s(residents)


if os.environ.get("KAIROS_TEST_RANDOM_SELECTION"):
    SlackPolicy.select = _select
    SlackPolicy.all_run_for = lambda *_: False  # select in every step
