"""`kairos replay`: replay a trace against servers of this machine or against running ones."""

import sys
from collections.abc import Sequence

from kairos.cluster import ClusterSpec
from kairos.replay import cli
from kairos.replay.run.local_cluster import LocalCluster
from kairos_emulation.cli.output import output_folder
from kairos_emulation.cluster import platform_model, with_platform


def main(argv: Sequence[str] | None = None) -> int:
    """Run `kairos.replay.cli.main` with emulated servers.

    Args:
        argv: arguments without the program's name; None takes the process's own.

    Returns:
        Exit code; see `--help`.
    """
    return cli.main(sys.argv[1:] if argv is None else argv, emulated_cluster)


def emulated_cluster(local: LocalCluster) -> ClusterSpec:
    """Describe the servers of an arm; their time is modelled by the arm's profile.

    Raises:
        InputError: bad profile, or the model cannot be written.
    """
    spec = ClusterSpec(
        model=platform_model("emulated", output_folder() / "models"),
        prefill=local.prefill,
        decode=local.decode,
        dp_attention=local.dp_attention,
        args=local.arm.args,
        # The pool of a rank holds its part of the prefix cache that the load assumes, and beside
        # it the prompts in work. A rank of the profile holds less. The excess stands for a cache
        # in host memory that costs no time.
        prefill_args=(
            "--max-total-tokens",
            str(local.cache_tokens // local.dp_attention.prefill + local.kv_tokens // 4),
            *local.arm.prefill_args,
        ),
        decode_args=local.arm.decode_args,
        router=local.arm.router or ("mini_lb" if local.mini_lb else None),
        router_args=local.arm.router_args,
    )
    return with_platform(spec, "emulated", local.profile)
