"""The runs of one command line: plans, servers' settings, records."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kairos.errors import InputError
from kairos.instances import parse_instances
from kairos.latency import load_profile, save_profile
from kairos.replay.client.api import Api, CompletionsApi, GenerateApi
from kairos.replay.client.client import ClientConfig
from kairos.replay.client.discovery import check_reachable, first_model
from kairos.replay.plan.arms import arm_spec, parse_arms
from kairos.replay.plan.campaign import ReplayRun, runs_of
from kairos.replay.plan.dilation import dilated
from kairos.replay.plan.plan import Plan, make_plan
from kairos.replay.plan.trace_source import load_trace
from kairos.replay.run.config import DRAIN_S, RunConfig
from kairos.replay.run.local_cluster import ClusterOf, LocalCluster
from kairos.replay.run.record_file import probes_in, rejected_in, writable
from kairos.replay.run.resume import finished
from kairos.replay.run.runner import run_on_cluster, run_on_url

if TYPE_CHECKING:
    from rich.console import Console

_URL_ARM = "url"


class ReplaySession:
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
        loads = options.load
        if len(set(loads)) < len(loads):
            raise InputError(f"--load: {', '.join(f'{x:g}' for x in loads)} names one twice")
        for load in loads:
            self._plan(load)
        names = parse_arms(options.arms)
        self.runs = runs_of([_URL_ARM] if options.url else names, loads, options.repeats)
        if options.url is not None and options.dilate != 1.0:
            raise InputError("--dilate: servers of --url keep their own speed")
        if options.resume and options.overwrite:
            raise InputError("--resume and --overwrite exclude each other")
        api: Api = GenerateApi()
        if options.url is not None:
            check_reachable(options.url)
            if options.api == "openai":
                model = options.model or first_model(options.url)
                key = os.environ.get("OPENAI_API_KEY", "")
                api = CompletionsApi(model, options.slo_headers, key)
        span_s = max(plan.workload.trace.span_s for plan in self._plans.values())
        budget_s = span_s + DRAIN_S * options.dilate
        if options.budget_s is not None:
            budget_s = options.budget_s * options.dilate
        limits = ClientConfig(
            timeout_s=options.timeout_s * options.dilate, budget_s=budget_s, api=api
        )
        self._out = writable(options.out)
        slowed = dilated(self._profile, options.dilate)
        self._profile_name = options.profile
        if slowed is not self._profile:
            self._profile_name = str(self._out.resolve() / f"{slowed.name}.json")
            save_profile(slowed, self._profile_name)
        self.config = RunConfig(
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

    def todo(self) -> list[ReplayRun]:
        """Runs that are still to be made.

        Raises:
            InputError: there are records, and it was not said what to do with them.
        """
        there = [path for run in self.runs if (path := run.records(self._out)).exists()]
        arms = list(dict.fromkeys(run.arm for run in self.runs))
        if self._options.goodput == "engine":
            there = list(dict.fromkeys((*there, *probes_in(self._out, arms))))
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
        done = finished(self.runs, self._plans, self.config, self._options.force)
        return [run for run in self.runs if run.stem not in done]

    def run(self, run: ReplayRun) -> None:
        """Make one run and write its records."""
        plan = self._plan(run.load)
        if self._options.url is not None:
            run_on_url(self.config, run, plan, self._options.url)
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
        run_on_cluster(self.config, run, plan, arm, self._cluster_of(local))

    def counts(self, run: ReplayRun) -> bool:
        """Whether a run is done and may be used; records that may not are set aside."""
        plans = {run.load: self._plan(run.load)}
        return bool(finished([run], plans, self.config, self._options.force))

    def record_files(self, arm: str | None = None, load: float | None = None) -> list[Path]:
        """Records of the runs that have been made, of all or of an arm at a load."""
        paths = dict.fromkeys(
            run.records(self._out)
            for run in self.runs
            if arm in (None, run.arm) and load in (None, run.load)
        )
        return [path for path in paths if path.exists()]

    def rejected_files(self) -> list[Path]:
        """Records that were set aside, of these runs and of the arms' probes."""
        stems = [f"{run.stem}." for run in self.runs]
        if self._options.goodput == "engine":
            stems += [f"{run.arm}@" for run in self.runs]
        return rejected_in(self._out, stems)

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
