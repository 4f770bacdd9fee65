"""Many simulations on all cores."""

import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

P = TypeVar("P")
R = TypeVar("R")


def sweep(run: Callable[[P], R], points: Sequence[P], workers: int = 0) -> list[R]:
    """run(point) for every point, results in the order of `points`.

    Shows a progress bar on standard error when there is more than one point. An exception of a run
    ends the sweep.

    Args:
        workers: processes; 0: as many as there are cores, at most one per point.
    """
    workers = min(workers or os.cpu_count() or 1, len(points))
    if workers <= 1 and len(points) <= 1:
        return [run(point) for point in points]
    columns = (
        TextColumn("simulating"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    # Fork shares what was read and compiled already; nothing here runs threads before it.
    context = multiprocessing.get_context("fork")
    results = []
    with (
        ProcessPoolExecutor(workers, mp_context=context) as pool,
        Progress(*columns, transient=True) as progress,
    ):
        task = progress.add_task("", total=len(points))
        for result in pool.map(run, points):
            results.append(result)
            progress.advance(task)
    return results
