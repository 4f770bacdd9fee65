"""The runs of one command line: plans, servers' configuration and record files."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kairos.cluster import DpAttention
from kairos.errors import InputError
from kairos.instances import parse_instances
from kairos.latency import Profile, load_profile, save_profile
from kairos.replay.client.api import Api, CompletionsApi, GenerateApi
from kairos.replay.client.discovery import KEY_VARIABLE, check_reachable, first_model
from kairos.replay.client.job import ClientConfig
from kairos.replay.plan.arms import arm_spec, parse_arms
from kairos.replay.plan.campaign import ReplayRun, runs_of
from kairos.replay.plan.dilation import dilated
from kairos.replay.plan.plan import PlanConfig
from kairos.replay.plan.plans import Plans
from kairos.replay.plan.trace_source import load_trace
from kairos.replay.run.config import DRAIN_S, RunConfig
from kairos.replay.run.local_cluster import ClusterOf, LocalCluster
from kairos.replay.run.options import ReplayOptions
from kairos.replay.run.record_file import probes_in, rejected_in, writable
from kairos.replay.run.resume import finished
from kairos.replay.run.runner import run_on_cluster, run_on_url

if TYPE_CHECKING:
    from rich.console import Console

_URL_ARM = "url"


class ReplaySession:
    """The plans, the servers' configuration and the runs of one command line.

    Attributes:
        options: the command line.
        config: configuration of all runs.
        runs: runs in order; a goodput search appends its probes.
    """

    def __init__(
        self,
        options: ReplayOptions,
        command: Sequence[str],
        cluster_of: ClusterOf,
        console: "Console",
    ) -> None:
        """Check the command line and make the plans.

        Args:
            options: the command line, parsed.
            command: the command line as entered, for the header.
            cluster_of: describes the servers of an arm.
            console: terminal output.

        Raises:
            InputError: a value is not allowed, or servers of `--url` do not answer.
        """
        self.options = options
        self._cluster_of = cluster_of
        self._prefill, self._decode = parse_instances(options.instances)
        self._profile = load_profile(options.profile)
        ranks = DpAttention.parse(options.dp_attention)
        self._plans = _plans(options, self._prefill * ranks.prefill, self._profile)
        names = parse_arms(options.arms)
        self.runs = runs_of([_URL_ARM] if options.url else names, options.load, options.repeats)
        if options.url is not None and options.dilate != 1.0:
            raise InputError("--dilate: servers of --url keep their own speed")
        if options.resume and options.overwrite:
            raise InputError("--resume and --overwrite exclude each other")
        client = _client_config(options, self._plans, _api(options))
        out = writable(options.out)
        slowed = dilated(self._profile, options.dilate)
        self._profile_name = options.profile
        if slowed is not self._profile:
            self._profile_name = str(out.resolve() / f"{slowed.name}.json")
            save_profile(slowed, self._profile_name)
        self.config = RunConfig(
            instances=options.instances,
            dp_attention=ranks,
            profile=slowed,
            url=options.url,
            client=client,
            out=out,
            command=tuple(command),
            allow_disturbed=options.allow_disturbed,
            console=console,
            mini_lb=options.router,
        )

    def todo(self) -> list[ReplayRun]:
        """Return the runs that are still to be made.

        Raises:
            InputError: there are records, and neither --resume nor --overwrite was given.
        """
        out = self.config.out
        existing = [path for run in self.runs if (path := run.records(out)).exists()]
        arms = list(dict.fromkeys(run.arm for run in self.runs))
        if self.options.goodput == "engine":
            existing = list(dict.fromkeys((*existing, *probes_in(out, arms))))
        if existing and not self.options.resume and not self.options.overwrite:
            raise InputError(
                f"--out: {existing[0]} exists; --resume keeps the runs that are done, "
                "--overwrite replaces them"
            )
        if not self.options.resume:
            if self.options.overwrite:
                existing += self.rejected_files()
            for path in existing:
                path.unlink()
            return self.runs
        done = finished(self.runs, self._plans, self.config, self.options.force)
        return [run for run in self.runs if run.stem not in done]

    def run(self, run: ReplayRun) -> None:
        """Make one run and write its records."""
        plan = self._plans.at(run.load)
        if self.config.url is not None:
            run_on_url(self.config, run, plan, self.config.url)
            return
        arm = arm_spec(run.arm, self._profile_name, plan.config.slo_set)
        local = LocalCluster(
            arm=arm,
            prefill=self._prefill,
            decode=self._decode,
            dp_attention=self.config.dp_attention,
            profile=self._profile_name,
            mini_lb=self.config.mini_lb,
            cache_tokens=plan.workload.cache_tokens,
            kv_tokens=self._profile.limits.kv_tokens,
        )
        run_on_cluster(self.config, run, plan, arm, self._cluster_of(local))

    def counts(self, run: ReplayRun) -> bool:
        """Return whether a run is done and counts; records that do not count are set aside."""
        return bool(finished([run], self._plans, self.config, self.options.force))

    def record_files(self, arm: str | None = None, load: float | None = None) -> list[Path]:
        """Return the record files of all runs made, or of those of an arm at a load."""
        paths = dict.fromkeys(
            run.records(self.config.out)
            for run in self.runs
            if arm in (None, run.arm) and load in (None, run.load)
        )
        return [path for path in paths if path.exists()]

    def rejected_files(self) -> list[Path]:
        """Return the record files that were set aside, of these runs and of the arms' probes."""
        stems = [f"{run.stem}." for run in self.runs]
        if self.options.goodput == "engine":
            stems += [f"{run.arm}@" for run in self.runs]
        return rejected_in(self.config.out, stems)


def _plans(options: ReplayOptions, prefill_ranks: int, profile: Profile) -> Plans:
    """Make the plans of all loads, so that bad input is found before a run."""
    trace = load_trace(options.trace, options.trace_format, options.seed)
    loads = options.load
    if len(set(loads)) < len(loads):
        raise InputError(f"--load: {', '.join(f'{x:g}' for x in loads)} contains one load twice")
    config = PlanConfig(
        load=loads[0],
        duration_s=options.duration_s,
        start_s=options.start_s,
        instances=prefill_ranks,
        slo_set=options.slo,
        tpot_ms=options.tpot_ms,
        seed=options.seed,
        cache_tokens=options.prefix_cache_tokens,
        dilate=options.dilate,
    )
    plans = Plans(trace, profile, config)
    for load in loads:
        plans.at(load)
    return plans


def _api(options: ReplayOptions) -> Api:
    """Return the request format; servers of `--url` must answer."""
    if options.url is None:
        return GenerateApi()
    check_reachable(options.url)
    if options.api != "openai":
        return GenerateApi()
    model = options.model or first_model(options.url)
    return CompletionsApi(model, options.slo_headers, os.environ.get(KEY_VARIABLE, ""))


def _client_config(options: ReplayOptions, plans: Plans, api: Api) -> ClientConfig:
    span_s = max(plans.at(load).workload.trace.span_s for load in options.load)
    budget_s = span_s + DRAIN_S * options.dilate
    if options.budget_s is not None:
        budget_s = options.budget_s * options.dilate
    return ClientConfig(timeout_s=options.timeout_s * options.dilate, budget_s=budget_s, api=api)
