"""On the path of a prefill server: writes how long passes of the event loop take that form a batch.

Python imports this module at start. A pass begins with `ingest_requests` and ends when `run_batch`
is entered; time in it is the scheduler's own. Planning is what Kairos does around upstream's
forming of the batch. One line a batch: [waiting requests, milliseconds, planning of them].
"""

import importlib.abc
import importlib.machinery
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

_MODULE = "sglang.srt.managers.scheduler"
_FILE = os.environ.get("KAIROS_PROBE_FILE")


def _instrument(scheduler: Any) -> None:
    ingest, run = scheduler.ingest_requests, scheduler.run_batch
    form, around = scheduler._get_new_batch_prefill_raw, scheduler.get_new_batch_prefill

    def timed_form(self: Any, *args: Any, **kwargs: Any) -> Any:
        begin = time.thread_time()
        try:
            return form(self, *args, **kwargs)
        finally:
            self._probe_planning -= time.thread_time() - begin

    def timed_around(self: Any, *args: Any, **kwargs: Any) -> Any:
        begin = time.thread_time()
        self._probe_planning = 0.0
        try:
            return around(self, *args, **kwargs)
        finally:
            self._probe_planning += time.thread_time() - begin

    def timed_ingest(self: Any, *args: Any, **kwargs: Any) -> Any:
        self._probe_begin = time.thread_time()
        return ingest(self, *args, **kwargs)

    def timed_run(self: Any, batch: Any, *args: Any, **kwargs: Any) -> Any:
        if _FILE and self.disaggregation_mode.value == "prefill":
            took = time.thread_time() - self._probe_begin, self._probe_planning
            with Path(_FILE).open("a") as file:
                file.write(json.dumps([len(self.waiting_queue), *(1e3 * s for s in took)]) + "\n")
        return run(self, batch, *args, **kwargs)

    scheduler.ingest_requests, scheduler.run_batch = timed_ingest, timed_run
    scheduler._get_new_batch_prefill_raw = timed_form
    scheduler.get_new_batch_prefill = timed_around


class _Finder(importlib.abc.MetaPathFinder):
    """Instruments the scheduler right after it is imported, before anything is hooked."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name != _MODULE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def exec_module(module: Any) -> None:
            execute(module)
            _instrument(module.Scheduler)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


if _FILE:
    sys.meta_path.insert(0, _Finder())
