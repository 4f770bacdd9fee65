"""Start-up time and memory of a cluster's processes."""

import contextlib
from dataclasses import dataclass

from kairos.extras import bench_extra


@dataclass(frozen=True)
class ServerStats:
    """Cost of one server.

    Attributes:
        name: of the server, such as "prefill-0".
        start_s: seconds from the launch until it accepted connections.
        pss_bytes: proportional set size, summed over its processes.
        processes: number of its processes.
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
    """Return the proportional set size in bytes, and the number, of processes below `root`.

    Raises:
        InputError: psutil is not installed.
    """
    with bench_extra("the cost of a cluster"):
        import psutil

    total = count = 0
    with contextlib.suppress(psutil.NoSuchProcess):
        for process in psutil.Process(root).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                total += process.memory_full_info().pss
                count += 1
    return total, count
