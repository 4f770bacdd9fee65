"""Measure running SGLang servers and write a latency profile; see --help."""

import sys
from pathlib import Path

from kairos.calibrate.cli import main
from kairos.cluster import ClusterSpec
from kairos_emulation.cluster import platform_model, with_platform

OUT = Path(__file__).resolve().parents[1] / "out"


def emulated(profile: str) -> ClusterSpec:
    """A prefill and a decode server on this machine, without a GPU, under upstream's scheduler."""
    spec = ClusterSpec(model=platform_model("emulated", OUT / "models"), router=None)
    return with_platform(spec, "emulated", profile)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], emulated))
