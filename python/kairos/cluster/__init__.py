"""Starting, watching and stopping a prefill/decode cluster of SGLang servers on this machine."""

from kairos.cluster.cluster import Cluster
from kairos.cluster.dp_attention import DpAttention
from kairos.cluster.failure import ClusterError, ServerDiedError
from kairos.cluster.server import Server
from kairos.cluster.spec import ClusterSpec
from kairos.cluster.stats import ClusterStats, ServerStats

__all__ = [
    "Cluster",
    "ClusterError",
    "ClusterSpec",
    "ClusterStats",
    "DpAttention",
    "Server",
    "ServerDiedError",
    "ServerStats",
]
