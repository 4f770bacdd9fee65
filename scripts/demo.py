"""Serve a long-tailed trace on real SGLang servers, first come first served and under Kairos.

No GPU is needed: the servers' time is modelled after 4 H200 per instance. Takes about four minutes.
"""

import sys

from replay import OUT, run

if __name__ == "__main__":
    print(__doc__)
    sys.exit(
        run(
            [
                *("--trace", "synthetic:mooncake-conversation", "--load", "0.9"),
                *("--duration-s", "65", "--budget-s", "110"),
                *("--slo", "L3", "--arms", "fcfs,kairos", "--goodput", "none"),
                *("--out", str(OUT / "demo"), "--overwrite", "--allow-disturbed"),
                *sys.argv[1:],
            ]
        )
    )
