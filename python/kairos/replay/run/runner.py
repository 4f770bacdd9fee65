"""One measured run: a plan against the servers of one arm."""

import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import msgspec

from kairos.cluster import Cluster, ClusterSpec
from kairos.replay.client.job import WorkerJob
from kairos.replay.client.record import RequestOutcome, RequestRecord
from kairos.replay.client.worker import WorkerProcess, WorkerResult
from kairos.replay.plan.arms import ArmSpec
from kairos.replay.plan.campaign import ReplayRun
from kairos.replay.plan.plan import Plan
from kairos.replay.plan.prompts import VOCABULARY, Prompts
from kairos.replay.run.config import RunConfig
from kairos.replay.run.forwards import Forward, device_use, engine_tpot_ms, read_forwards
from kairos.replay.run.header import RunHeader
from kairos.replay.run.interference import InterferenceMonitor, InterferenceReport
from kairos.replay.run.progress import progress_bar
from kairos.replay.run.provenance import git_commit, machine, versions
from kairos.replay.run.record_file import write_records
from kairos.replay.run.servers import RunServers, cluster_servers, running_servers
from kairos.replay.run.warm_up import warm_up

TRACE_ENV = "KAIROS_EMULATION_TRACE"
_REDRAW_S = 0.5
_EXIT_S = 2.0  # a server's connections break some time before its process has ended


@dataclass(frozen=True, slots=True)
class _Measurement:
    """The measurements of a run, beside its records.

    Attributes:
        content_seed: seed of the prompts' token ids.
        warm_up: description of the warm-up.
        started: time at which the client was started.
        start_monotonic_s: clock reading from which arrivals count.
        priority: scheduling priority of the client's process.
        forwards: device trace of the run.
        interference: how undisturbed the run was.
        note: the failure of the run as a whole; empty if there was none.
    """

    content_seed: int
    warm_up: str
    started: datetime
    start_monotonic_s: float
    priority: str
    forwards: Sequence[Forward]
    interference: InterferenceReport
    note: str


def run_on_cluster(
    config: RunConfig, run: ReplayRun, plan: Plan, arm: ArmSpec, spec: ClusterSpec
) -> RunHeader:
    """Start a new cluster, warm it up, replay against it and stop it.

    A server that dies ends the run: the remaining requests are cut, and the header says why.

    Raises:
        InputError: the cluster cannot be described.
        ClusterError: the cluster does not start.
    """
    trace = run.forwards(config.out).resolve()
    trace.unlink(missing_ok=True)
    if config.emulated:
        spec = replace(spec, env={**spec.env, TRACE_ENV: str(trace)})
    config.console.print(f"[bold]{run.stem}[/bold]: starting servers ({arm.about})")
    with Cluster(spec, config.out / "logs" / run.stem) as cluster:
        config.console.print(f"{run.stem}: ready after {cluster.stats().ready_s:.0f} s")
        return _measured(config, run, plan, cluster_servers(cluster, arm.send_slo))


def run_on_url(config: RunConfig, run: ReplayRun, plan: Plan, url: str) -> RunHeader:
    """Replay against servers that run already."""
    return _measured(config, run, plan, running_servers(config, url))


def _measured(config: RunConfig, run: ReplayRun, plan: Plan, servers: RunServers) -> RunHeader:
    client = replace(config.client, send_slo=servers.send_slo)
    seed = content_seed(config, plan)
    warmed_up = warm_up(plan, seed, servers, client)
    started = datetime.now(UTC)
    run_id = f"{run.stem}-{started:%H%M%S}"
    job = WorkerJob(servers.target, Prompts(VOCABULARY, seed), client, run_id, plan.requests)
    with WorkerProcess(job) as worker:
        monitor = InterferenceMonitor()
        worker.start()
        with progress_bar(config.console, run.stem, len(plan.requests)) as show:
            result, note = _watched(worker, servers, show)
    traced, damaged = read_forwards(run.forwards(config.out))
    forwards = [f for f in traced if f.start_s >= result.start_s]
    if damaged:
        note = "; ".join(filter(None, (note, f"{damaged} lines of the device trace are damaged")))
    measurement = _Measurement(
        content_seed=seed,
        warm_up=warmed_up,
        started=started,
        start_monotonic_s=result.start_s,
        priority=worker.priority,
        forwards=forwards,
        interference=monitor.result(
            result.records, forwards, emulated=config.emulated, dilate=plan.config.dilate
        ),
        note=note,
    )
    records = _with_engine_clock(result.records, forwards)
    end_s = max(r.end_s for r in records)
    header = _header(config, run, plan, servers, measurement, end_s)
    write_records(run.records(config.out), header, records)
    return header


def _header(
    config: RunConfig,
    run: ReplayRun,
    plan: Plan,
    servers: RunServers,
    measured: _Measurement,
    end_s: float,
) -> RunHeader:
    work, workload = plan.config, plan.workload
    return RunHeader(
        arm=run.arm,
        repeat=run.repeat,
        position=run.position,
        servers=servers.described | {"client": [f"{measured.priority} priority"]},
        trace=workload.trace.name,
        trace_sha256=workload.trace.sha256,
        load=workload.load,
        cache_tokens=workload.cache_tokens,
        dilate=work.dilate,
        instances=config.instances,
        dp_attention=str(config.dp_attention),
        time_scale=workload.time_scale,
        start_s=work.start_s,
        span_s=workload.trace.span_s,
        requests=len(plan.requests),
        slo_set=work.slo_set,
        tpot_ms=work.tpot_ms,
        seed=work.seed,
        content_seed=measured.content_seed,
        profile=config.profile,
        emulated=config.emulated,
        warm_up=measured.warm_up,
        interference=measured.interference,
        device=device_use(measured.forwards, end_s),
        allow_disturbed=config.allow_disturbed,
        note=measured.note,
        versions=versions(),
        git_commit=git_commit(),
        timeout_s=config.client.timeout_s,
        budget_s=config.client.budget_s,
        mini_lb=config.mini_lb,
        machine=machine(),
        command=list(config.command),
        started=f"{measured.started:%Y-%m-%dT%H:%M:%SZ}",
        start_monotonic_s=measured.start_monotonic_s,
    )


def content_seed(config: RunConfig, plan: Plan) -> int:
    """Return the seed of a run's prompts.

    Servers that are started for the run get the seed of the plan. Servers that run already keep the
    prompts of earlier runs in their prefix cache, so there each run has prompts of its own.
    """
    return plan.config.seed if config.url is None else secrets.randbits(62)


def _watched(
    worker: WorkerProcess, servers: RunServers, show: Callable[[WorkerProcess], None]
) -> tuple[WorkerResult, str]:
    """Wait for the client; a server or client that dies ends the run."""
    note = ""
    while True:
        result = worker.poll(_REDRAW_S)
        show(worker)
        if result is not None:
            return result, note or last_check(result.records, servers)
        died = servers.died()
        if died and not note:
            note = died
            worker.stop(note)


def last_check(
    records: Sequence[RequestRecord], servers: RunServers, within_s: float = _EXIT_S
) -> str:
    """Return which server has died by the end of a run; empty if all servers run.

    If requests failed, their server may be about to end, so the check is repeated.

    Args:
        records: records of the run.
        servers: servers of the run.
        within_s: time for which the check is repeated, seconds.
    """
    until = time.monotonic() + within_s
    failed = any(
        r.outcome not in (RequestOutcome.OK, RequestOutcome.TIMEOUT, RequestOutcome.CUT)
        for r in records
    )
    while not (died := servers.died()) and failed and time.monotonic() < until:
        time.sleep(min(0.1, within_s))
    return died


def _with_engine_clock(
    records: Sequence[RequestRecord], forwards: Sequence[Forward]
) -> list[RequestRecord]:
    clock = engine_tpot_ms(forwards, {r.rid: r.output_tokens for r in records})
    return [
        msgspec.structs.replace(r, tpot_engine_ms=round(clock[r.rid], 4)) if r.rid in clock else r
        for r in records
    ]
