"""Start a prefill/decode cluster on this machine, without a GPU; the same as `kairos cluster`."""

import sys

from kairos_emulation.cli.cluster import main

if __name__ == "__main__":
    sys.exit(main())
