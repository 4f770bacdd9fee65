"""`kairos calibrate`: measure running servers, or emulated ones, and write a latency profile."""

import sys
from collections.abc import Sequence

from kairos.calibrate import cli
from kairos.cluster import ClusterSpec
from kairos_emulation.cli.output import output_folder
from kairos_emulation.cluster import platform_model, with_platform


def main(argv: Sequence[str] | None = None) -> int:
    """Run `kairos.calibrate.cli.main` with emulated servers for `--emulated`.

    Args:
        argv: arguments without the program's name; None takes the process's own.

    Returns:
        Exit code; see `--help`.
    """
    return cli.main(sys.argv[1:] if argv is None else argv, emulated_cluster)


def emulated_cluster(profile: str) -> ClusterSpec:
    """Describe a prefill and a decode server under upstream's scheduler.

    Args:
        profile: shipped name or path of the latency profile that models their time.

    Raises:
        InputError: bad profile, or the model cannot be written.
    """
    spec = ClusterSpec(model=platform_model("emulated", output_folder() / "models"), router=None)
    return with_platform(spec, "emulated", profile)
