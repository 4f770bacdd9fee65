"""Write a synthetic trace; see `kairos.workload.cli`."""

import sys

from kairos.workload.cli import main

if __name__ == "__main__":
    sys.exit(main())
