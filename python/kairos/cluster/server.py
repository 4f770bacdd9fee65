"""Name, address and process of one member of a cluster."""

from dataclasses import dataclass
from pathlib import Path

from kairos.cluster.ports import LOOPBACK
from kairos.cluster.spec import Role


@dataclass(frozen=True)
class Server:
    """One server or the router.

    Attributes:
        name: such as "prefill-0", "decode-1", "single" or "router".
        role: role in the cluster.
        port: port of its HTTP server on the loopback interface.
        bootstrap_port: port of the KV handshake; None for servers other than prefill servers.
        pid: its main process, the parent of schedulers and detokenizers.
        log: file with its output.
    """

    name: str
    role: Role
    port: int
    bootstrap_port: int | None
    pid: int
    log: Path

    @property
    def url(self) -> str:
        """Return the base URL, without a slash at the end."""
        return f"http://{LOOPBACK}:{self.port}"
