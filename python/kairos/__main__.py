"""`python -m kairos` is the command `kairos`."""

import sys

from kairos.cli import main

if __name__ == "__main__":
    sys.exit(main())
