"""Compare router shards and dispatch rules in simulation; see `kairos.sim.shards_cli`."""

import sys

from kairos.sim.shards_cli import main

if __name__ == "__main__":
    sys.exit(main())
