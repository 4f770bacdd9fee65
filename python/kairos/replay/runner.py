"""One measured run: a plan against one arm."""

import hashlib
import os
import platform
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import psutil

from kairos.cluster import Cluster, ClusterError, ClusterSpec, ServerDiedError
from kairos.latency import Profile
from kairos.replay.api import CompletionsApi
from kairos.replay.arms import ArmSpec
from kairos.replay.client import Options
from kairos.replay.forwards import Forward, device_use, engine_tpot_ms, read_forwards
from kairos.replay.plan import Plan, PlannedRequest
from kairos.replay.prompts import Prompts
from kairos.replay.quiet import Watch
from kairos.replay.record import Header, Outcome, Record, write_records
from kairos.replay.summary import end_s
from kairos.replay.target import Leg, PairTarget, Target, UrlTarget
from kairos.replay.worker import Job, Worker
from kairos.slo import Slo
from kairos.workload.trace import TraceRequest

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

# In the vocabulary of any model, the emulated one's included.
VOCABULARY = 1024
TRACE_ENV = "KAIROS_EMULATION_TRACE"
_CODE = ("python", "kairos_patches", "scripts")  # folders whose new files count as changes
_REDRAW_S = 0.5
_EXIT_S = 2.0  # a server's connections break some time before its process has ended
_WARM_UP_LENGTHS = (64, 2_000, 12_000)
_WARM_UP_TOKENS = 16
_WARM_UP_LIMIT_S = 120.0


@dataclass(frozen=True, slots=True)
class Run:
    """One run of a replay.

    Attributes:
        arm: server configuration; "url" for servers that run already.
        load: offered prefill load.
        repeat: which run of this arm and load, from 1.
        position: which of all, from 1.
        stem: name of its files: requests-STEM.jsonl, forwards-STEM.jsonl, logs/STEM.
    """

    arm: str
    load: float
    repeat: int
    position: int
    stem: str

    def records(self, out: Path) -> Path:
        return out / f"requests-{self.stem}.jsonl"

    def forwards(self, out: Path) -> Path:
        return out / f"forwards-{self.stem}.jsonl"


@dataclass(frozen=True, slots=True)
class Setting:
    """What all runs of a replay have in common.

    Attributes:
        instances: such as "1P1D".
        profile: latency profile of predictions, dilated if the run is.
        emulated: whether it also drives the servers' clock.
        url: of servers that run already; None where each run starts its own.
        start_s: where in the trace the plan begins, seconds.
        limits: of a request and of an arm.
        out: folder of records and logs.
        command: the command line.
        allow_disturbed: count runs that were not quiet.
        mini_lb: arms without a router are sent through upstream's.
    """

    instances: str
    profile: Profile
    emulated: bool
    url: str | None
    start_s: float
    limits: Options
    out: Path
    command: tuple[str, ...]
    allow_disturbed: bool
    console: "Console"
    mini_lb: bool = False


def run_on_cluster(
    setting: Setting, run: Run, plan: Plan, arm: ArmSpec, spec: ClusterSpec
) -> Header:
    """Start a fresh cluster, warm it up, replay against it, stop it.

    A server that dies meanwhile ends the run: the rest is cut and the header says why.

    Raises:
        InputError, ClusterError: the cluster does not start.
    """
    trace = run.forwards(setting.out).resolve()
    trace.unlink(missing_ok=True)
    if setting.emulated:
        spec = replace(spec, env={**spec.env, TRACE_ENV: str(trace)})
    setting.console.print(f"[bold]{run.stem}[/bold]: starting servers ({arm.about})")
    with Cluster(spec, setting.out / "logs" / run.stem) as cluster:
        setting.console.print(f"{run.stem}: ready after {cluster.stats().ready_s:.0f} s")
        target = _target(cluster)
        servers: dict[str, list[str]] = {
            "all": list(spec.args),
            "prefill": list(spec.prefill_args),
            "decode": list(spec.decode_args),
            "router": [spec.router, *spec.router_args] if spec.router else [],
            "client sends to": target.describe(),
        }
        return _measured(setting, run, plan, target, servers, arm.send_slo, cluster.check)


def reached(setting: Setting) -> dict[str, list[str]]:
    """What the header says of servers that run already; empty where a run starts its own."""
    if setting.url is None:
        return {}
    api = setting.limits.api
    found = {"client sends to": UrlTarget(setting.url).describe(), "API": [api.path]}
    if isinstance(api, CompletionsApi):
        found |= {"model": [api.model], "SLO headers": [api.slo_headers]}
    return found


def run_on_url(setting: Setting, run: Run, plan: Plan, url: str) -> Header:
    """Replay against servers that run already."""
    target = UrlTarget(url)
    servers = reached(setting) | {"state": ["as found, not restarted"]}
    return _measured(setting, run, plan, target, servers, True, lambda: None)


def _measured(
    setting: Setting,
    run: Run,
    plan: Plan,
    target: Target,
    servers: dict[str, list[str]],
    send_slo: bool,
    check: Callable[[], None],
) -> Header:
    options = replace(setting.limits, send_slo=send_slo)
    seed = content_seed(setting, plan)
    warm_up = _warm_up(plan, seed, target, options, check)
    started = datetime.now(UTC)
    run_id = f"{run.stem}-{started:%H%M%S}"
    job = Job(target, Prompts(VOCABULARY, seed), options, run_id, plan.requests)
    with Worker(job) as worker:
        watch = Watch()
        worker.start()
        records, note = _watched(setting, run.stem, worker, len(plan.requests), check)
    traced, damaged = read_forwards(run.forwards(setting.out))
    forwards = [f for f in traced if f.start_s >= worker.start_s]
    if damaged:
        note = "; ".join(filter(None, (note, f"{damaged} lines of the device trace are damaged")))
    quiet = watch.result(records, forwards, emulated=setting.emulated, dilate=plan.dilate)
    records = _with_engine_clock(records, forwards)
    workload = plan.workload
    header = Header(
        arm=run.arm,
        repeat=run.repeat,
        position=run.position,
        servers=servers | {"client": [f"{worker.priority} priority"]},
        trace=workload.trace.name,
        trace_sha256=workload.trace.sha256,
        load=workload.load,
        cache_tokens=workload.cache_tokens,
        dilate=plan.dilate,
        instances=setting.instances,
        time_scale=workload.time_scale,
        start_s=setting.start_s,
        span_s=workload.trace.span_s,
        requests=len(plan.requests),
        slo_set=plan.slo_set,
        tpot_ms=plan.tpot_ms,
        seed=plan.seed,
        content_seed=seed,
        profile=setting.profile,
        emulated=setting.emulated,
        warm_up=warm_up,
        quiet=quiet,
        device=device_use(forwards, max(end_s(r) for r in records)),
        allow_disturbed=setting.allow_disturbed,
        note=note,
        versions=_versions(),
        git_commit=git_commit(),
        timeout_s=setting.limits.timeout_s,
        budget_s=setting.limits.budget_s,
        mini_lb=setting.mini_lb,
        machine=_machine(),
        command=list(setting.command),
        started=f"{started:%Y-%m-%dT%H:%M:%SZ}",
        start_monotonic_s=worker.start_s,
    )
    write_records(run.records(setting.out), header, records)
    return header


def content_seed(setting: Setting, plan: Plan) -> int:
    """Seed of a run's prompts: that of the plan on servers that are started for the run. Others
    keep the prompts of earlier runs in their prefix cache, so each run brings its own."""
    return plan.seed if setting.url is None else secrets.randbits(62)


def _watched(
    setting: Setting, label: str, worker: Worker, total: int, check: Callable[[], None]
) -> tuple[list[Record], str]:
    """Wait for the client; a server or client that dies ends the run."""
    note = ""
    with _bar(setting.console) as bar:
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
    records: Sequence[Record], check: Callable[[], None], within_s: float = _EXIT_S
) -> str:
    """What has died by the end of a run: when the last requests failed, their server may be about
    to. Empty if nothing has."""
    until = time.monotonic() + within_s
    failed = any(r.outcome not in (Outcome.OK, Outcome.TIMEOUT, Outcome.CUT) for r in records)
    while not (died := _died(check)) and failed and time.monotonic() < until:
        time.sleep(min(0.1, within_s))
    return died


def _died(check: Callable[[], None]) -> str:
    try:
        check()
    except ServerDiedError as died:
        return str(died).splitlines()[0]
    return ""


def _warm_up(
    plan: Plan, seed: int, target: Target, options: Options, check: Callable[[], None]
) -> str:
    """Prompts of other content and several lengths through every pair, twice; returns what was
    done.

    Raises:
        ClusterError: one of them failed.
    """
    pairs = target.pairs
    longest = max(p.request.input_tokens for p in plan.requests)
    different = sorted({min(n, longest) for n in _WARM_UP_LENGTHS})
    lengths = [n for n in different for _ in range(2 * pairs)]
    gap_s = 0.2 * plan.dilate
    requests = [
        PlannedRequest(i, TraceRequest(i * gap_s, length, _WARM_UP_TOKENS), 0, Slo(60e3, 1e3))
        for i, length in enumerate(lengths)
    ]
    limits = replace(options, timeout_s=_WARM_UP_LIMIT_S, budget_s=2 * _WARM_UP_LIMIT_S)
    # Another seed gives other ids everywhere, so that the run finds none of it cached.
    job = Job(target, Prompts(VOCABULARY, seed + 1), limits, f"w{os.getpid():07d}", requests)
    with Worker(job) as worker:
        worker.start()
        while (records := worker.poll(_REDRAW_S)) is None:
            check()
    failed = [r for r in records if r.outcome is not Outcome.OK]
    if failed:
        first = failed[0]
        raise ClusterError(
            f"warm-up: {len(failed)} of {len(records)} requests failed, the first with "
            f"{first.outcome.value}: {first.reason}"
        )
    shown = ", ".join(f"{n:,}" for n in different)
    return (
        f"{len(requests)} requests of {shown} prompt and {_WARM_UP_TOKENS} output tokens with "
        "content of their own, before the run, in none of the figures"
    )


def _with_engine_clock(records: Sequence[Record], forwards: Sequence[Forward]) -> list[Record]:
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


def git_commit() -> str:
    """Commit of the checkout this file is in, with a hash of what was changed in it since; empty
    outside of a checkout."""
    try:
        root = Path(_git(Path(__file__).parent, "rev-parse", "--show-toplevel").decode().strip())
        commit = _git(root, "rev-parse", "HEAD").decode().strip()
        diff = _git(root, "diff", "HEAD")
        untracked = _git(root, "ls-files", "--others", "--exclude-standard", "-z", "--", *_CODE)
        for name in untracked.decode().split("\0")[:-1]:
            diff += name.encode() + (root / name).read_bytes()
    except (OSError, subprocess.CalledProcessError):
        return ""
    return f"{commit}+{hashlib.sha256(diff).hexdigest()[:8]}" if diff else commit


def _git(folder: Path, *args: str) -> bytes:
    command = ["git", "-C", str(folder), *args]
    return subprocess.run(command, capture_output=True, check=True).stdout


def _machine() -> str:
    memory = psutil.virtual_memory().total / 2**30
    return f"{psutil.cpu_count()} cores, {memory:.0f} GiB, {platform.machine()}, {sys.platform}"


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in ("kairos-sglang", "sglang", "numpy", "uvloop"):
        with suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found
