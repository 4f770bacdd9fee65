"""Replay a request trace against SGLang servers; the same as `kairos replay`."""

import sys

from kairos_emulation.cli.replay import main

if __name__ == "__main__":
    sys.exit(main())
