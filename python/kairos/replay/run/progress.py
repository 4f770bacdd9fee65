"""Progress bar of a run."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress


def progress_bar(console: "Console") -> "Progress":
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
