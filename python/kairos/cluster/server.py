"""A running process of a cluster, as its users see it."""

from dataclasses import dataclass
from pathlib import Path

from kairos.cluster.ports import LOOPBACK
from kairos.cluster.spec import Role


@dataclass(frozen=True)
class Server:
    """One server or the router.

    Attributes:
        name: such as "prefill-0", "decode-1", "single" or "router".
        pid: its main process; schedulers and detokenizers are below it.
        bootstrap_port: port of the KV handshake, prefill servers only.
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
        """Base URL, without a slash at the end."""
        return f"http://{LOOPBACK}:{self.port}"
