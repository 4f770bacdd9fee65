"""One calibration from the command line: servers, sweep, fit, files."""

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kairos.calibrate.drive import CalibrationPrompt, DriveError, HttpDriver
from kairos.calibrate.grid import Grid, GridAxes, Point, SkippedPoint, estimate_s, make_grid
from kairos.calibrate.measure import Measurement, Meter, PrefillMeasurement
from kairos.calibrate.result import CalibrationResult, fit_profile, write_samples
from kairos.calibrate.servers import MeasuredServers, describe_servers
from kairos.calibrate.sweep import SweepResult, sweep
from kairos.cluster import Cluster, ClusterSpec
from kairos.errors import InputError
from kairos.latency import Profile, load_profile, save_profile

if TYPE_CHECKING:
    from rich.console import Console

_TRY = (64, 17)  # prompt and output tokens of the first request
_TRY_LIMIT_S = 120.0
_EXIT = {"complete": 0, "budget": 0, "failed": 1, "interrupted": 130}

ClusterFactory = Callable[[str], ClusterSpec]


@dataclass(frozen=True, slots=True)
class _Job:
    """What to measure and where the results go."""

    options: argparse.Namespace
    base: Profile
    axes: GridAxes
    console: "Console"

    @property
    def out(self) -> Path:
        path: Path = self.options.out
        return path

    @property
    def samples(self) -> Path:
        return self.out.with_suffix(".samples.jsonl")


def calibrate(options: argparse.Namespace, cluster_factory: ClusterFactory) -> int:
    """Everything that the command line asks for; returns the exit code.

    Raises:
        InputError: bad options, or servers that cannot be measured.
        ClusterError: servers that were to be started did not.
    """
    from rich.console import Console

    if not 1.0 <= options.budget_s <= 1e6:
        raise InputError(f"--budget-s: {options.budget_s!r} is out of range, allowed are 1 to 1e6")
    job = _Job(
        options,
        load_profile(options.emulated or options.base),
        GridAxes(options.batches, options.contexts, options.new, options.prefixes),
        Console(highlight=False),
    )
    _writable(job.out)
    if options.url:
        return _measured(job, describe_servers(options.url, options.model))
    spec = cluster_factory(options.emulated)
    job.console.print(f"starting servers that emulate {job.base.name}")
    with Cluster(spec, job.out.with_suffix(".logs")) as cluster:
        urls = [server.url for server in (*cluster.prefill, *cluster.decode)]
        return _measured(job, describe_servers(urls, options.model))


def _measured(job: _Job, servers: MeasuredServers) -> int:
    seed = time.time_ns() % 2**31
    driver = HttpDriver(servers.endpoints, send_slo=servers.kairos, seed=seed)
    _try(driver, servers)
    grid = make_grid(job.axes, servers.limits, servers.longest_prompt)
    total_s = sum(estimate_s(point, job.base) for point in grid.points)
    job.console.print(
        f"{len(grid.points)} points, {len(grid.skipped)} do not fit; about {_minutes(total_s)} if "
        f"the servers were like {job.base.name}, at most {_minutes(job.options.budget_s)}"
    )
    swept = _swept(job, Meter(driver), grid, total_s)
    skipped = [*grid.skipped, *swept.skipped]
    write_samples(job.samples, servers, swept.samples, skipped)
    for left in skipped:
        job.console.print(f"skipped: {left.point}: {left.reason}", style="dim")
    job.console.print(str(job.samples), soft_wrap=True)
    if swept.end != "complete":
        job.console.print(f"[red]not the whole grid: {swept.end}[/red]")
    source = "scripts/calibrate.py"
    if job.options.emulated:
        source += f" on servers that emulate {job.base.name} (emulated numbers)"
    try:
        found = fit_profile(swept.samples, servers, job.base, job.options.name, source)
        save_profile(found.profile, job.out)
    except InputError as error:
        print(f"calibrate: no profile: {error}", file=sys.stderr)
        return _EXIT[swept.end] or 1
    _report(job, found)
    return _EXIT[swept.end]


def _swept(job: _Job, meter: Meter, grid: Grid, total_s: float) -> SweepResult:
    from rich import progress

    bar = progress.Progress(
        progress.BarColumn(),
        progress.TaskProgressColumn(),
        progress.TimeElapsedColumn(),
        progress.TextColumn("left:"),
        progress.TimeRemainingColumn(),
        progress.TextColumn("{task.description}"),
        console=job.console,
        auto_refresh=False,  # a thread that draws would stamp tokens late
    )
    with bar:
        line = bar.add_task("", total=total_s)
        bar.refresh()

        def done(point: Point, result: Measurement | SkippedPoint) -> None:
            bar.update(line, advance=estimate_s(point, job.base), description=_said(point, result))
            bar.refresh()

        return sweep(
            grid.points,
            meter.measure,
            lambda point: estimate_s(point, job.base),
            budget_s=job.options.budget_s,
            now=time.monotonic,
            progress=done,
        )


def _said(point: Point, result: Measurement | SkippedPoint) -> str:
    if isinstance(result, SkippedPoint):
        return f"{point}: {result.reason}"
    what = "first token" if isinstance(result, PrefillMeasurement) else "step"
    return f"{point}: {what} {1e3 * result.seconds:.2f} ms"


def _try(driver: HttpDriver, servers: MeasuredServers) -> None:
    """A first request, so that what is wrong with all of them is said once."""
    prompt_tokens, output = _TRY
    url = servers.endpoints[-1].url
    try:
        (answer,) = driver.play([CalibrationPrompt(((prompt_tokens, 0),))], output, _TRY_LIMIT_S)
    except DriveError as error:
        what = "does not stream tokens" if str(error).startswith("stream_error") else "failed"
        raise InputError(f"--url: a first request to {url} {what}: {error}") from error
    if answer.times_s[0] == answer.times_s[-1]:
        raise InputError(
            f"--url: {url} does not stream: {output} tokens arrived at once; something between "
            "here and there holds them back"
        )


def _report(job: _Job, found: CalibrationResult) -> None:
    from rich.table import Table

    from kairos.calibrate.plot import picture

    image = job.out.with_suffix(".png")
    label = "emulated" if job.options.emulated else "measured"
    title = f"{found.profile.name} ({label}), {found.profile.provenance.date}"
    try:
        image.write_bytes(picture(found, title))
    except OSError as error:
        raise InputError(f"cannot write {image}: {error.strerror}") from error
    table = Table(title=f"Relative error of the fit, {label}", title_justify="left")
    table.add_column("what")
    for column in ("points", "median", "p90", "worst"):
        table.add_column(column, justify="right")
    errors = found.errors()
    if job.options.emulated:
        errors |= found.errors_against(job.base)
    for what, e in errors.items():
        shares = (f"{100 * share:.2f} %" for share in (e.median, e.p90, e.worst))
        table.add_row(what, str(e.points), *shares)
    job.console.print(table)
    path = found.path
    job.console.print(
        f"path of a first token beside prefill: {1e3 * path.fixed_s:.1f} ms and "
        f"{1e6 * path.per_token_s:.2f} us per prompt token (no part of the profile)"
    )
    for file in (job.out, image):
        job.console.print(str(file), soft_wrap=True)


def _writable(path: Path) -> None:
    if path.suffix != ".json":
        raise InputError(f"--out: {path} must end in .json")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".samples.jsonl").open("ab").close()
    except OSError as error:
        raise InputError(f"--out: cannot write to {path.parent}: {error.strerror}") from error


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
