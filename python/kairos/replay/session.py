"""`replay`: plan, run what is not done yet, report."""

import argparse
import os
import re
import socket
from collections.abc import Sequence
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import msgspec
import orjson

from kairos.errors import InputError
from kairos.latency import load_profile, save_profile
from kairos.replay import campaign, commands
from kairos.replay.api import Api, CompletionsApi, GenerateApi
from kairos.replay.arms import arm_spec, parse_arms
from kairos.replay.cli import DRAIN_S, ClusterOf, LocalCluster
from kairos.replay.client import Options
from kairos.replay.dilation import dilated
from kairos.replay.goodput import TARGETS, Goodput, largest_load
from kairos.replay.plan import Plan, make_plan
from kairos.replay.results import read_arms
from kairos.replay.runner import Run, Setting, run_on_cluster, run_on_url
from kairos.replay.target import UrlTarget
from kairos.workload.readers import read_trace
from kairos.workload.synthetic import generate
from kairos.workload.trace import Trace

if TYPE_CHECKING:
    from rich.console import Console

SYNTHETIC = "synthetic:"
_SYNTHETIC_REQUESTS = 20_000  # more than a load of 2 over half an hour takes of any preset
_URL_ARM = "url"
_ENGINE_TOLERANCE = 0.05  # of a goodput search whose probes take minutes
_PROBE_TRIES = 3


def replay(options: argparse.Namespace, command: Sequence[str], cluster_of: ClusterOf) -> int:
    """Everything that a replay's command line asks for; returns the exit code."""
    from rich.console import Console

    console = Console()
    session = _Session(options, command, cluster_of, console)
    limit = options.max_runs
    if limit is not None and limit < 1:
        raise InputError(f"--max-runs: {limit} is not allowed; at least 1")
    todo = session.todo()
    left = len(todo) if limit is None else limit
    for run in todo[:left]:
        session.run(run)
    rest = len(todo) - left
    searched: dict[str, Any] = {}
    if options.goodput == "engine" and rest <= 0:
        searched = session.goodput(None if limit is None else -rest)
    arms = read_arms(session.record_files(), rejected=session.rejected_files())
    code = commands.publish(
        arms,
        options.out,
        console,
        goodput=options.goodput,
        searched=searched,
        force=options.force,
    )
    if rest > 0 or session.cut_short:
        rest_name = f"{rest} runs" if rest > 0 else "probes of the goodput search"
        console.print(f"{rest_name} are left; go on with --resume")
    return code


class _Session:
    """The plans, the servers' settings and the runs of one command line."""

    def __init__(
        self,
        options: argparse.Namespace,
        command: Sequence[str],
        cluster_of: ClusterOf,
        console: "Console",
    ) -> None:
        self._options = options
        self._cluster_of = cluster_of
        self._console = console
        self._prefill, self._decode = parse_instances(options.instances)
        self._profile = load_profile(options.profile)
        self._trace = load_trace(options.trace, options.trace_format, options.seed)
        self._plans: dict[float, Plan] = {}
        self._probes_left: int | None = None
        self.cut_short = False
        loads = options.load
        if len(set(loads)) < len(loads):
            raise InputError(f"--load: {', '.join(f'{x:g}' for x in loads)} names one twice")
        for load in loads:
            self._plan(load)
        names = parse_arms(options.arms)
        self.runs = campaign.runs_of([_URL_ARM] if options.url else names, loads, options.repeats)
        if options.url is not None and options.dilate != 1.0:
            raise InputError("--dilate: servers of --url keep their own speed")
        if options.resume and options.overwrite:
            raise InputError("--resume and --overwrite exclude each other")
        api: Api = GenerateApi()
        if options.url is not None:
            _reachable(options.url)
            if options.api == "openai":
                model = options.model or _first_model(options.url)
                key = os.environ.get("OPENAI_API_KEY", "")
                api = CompletionsApi(model, options.slo_headers, key)
        span_s = max(plan.workload.trace.span_s for plan in self._plans.values())
        budget_s = span_s + DRAIN_S * options.dilate
        if options.budget_s is not None:
            budget_s = options.budget_s * options.dilate
        limits = Options(timeout_s=options.timeout_s * options.dilate, budget_s=budget_s, api=api)
        self._out = commands.writable(options.out)
        slowed = dilated(self._profile, options.dilate)
        self._profile_name = options.profile
        if slowed is not self._profile:
            self._profile_name = str(self._out.resolve() / f"{slowed.name}.json")
            save_profile(slowed, self._profile_name)
        self._setting = Setting(
            instances=options.instances,
            profile=slowed,
            emulated=options.url is None,
            url=options.url,
            start_s=options.start_s,
            limits=limits,
            out=self._out,
            command=tuple(command),
            allow_disturbed=options.allow_disturbed,
            console=console,
            mini_lb=options.router,
        )

    def todo(self) -> list[Run]:
        """Runs that are still to be made.

        Raises:
            InputError: there are records, and it was not said what to do with them.
        """
        there = [path for run in self.runs if (path := run.records(self._out)).exists()]
        arms = list(dict.fromkeys(run.arm for run in self.runs))
        if self._options.goodput == "engine":
            there = list(dict.fromkeys((*there, *campaign.probes_in(self._out, arms))))
        if there and not self._options.resume and not self._options.overwrite:
            raise InputError(
                f"--out: {there[0]} exists; --resume keeps what is done, --overwrite replaces it"
            )
        if not self._options.resume:
            for path in there:
                path.unlink()
            if self._options.overwrite:
                for path in self.rejected_files():
                    path.unlink()
            return self.runs
        done = campaign.finished(self.runs, self._plans, self._setting, self._options.force)
        return [run for run in self.runs if run.stem not in done]

    def run(self, run: Run) -> None:
        """Make one run and write its records."""
        plan = self._plan(run.load)
        if self._options.url is not None:
            run_on_url(self._setting, run, plan, self._options.url)
            return
        arm = arm_spec(run.arm, self._profile_name, plan.slo_set)
        local = LocalCluster(
            arm=arm,
            prefill=self._prefill,
            decode=self._decode,
            profile=self._profile_name,
            mini_lb=self._options.router,
            cache_tokens=plan.workload.cache_tokens,
            kv_tokens=self._profile.limits.kv_tokens,
        )
        run_on_cluster(self._setting, run, plan, arm, self._cluster_of(local))

    def goodput(self, probes: int | None = None) -> dict[str, Any]:
        """Search each arm's goodput with runs at further loads, whose records stay. Without a
        result for an arm one of whose runs never counted, or where more than `probes` runs would
        be needed; then `cut_short` is set."""
        self._probes_left = probes
        found: dict[str, Any] = {}
        for arm in dict.fromkeys(run.arm for run in self.runs):
            loads = None
            try:
                loads = self._searched(arm)
            except _NeverCountedError as error:
                self._console.print(f"{arm}: no goodput: {error}", style="red")
            except _EnoughRunsError:
                self.cut_short = True
            found[arm] = {"in": "engine", "loads": msgspec.to_builtins(loads)}
        return found

    def record_files(self) -> list[Path]:
        """Records of the runs that have been made."""
        paths = dict.fromkeys(run.records(self._out) for run in self.runs)
        return [path for path in paths if path.exists()]

    def rejected_files(self) -> list[Path]:
        """Records that were set aside, of these runs and of the arms' probes."""
        stems = [f"{run.stem}." for run in self.runs]
        if self._options.goodput == "engine":
            stems += [f"{run.arm}@" for run in self.runs]
        return campaign.rejected_in(self._out, stems)

    def _searched(self, arm: str) -> list[Goodput]:
        known = {}
        for load in dict.fromkeys(run.load for run in self.runs if run.arm == arm):
            value = self._attainment(arm, load)
            if value is not None:
                known[load] = value
        results = []
        for target in TARGETS:
            results.append(
                largest_load(lambda load: self._probed(arm, load), target, known, _ENGINE_TOLERANCE)
            )
            known |= {float(x): value for x, value in results[-1].probes.items()}
        return results

    def _probed(self, arm: str, load: float) -> float:
        """Attainment at a load that no run is known of: made until it counts.

        Raises:
            _NeverCountedError: it never did.
            _EnoughRunsError: no more runs are wanted now.
        """
        run = Run(arm, load, 1, len(self.runs) + 1, f"{arm}@{load:g}")
        self.runs.append(run)
        plans = {load: self._plan(load)}
        for tries in range(_PROBE_TRIES + 1):
            if campaign.finished([run], plans, self._setting, self._options.force):
                value = self._attainment(arm, load)
                assert value is not None
                return value
            if self._probes_left == 0:
                raise _EnoughRunsError
            if tries < _PROBE_TRIES:
                self._probes_left = self._probes_left and self._probes_left - 1
                self.run(run)
        raise _NeverCountedError(f"{_PROBE_TRIES} runs at load {load:g} did not count")

    def _attainment(self, arm: str, load: float) -> float | None:
        """Of all runs of an arm at a load that count, taken together; None without one."""
        paths = dict.fromkeys(
            run.records(self._out) for run in self.runs if (run.arm, run.load) == (arm, load)
        )
        paths_there = [path for path in paths if path.exists()]
        if not paths_there:
            return None
        (pooled,) = read_arms(paths_there)
        return pooled.summary.e2e_attainment if pooled.counts else None

    def _plan(self, load: float) -> Plan:
        if load not in self._plans:
            options = self._options
            self._plans[load] = make_plan(
                self._trace,
                self._profile,
                load=load,
                duration_s=options.duration_s,
                start_s=options.start_s,
                instances=self._prefill,
                slo_set=options.slo,
                tpot_ms=options.tpot_ms,
                seed=options.seed,
                cache_tokens=options.prefix_cache_tokens,
                dilate=options.dilate,
            )
        return self._plans[load]


class _NeverCountedError(Exception):
    """A probe was disturbed, or its servers died, each time."""


class _EnoughRunsError(Exception):
    """As many runs were made as `--max-runs` allows."""


def load_trace(source: str, format_name: str | None, seed: int) -> Trace:
    """Read a file, or generate `synthetic:PRESET`.

    Raises:
        InputError: see `read_trace` and `generate`.
    """
    if source.startswith(SYNTHETIC):
        return generate(source.removeprefix(SYNTHETIC), _SYNTHETIC_REQUESTS, seed)
    return read_trace(source, format_name)


def parse_instances(text: str) -> tuple[int, int]:
    """Numbers of prefill and decode servers in, for example, `2P1D`.

    Raises:
        InputError: another form, or a number out of range.
    """
    match = re.fullmatch(r"(\d{1,2})P(\d{1,2})D", text)
    if match is None or 0 in (numbers := (int(match[1]), int(match[2]))):
        raise InputError(f"--instances: {text!r} is not allowed; it must look like 1P1D")
    return numbers


def _reachable(url: str) -> None:
    UrlTarget(url)
    parts = urlsplit(url)
    if parts.username is not None:
        raise InputError("--url: a user name in it would be in every record; set OPENAI_API_KEY")
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        socket.create_connection((parts.hostname or "", port), timeout=5).close()
    except OSError as error:
        raise InputError(f"--url: nothing answers at {url}: {error}") from error


def _first_model(url: str) -> str:
    """The first model that an OpenAI endpoint lists.

    Raises:
        InputError: it lists none.
    """
    headers = {}
    if key := os.environ.get("OPENAI_API_KEY"):
        headers["Authorization"] = f"Bearer {key}"
    address = f"{url.rstrip('/')}/v1/models"
    try:
        with urlopen(Request(address, headers=headers), timeout=10) as answer:
            return str(orjson.loads(answer.read())["data"][0]["id"])
    except (OSError, HTTPException, ValueError, KeyError, IndexError, TypeError) as error:
        raise InputError(
            f"--url: {address} names no model ({error}); give --model, or --api sglang"
        ) from error
