"""A launcher that tests can kill: it starts fake servers, prints "ready" and waits.

launch_fake.py LOG_DIR MARK [SERVER FLAG...]
"""

import sys
import time
from pathlib import Path

from kairos.cluster import Cluster, ClusterSpec

# Unit tests run on machines without Mooncake's libraries.
NO_MOONCAKE = ("--disaggregation-transfer-backend", "fake")
SERVER = (sys.executable, "-S", str(Path(__file__).with_name("fake_server.py")))


def main() -> None:
    log_dir, mark, *args = sys.argv[1:]
    spec = ClusterSpec(
        model="fake",
        args=(*NO_MOONCAKE, *args),
        env={"KAIROS_TEST_MARK": mark},
        server_command=SERVER,
        router_command=SERVER,
        stop_grace_s=0.1,
    )
    with Cluster(spec, log_dir):
        print("ready", flush=True)
        time.sleep(600)


if __name__ == "__main__":
    main()
