"""The servers of one run, as the client and the record file know them."""

from collections.abc import Callable
from dataclasses import dataclass

from kairos.cluster import Cluster, ServerDiedError
from kairos.replay.client.target import Endpoint, PairTarget, Target, UrlTarget
from kairos.replay.run.config import RunConfig


@dataclass(frozen=True, slots=True)
class RunServers:
    """The servers of one run.

    Attributes:
        target: receives the requests.
        described: flags per role, for the header.
        send_slo: whether requests carry their SLO.
        check: raises ServerDiedError if a server has died.
    """

    target: Target
    described: dict[str, list[str]]
    send_slo: bool
    check: Callable[[], None]

    def died(self) -> str:
        """Return which server has died, in one line; empty if all servers run."""
        try:
            self.check()
        except ServerDiedError as error:
            return str(error).splitlines()[0]
        return ""


def cluster_servers(cluster: Cluster, send_slo: bool) -> RunServers:
    """Return the servers of a cluster that was started for the run."""
    spec, target = cluster.spec, _target(cluster)
    described: dict[str, list[str]] = {
        "all": list(spec.args),
        "prefill": list(spec.prefill_args),
        "decode": list(spec.decode_args),
        "router": [spec.router, *spec.router_args] if spec.router else [],
        "client sends to": target.describe(),
    }
    return RunServers(target, described, send_slo, cluster.check)


def running_servers(config: RunConfig, url: str) -> RunServers:
    """Return the servers behind a URL, which the replay does not start."""
    described = config.url_servers() | {"state": ["as found, not restarted"]}
    return RunServers(UrlTarget(url), described, send_slo=True, check=lambda: None)


def _target(cluster: Cluster) -> Target:
    """Return the router or single server of a cluster; its pairs if it has no router."""
    if cluster.spec.router is not None or not cluster.prefill:
        return UrlTarget(cluster.url)
    prefill = [
        Endpoint(s.name, s.url, streams=False, bootstrap_host="127.0.0.1", bootstrap_port=port)
        for s in cluster.prefill
        if (port := s.bootstrap_port) is not None
    ]
    return PairTarget(prefill, [Endpoint(s.name, s.url) for s in cluster.decode])
