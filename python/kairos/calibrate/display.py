"""Progress and results of a calibration on the terminal, and its picture."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from kairos.calibrate.config import CalibrationConfig
from kairos.calibrate.grid import Grid, Point, SkippedPoint
from kairos.calibrate.measure import Measurement, PrefillMeasurement
from kairos.calibrate.result import CalibrationResult
from kairos.calibrate.sweep import OnPoint, SweepResult
from kairos.errors import InputError
from kairos.extras import bench_extra
from kairos.latency import Profile

if TYPE_CHECKING:
    from rich.table import Table


class Display:
    """Prints the course of one calibration.

    Raises:
        InputError: rich is not installed.
    """

    def __init__(self, config: CalibrationConfig) -> None:
        with bench_extra("the progress of a calibration"):
            from rich.console import Console
        self._config = config
        self._console = Console(highlight=False)

    def starting(self, base: Profile) -> None:
        """Announce servers that emulate `base`."""
        self._console.print(f"starting servers that emulate {base.name}")

    def planned(self, grid: Grid, total_s: float, base: Profile) -> None:
        """Announce the grid and the time that it takes on servers like `base`."""
        self._console.print(
            f"{len(grid.points)} points, {len(grid.skipped)} do not fit; about {_minutes(total_s)} "
            f"on servers like {base.name}, at most {_minutes(self._config.budget_s)}"
        )

    @contextmanager
    def progress(self, total_s: float, estimate_s: Callable[[Point], float]) -> Iterator[OnPoint]:
        """Show a progress bar.

        Args:
            total_s: estimated time of all points.
            estimate_s: estimated time of a point.

        Yields:
            A function that advances the bar by one point.
        """
        from rich import progress

        bar = progress.Progress(
            progress.BarColumn(),
            progress.TaskProgressColumn(),
            progress.TimeElapsedColumn(),
            progress.TextColumn("left:"),
            progress.TimeRemainingColumn(),
            progress.TextColumn("{task.description}"),
            console=self._console,
            auto_refresh=False,  # a thread that draws would stamp tokens late
        )
        with bar:
            line = bar.add_task("", total=total_s)
            bar.refresh()

            def on_point(point: Point, result: Measurement | SkippedPoint) -> None:
                bar.update(line, advance=estimate_s(point), description=_outcome(point, result))
                bar.refresh()

            yield on_point

    def swept(self, swept: SweepResult, skipped: Sequence[SkippedPoint]) -> None:
        """Print the points without a sample and the file of the samples."""
        for left in skipped:
            self._console.print(f"skipped: {left.point}: {left.reason}", style="dim")
        self._console.print(str(self._config.samples), soft_wrap=True)
        if swept.end != "complete":
            self._console.print(f"[red]not the whole grid: {swept.end}[/red]")

    def result(self, found: CalibrationResult, base: Profile) -> None:
        """Draw the picture, and print the errors of the fit and the files.

        Raises:
            InputError: the picture cannot be written, or matplotlib is not installed.
        """
        self._draw(found)
        self._console.print(self._table(found, base))
        path = found.path
        self._console.print(
            f"path of a first token beside prefill: {1e3 * path.fixed_s:.1f} ms and "
            f"{1e6 * path.per_token_s:.2f} us per prompt token (no part of the profile)"
        )
        for file in (self._config.out, self._config.picture):
            self._console.print(str(file), soft_wrap=True)

    def _draw(self, found: CalibrationResult) -> None:
        from kairos.calibrate.plot import picture

        title = f"{found.profile.name} ({self._config.kind}), {found.profile.provenance.date}"
        try:
            with bench_extra("the progress of a calibration"):
                self._config.picture.write_bytes(picture(found, title))
        except OSError as error:
            raise InputError(f"cannot write {self._config.picture}: {error.strerror}") from error

    def _table(self, found: CalibrationResult, base: Profile) -> "Table":
        from rich.table import Table

        table = Table(title=f"Relative error of the fit, {self._config.kind}", title_justify="left")
        table.add_column("prediction")
        for column in ("points", "median", "p90", "worst"):
            table.add_column(column, justify="right")
        errors = found.errors()
        if self._config.emulated:
            errors |= found.errors_against(base)
        for prediction, error in errors.items():
            shares = (f"{100 * share:.2f} %" for share in (error.median, error.p90, error.worst))
            table.add_row(prediction, str(error.points), *shares)
        return table


def _outcome(point: Point, result: Measurement | SkippedPoint) -> str:
    if isinstance(result, SkippedPoint):
        return f"{point}: {result.reason}"
    quantity = "first token" if isinstance(result, PrefillMeasurement) else "step"
    return f"{point}: {quantity} {1e3 * result.seconds:.2f} ms"


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
