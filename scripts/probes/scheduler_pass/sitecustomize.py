"""On the path of a server: writes what passes of the event loop take that launch a batch.

Python imports this module at start. A pass runs from one `ingest_requests` to the next. Left out is
what upstream does in `run_batch`, which is the device's on an emulated one. Planning is what Kairos
does around upstream's forming of a prefill batch. CPU time of the scheduler's thread.

One line a pass: [requests, milliseconds, milliseconds of them planning]; the requests are those
that wait (prefill servers) or run (decode servers).
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
_ROLE = os.environ.get("KAIROS_PROBE_ROLE")  # of the servers to be measured


def _instrument(scheduler: Any) -> None:
    ingest, run = scheduler.ingest_requests, scheduler.run_batch
    form, around = scheduler._get_new_batch_prefill_raw, scheduler.get_new_batch_prefill

    def timed_ingest(self: Any, *args: Any, **kwargs: Any) -> Any:
        now = time.thread_time()
        requests = getattr(self, "_probe_requests", None)
        if _FILE and requests is not None and self.disaggregation_mode.value == _ROLE:
            took = now - self._probe_begin - self._probe_launch, self._probe_planning
            with Path(_FILE).open("a") as file:
                file.write(json.dumps([requests, *(round(1e3 * s, 4) for s in took)]) + "\n")
        self._probe_requests = None
        self._probe_planning = self._probe_launch = 0.0
        self._probe_begin = time.thread_time()
        return ingest(self, *args, **kwargs)

    def timed_run(self: Any, batch: Any, *args: Any, **kwargs: Any) -> Any:
        waiting = _ROLE == "prefill"
        self._probe_requests = len(self.waiting_queue) if waiting else batch.batch_size()
        begin = time.thread_time()
        try:
            return run(self, batch, *args, **kwargs)
        finally:
            self._probe_launch += time.thread_time() - begin

    def timed_form(self: Any, *args: Any, **kwargs: Any) -> Any:
        begin = time.thread_time()
        try:
            return form(self, *args, **kwargs)
        finally:
            self._probe_planning -= time.thread_time() - begin

    def timed_around(self: Any, *args: Any, **kwargs: Any) -> Any:
        begin = time.thread_time()
        try:
            return around(self, *args, **kwargs)
        finally:
            self._probe_planning += time.thread_time() - begin

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

        spec.loader.exec_module = exec_module
        return spec


if _FILE:
    sys.meta_path.insert(0, _Finder())
