"""`scripts/replay.py` on fake servers: replay_fake.py MARK SERVER_FLAGS REPLAY_FLAG..."""

import sys
from collections.abc import Sequence
from pathlib import Path

from kairos.cluster import ClusterSpec
from kairos.replay.cli import LocalCluster, main

# No Mooncake: the machine that runs unit tests need not have its libraries.
_NO_MOONCAKE = ("--disaggregation-transfer-backend", "fake")
_SERVER = (sys.executable, "-S", str(Path(__file__).with_name("fake_engine.py")))


def replay(argv: Sequence[str], mark: str = "", decode_args: Sequence[str] = ()) -> int:
    def cluster_of(local: LocalCluster) -> ClusterSpec:
        return ClusterSpec(
            model="fake",
            prefill=local.prefill,
            decode=local.decode,
            args=(*_NO_MOONCAKE, *local.arm.args),
            prefill_args=local.arm.prefill_args,
            decode_args=(*local.arm.decode_args, *decode_args),
            env={"KAIROS_TEST_MARK": mark},
            router=None,
            server_command=_SERVER,
            stop_grace_s=0.1,
        )

    # Tests must not depend on how busy the machine is.
    return main([*argv, "--allow-disturbed"] if "--trace" in argv else argv, cluster_of)


if __name__ == "__main__":
    sys.exit(replay(sys.argv[3:], sys.argv[1], sys.argv[2].split()))
