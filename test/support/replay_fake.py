"""`kairos replay` on fake servers: replay_fake.py MARK SERVER_FLAGS REPLAY_FLAG..."""

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from kairos.cluster import ClusterSpec
from kairos.replay.cli import main
from kairos.replay.client.api import GenerateApi
from kairos.replay.plan.plan import PlannedRequest
from kairos.replay.run.local_cluster import LocalCluster

# The fake backend needs none of Mooncake's libraries, which unit tests do not require.
_NO_MOONCAKE = ("--disaggregation-transfer-backend", "fake")
_SERVER = (sys.executable, "-S", str(Path(__file__).with_name("fake_engine.py")))


LATE_S = 0.02


class LateApi(GenerateApi):
    """Delays every request when it should leave.

    It is defined in this module because the client's process must be able to import it.
    """

    def headers(self, planned: PlannedRequest, send_slo: bool) -> dict[str, str]:
        time.sleep(LATE_S)
        return super().headers(planned, send_slo)


def replay(
    argv: Sequence[str],
    mark: str = "",
    decode_args: Sequence[str] = (),
    *,
    allow_disturbed: bool = True,
) -> int:
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
    allowed = allow_disturbed and "--trace" in argv
    return main([*argv, "--allow-disturbed"] if allowed else argv, cluster_of)


if __name__ == "__main__":
    sys.exit(replay(sys.argv[3:], sys.argv[1], sys.argv[2].split()))
