"""Replay a request trace against SGLang servers; see --help."""

import sys
from collections.abc import Sequence
from pathlib import Path

from kairos.cluster import ClusterSpec
from kairos.replay.cli import main
from kairos.replay.run.local_cluster import LocalCluster
from kairos_emulation.cluster import platform_model, with_platform

OUT = Path(__file__).resolve().parents[1] / "out"


def emulated(local: LocalCluster) -> ClusterSpec:
    """Servers of an arm on this machine, without a GPU, their time modelled by the profile."""
    spec = ClusterSpec(
        model=platform_model("emulated", OUT / "models"),
        prefill=local.prefill,
        decode=local.decode,
        args=local.arm.args,
        # The cache that the load assumes, and room for prompts in work beside it. An instance of
        # the profile holds less: the rest stands for a cache in host memory that costs nothing.
        prefill_args=(
            "--max-total-tokens",
            str(local.cache_tokens + local.kv_tokens // 4),
            *local.arm.prefill_args,
        ),
        decode_args=local.arm.decode_args,
        router=local.arm.router or ("mini_lb" if local.mini_lb else None),
        router_args=local.arm.router_args,
    )
    return with_platform(spec, "emulated", local.profile)


def run(argv: Sequence[str]) -> int:
    """`kairos.replay.cli.main` on emulated servers."""
    return main(argv, emulated)


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
