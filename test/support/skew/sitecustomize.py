"""On the path of a server: skews the clock of its second tensor-parallel rank.

Python imports this module at start. `KAIROS_TEST_SKEW_S` is the difference in seconds. Upstream
names its scheduler processes after their rank.
"""

import os
import time

import setproctitle

_real = time.monotonic
_skew_s = float(os.environ.get("KAIROS_TEST_SKEW_S", "0"))
_offset_s: float | None = None


def _monotonic() -> float:
    global _offset_s
    if _offset_s is None:
        title = setproctitle.getproctitle()
        if not title.startswith("sglang::scheduler"):
            return _real()
        _offset_s = _skew_s if title.endswith("_TP1") else 0.0
    return _real() + _offset_s


if _skew_s:
    time.monotonic = _monotonic
