"""Run a plan against one arm after the other."""

import asyncio
import contextlib
import platform
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from kairos.cluster import Cluster, ClusterSpec, ServerDiedError
from kairos.replay.arms import ArmSpec
from kairos.replay.client import Client, Options
from kairos.replay.plan import Plan
from kairos.replay.prompts import Prompts
from kairos.replay.record import Header, Record, write_records
from kairos.replay.report import Arm
from kairos.replay.summary import summarise
from kairos.replay.target import Leg, PairTarget, Target, UrlTarget
from kairos.replay.termination import until_sigterm

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

# In the vocabulary of any model, the emulated one's included.
VOCABULARY = 1024
_REDRAW_S = 0.5


@dataclass(frozen=True, slots=True)
class Replay:
    """What all arms of a replay have in common.

    Attributes:
        instances: such as "1P1D".
        profile: latency profile of load, SLOs and predictions.
        emulated: whether it also drives the servers' clock.
        start_s: where in the trace the plan begins, seconds.
        limits: of a request and of an arm.
        out: folder of records and logs.
    """

    plan: Plan
    instances: str
    profile: str
    emulated: bool
    start_s: float
    limits: Options
    out: Path
    console: "Console"

    def on_cluster(self, arm: ArmSpec, spec: ClusterSpec) -> Arm:
        """Start a cluster, replay against it, stop it.

        A server that dies meanwhile ends the replay: the rest is cut and the summary says why.

        Raises:
            InputError, ClusterError: the cluster does not start.
        """
        self.console.print(f"[bold]{arm.name}[/bold]: starting servers")
        with Cluster(spec, self.out / "logs" / arm.name) as cluster:
            self.console.print(f"{arm.name}: ready after {cluster.stats().ready_s:.0f} s")
            target = _target(cluster)
            servers = {
                "all": list(spec.args),
                "prefill": list(spec.prefill_args),
                "decode": list(spec.decode_args),
                "kairos": ["--kairos"] if spec.kairos else [],
                "client sends to": target.describe(),
            }
            return self._run(arm.name, target, servers, arm.kairos, cluster.check)

    def on_url(self, name: str, url: str) -> Arm:
        """Replay against servers that run already."""
        target = UrlTarget(url)
        return self._run(name, target, {"client sends to": target.describe()}, True, lambda: None)

    def _run(
        self,
        name: str,
        target: Target,
        servers: dict[str, list[str]],
        send_slo: bool,
        check: Callable[[], None],
    ) -> Arm:
        started = datetime.now(UTC)
        options = replace(self.limits, send_slo=send_slo)
        run_id = f"{name}-{started:%H%M%S}"
        client = Client(target, Prompts(VOCABULARY, self.plan.seed), options, run_id)
        records, note = asyncio.run(until_sigterm(self._watched(name, client, check)))
        header = self._header(name, servers, started)
        write_records(self.out / f"requests-{name}.jsonl", header, records)
        return Arm(header, records, summarise(header, records, note))

    async def _watched(
        self, name: str, client: Client, check: Callable[[], None]
    ) -> tuple[list[Record], str]:
        running = asyncio.create_task(client.run(self.plan.requests))
        note = ""
        with _bar(self.console) as bar:
            line = bar.add_task(name, total=len(self.plan.requests), sent=0, failed=0)
            while not running.done():
                # Drawn from here and not by the bar's own thread, which would compete for the
                # interpreter with the sender at moments of its choosing.
                await asyncio.wait([running], timeout=_REDRAW_S)
                counts = client.counts
                bar.update(line, completed=counts.done, sent=counts.sent, failed=counts.failed)
                bar.refresh()
                try:
                    check()
                except ServerDiedError as died:
                    note = str(died).splitlines()[0]
                    client.stop(note)
                    await running
        return running.result(), note

    def _header(self, name: str, servers: dict[str, list[str]], started: datetime) -> Header:
        workload = self.plan.workload
        return Header(
            arm=name,
            servers=servers,
            trace=workload.trace.name,
            trace_sha256=workload.trace.sha256,
            load=workload.load,
            instances=self.instances,
            time_scale=workload.time_scale,
            start_s=self.start_s,
            span_s=workload.trace.span_s,
            slo_set=self.plan.slo_set,
            tpot_ms=self.plan.tpot_ms,
            seed=self.plan.seed,
            profile=self.profile,
            emulated=self.emulated,
            versions=_versions(),
            started=f"{started:%Y-%m-%dT%H:%M:%SZ}",
        )


def _target(cluster: Cluster) -> Target:
    """The cluster's router or single server; its pairs where it has no router."""
    if cluster.spec.router is not None or not cluster.prefill:
        return UrlTarget(cluster.url)
    prefill = [
        Leg(s.name, s.url, streams=False, bootstrap_host="127.0.0.1", bootstrap_port=port)
        for s in cluster.prefill
        if (port := s.bootstrap_port) is not None
    ]
    return PairTarget(prefill, [Leg(s.name, s.url) for s in cluster.decode])


def _bar(console: "Console") -> "Progress":
    from rich import progress

    return progress.Progress(
        progress.TextColumn("{task.description:>8}"),
        progress.BarColumn(),
        progress.TextColumn(
            "{task.completed}/{task.total} done, {task.fields[sent]} sent, "
            "{task.fields[failed]} failed"
        ),
        progress.TimeElapsedColumn(),
        console=console,
        auto_refresh=False,
    )


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in ("kairos-sglang", "sglang", "aiohttp", "numpy"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found
