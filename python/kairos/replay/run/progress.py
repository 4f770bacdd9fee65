"""Progress bar of a run."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from kairos.extras import bench_extra
from kairos.replay.client.worker import WorkerProcess

if TYPE_CHECKING:
    from rich.console import Console


@contextmanager
def progress_bar(
    console: "Console", label: str, total: int
) -> Iterator[Callable[[WorkerProcess], None]]:
    """Show a bar of `total` requests; yield the function that updates it from a worker.

    Raises:
        InputError: the bench extra is not installed.
    """
    with bench_extra("the progress bar"):
        from rich import progress

    bar = progress.Progress(
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
    with bar:
        line = bar.add_task(label, total=total, sent=0, failed=0)

        def show(worker: WorkerProcess) -> None:
            counts = worker.counts
            bar.update(line, completed=counts.done, sent=counts.sent, failed=counts.failed)
            bar.refresh()

        yield show
