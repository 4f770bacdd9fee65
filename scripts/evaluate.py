"""Keep records of the evaluation and render its pages: see kairos.replay.evaluation.cli."""

import sys
from pathlib import Path

from kairos.replay.evaluation.cli import main

if __name__ == "__main__":
    sys.exit(main(None, Path(__file__).resolve().parents[1] / "docs"))
