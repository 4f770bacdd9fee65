"""Simulate prefill and decode scheduling of a trace; the same as `kairos simulate`."""

import sys

from kairos.sim.cli import main

if __name__ == "__main__":
    sys.exit(main())
