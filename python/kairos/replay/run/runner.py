"""One measured run: a plan against one arm."""

import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime

import msgspec

from kairos.cluster import Cluster, ClusterSpec, ServerDiedError
from kairos.replay.client.record import RequestOutcome, RequestRecord
from kairos.replay.client.target import Endpoint, PairTarget, Target, UrlTarget
from kairos.replay.client.worker import Worker, WorkerJob
from kairos.replay.plan.arms import ArmSpec
from kairos.replay.plan.campaign import ReplayRun
from kairos.replay.plan.plan import Plan
from kairos.replay.plan.prompts import VOCABULARY, Prompts
from kairos.replay.run.config import RunConfig, reached
from kairos.replay.run.forwards import Forward, device_use, engine_tpot_ms, read_forwards
from kairos.replay.run.header import RunHeader
from kairos.replay.run.interference import InterferenceMonitor
from kairos.replay.run.progress import progress_bar
from kairos.replay.run.provenance import git_commit, machine, versions
from kairos.replay.run.record_file import write_records
from kairos.replay.run.warm_up import warm_up

TRACE_ENV = "KAIROS_EMULATION_TRACE"
_REDRAW_S = 0.5
_EXIT_S = 2.0  # a server's connections break some time before its process has ended


def run_on_cluster(
    config: RunConfig, run: ReplayRun, plan: Plan, arm: ArmSpec, spec: ClusterSpec
) -> RunHeader:
    """Start a fresh cluster, warm it up, replay against it, stop it.

    A server that dies meanwhile ends the run: the rest is cut and the header says why.

    Raises:
        InputError, ClusterError: the cluster does not start.
    """
    trace = run.forwards(config.out).resolve()
    trace.unlink(missing_ok=True)
    if config.emulated:
        spec = replace(spec, env={**spec.env, TRACE_ENV: str(trace)})
    config.console.print(f"[bold]{run.stem}[/bold]: starting servers ({arm.about})")
    with Cluster(spec, config.out / "logs" / run.stem) as cluster:
        config.console.print(f"{run.stem}: ready after {cluster.stats().ready_s:.0f} s")
        target = _target(cluster)
        servers: dict[str, list[str]] = {
            "all": list(spec.args),
            "prefill": list(spec.prefill_args),
            "decode": list(spec.decode_args),
            "router": [spec.router, *spec.router_args] if spec.router else [],
            "client sends to": target.describe(),
        }
        return _measured(config, run, plan, target, servers, arm.send_slo, cluster.check)


def run_on_url(config: RunConfig, run: ReplayRun, plan: Plan, url: str) -> RunHeader:
    """Replay against servers that run already."""
    target = UrlTarget(url)
    servers = reached(config) | {"state": ["as found, not restarted"]}
    return _measured(config, run, plan, target, servers, True, lambda: None)


def _measured(
    config: RunConfig,
    run: ReplayRun,
    plan: Plan,
    target: Target,
    servers: dict[str, list[str]],
    send_slo: bool,
    check: Callable[[], None],
) -> RunHeader:
    options = replace(config.limits, send_slo=send_slo)
    seed = content_seed(config, plan)
    warmed_up = warm_up(plan, seed, target, options, check)
    started = datetime.now(UTC)
    run_id = f"{run.stem}-{started:%H%M%S}"
    job = WorkerJob(target, Prompts(VOCABULARY, seed), options, run_id, plan.requests)
    with Worker(job) as worker:
        watch = InterferenceMonitor()
        worker.start()
        records, note = _watched(config, run.stem, worker, len(plan.requests), check)
    traced, damaged = read_forwards(run.forwards(config.out))
    forwards = [f for f in traced if f.start_s >= worker.start_s]
    if damaged:
        note = "; ".join(filter(None, (note, f"{damaged} lines of the device trace are damaged")))
    quiet = watch.result(records, forwards, emulated=config.emulated, dilate=plan.dilate)
    records = _with_engine_clock(records, forwards)
    workload = plan.workload
    header = RunHeader(
        arm=run.arm,
        repeat=run.repeat,
        position=run.position,
        servers=servers | {"client": [f"{worker.priority} priority"]},
        trace=workload.trace.name,
        trace_sha256=workload.trace.sha256,
        load=workload.load,
        cache_tokens=workload.cache_tokens,
        dilate=plan.dilate,
        instances=config.instances,
        time_scale=workload.time_scale,
        start_s=config.start_s,
        span_s=workload.trace.span_s,
        requests=len(plan.requests),
        slo_set=plan.slo_set,
        tpot_ms=plan.tpot_ms,
        seed=plan.seed,
        content_seed=seed,
        profile=config.profile,
        emulated=config.emulated,
        warm_up=warmed_up,
        quiet=quiet,
        device=device_use(forwards, max(r.end_s for r in records)),
        allow_disturbed=config.allow_disturbed,
        note=note,
        versions=versions(),
        git_commit=git_commit(),
        timeout_s=config.limits.timeout_s,
        budget_s=config.limits.budget_s,
        mini_lb=config.mini_lb,
        machine=machine(),
        command=list(config.command),
        started=f"{started:%Y-%m-%dT%H:%M:%SZ}",
        start_monotonic_s=worker.start_s,
    )
    write_records(run.records(config.out), header, records)
    return header


def content_seed(config: RunConfig, plan: Plan) -> int:
    """Seed of a run's prompts: that of the plan on servers that are started for the run. Others
    keep the prompts of earlier runs in their prefix cache, so each run brings its own."""
    return plan.seed if config.url is None else secrets.randbits(62)


def _watched(
    config: RunConfig, label: str, worker: Worker, total: int, check: Callable[[], None]
) -> tuple[list[RequestRecord], str]:
    """Wait for the client; a server or client that dies ends the run."""
    note = ""
    with progress_bar(config.console) as bar:
        line = bar.add_task(label, total=total, sent=0, failed=0)
        while True:
            records = worker.poll(_REDRAW_S)
            counts = worker.counts
            bar.update(line, completed=counts.done, sent=counts.sent, failed=counts.failed)
            bar.refresh()
            if records is not None:
                return records, note or last_check(records, check)
            died = _died(check)
            if died and not note:
                note = died
                worker.stop(note)


def last_check(
    records: Sequence[RequestRecord], check: Callable[[], None], within_s: float = _EXIT_S
) -> str:
    """What has died by the end of a run: when the last requests failed, their server may be about
    to. Empty if nothing has."""
    until = time.monotonic() + within_s
    failed = any(
        r.outcome not in (RequestOutcome.OK, RequestOutcome.TIMEOUT, RequestOutcome.CUT)
        for r in records
    )
    while not (died := _died(check)) and failed and time.monotonic() < until:
        time.sleep(min(0.1, within_s))
    return died


def _died(check: Callable[[], None]) -> str:
    try:
        check()
    except ServerDiedError as died:
        return str(died).splitlines()[0]
    return ""


def _with_engine_clock(
    records: Sequence[RequestRecord], forwards: Sequence[Forward]
) -> list[RequestRecord]:
    clock = engine_tpot_ms(forwards, {r.rid: r.output_tokens for r in records})
    return [
        msgspec.structs.replace(r, tpot_engine_ms=round(clock[r.rid], 4)) if r.rid in clock else r
        for r in records
    ]


def _target(cluster: Cluster) -> Target:
    """The cluster's router or single server; its pairs where it has no router."""
    if cluster.spec.router is not None or not cluster.prefill:
        return UrlTarget(cluster.url)
    prefill = [
        Endpoint(s.name, s.url, streams=False, bootstrap_host="127.0.0.1", bootstrap_port=port)
        for s in cluster.prefill
        if (port := s.bootstrap_port) is not None
    ]
    return PairTarget(prefill, [Endpoint(s.name, s.url) for s in cluster.decode])
