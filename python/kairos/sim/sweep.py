"""Many simulations on several cores."""

import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

P = TypeVar("P")
R = TypeVar("R")


def sweep(run: Callable[[P], R], points: Sequence[P], workers: int = 0) -> list[R]:
    """Run every point, with a progress bar when there are several.

    An exception of a run ends the sweep.

    Args:
        run: a function that other processes can import.
        points: its arguments, one per run.
        workers: processes, at most one per point; 0: as many as there are cores.

    Returns:
        The results in the order of `points`.
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
    # Fork shares traces and kernels that are loaded already; no thread runs before it.
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
