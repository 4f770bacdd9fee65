#!/usr/bin/env python3
"""Entry point of `kairos upstream-diff` in a checkout; see kairos_patches/cli.py."""

import sys

from kairos_patches.cli import main

if __name__ == "__main__":
    sys.exit(main())
