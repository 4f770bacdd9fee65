"""What the processes of a cluster cost."""

import contextlib
from dataclasses import dataclass

from kairos.extras import bench_extra


@dataclass(frozen=True)
class ServerStats:
    """Cost of one server.

    Attributes:
        start_s: seconds from the launch until it accepted connections.
        pss_bytes: proportional set size, summed over its processes.
        processes: how many there are.
    """

    name: str
    start_s: float
    pss_bytes: int
    processes: int


@dataclass(frozen=True)
class ClusterStats:
    """Cost of a cluster.

    Attributes:
        ready_s: seconds from the launch until every pair had served a generation.
        servers: in the order prefill, decode, router.
    """

    ready_s: float
    servers: tuple[ServerStats, ...]


def tree_pss(root: int) -> tuple[int, int]:
    """Proportional set size in bytes, and count, of all processes below `root`."""
    with bench_extra():
        import psutil

    total = count = 0
    with contextlib.suppress(psutil.NoSuchProcess):
        for process in psutil.Process(root).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                total += process.memory_full_info().pss
                count += 1
    return total, count
