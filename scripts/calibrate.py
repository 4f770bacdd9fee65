"""Measure running SGLang servers and write a latency profile; the same as `kairos calibrate`."""

import sys

from kairos_emulation.cli.calibrate import main

if __name__ == "__main__":
    sys.exit(main())
