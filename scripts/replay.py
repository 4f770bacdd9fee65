"""Replay a request trace against SGLang servers; see --help."""

import sys
from collections.abc import Sequence
from pathlib import Path

from kairos.cluster import ClusterSpec
from kairos.replay.cli import LocalCluster, main
from kairos_emulation.cluster import platform_model, with_platform

OUT = Path(__file__).resolve().parents[1] / "out"


def emulated(local: LocalCluster) -> ClusterSpec:
    """Servers of an arm on this machine, without a GPU, their time modelled by the profile."""
    spec = ClusterSpec(
        model=platform_model("emulated", OUT / "models"),
        prefill=local.prefill,
        decode=local.decode,
        args=local.arm.args,
        prefill_args=local.arm.prefill_args,
        kairos=local.arm.kairos,
        router="mini_lb" if local.router else None,
    )
    return with_platform(spec, "emulated", local.profile)


def run(argv: Sequence[str]) -> int:
    """`kairos.replay.cli.main` on emulated servers."""
    return main(argv, emulated)


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
