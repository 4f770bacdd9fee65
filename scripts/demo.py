"""Serve a long-tailed trace under FCFS and under Kairos; the same as `kairos demo`."""

import sys

from kairos_emulation.cli.demo import main

if __name__ == "__main__":
    sys.exit(main())
