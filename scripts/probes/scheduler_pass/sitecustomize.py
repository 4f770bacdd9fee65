"""On the path of a server: writes what passes of the event loop take that launch a batch.

Python imports this module at start. A pass runs from one `ingest_requests` to the next. Left out is
what upstream does in `run_batch`, which is the device's on an emulated one. CPU time of the
scheduler's thread.

One line a pass: [requests, milliseconds, milliseconds of them in hooks]; the requests are those
that wait (prefill servers) or run (decode servers). Hooks are all that plug-ins put around
upstream functions, without these functions; what reading the clock for it takes is left out.
"""

import importlib
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
_clock = time.thread_time


class _Hooks:
    """Adds up what hooks take."""

    def __init__(self) -> None:
        self.seconds = 0.0
        readings = [_clock() for _ in range(1000)]
        self._reading_s = (readings[-1] - readings[0]) / (len(readings) - 1)

    def timed(self, hook: Any) -> Any:
        """`hook`, called before or after an upstream function."""

        def call(*args: Any, **kwargs: Any) -> Any:
            begin = _clock() + self._reading_s
            try:
                return hook(*args, **kwargs)
            finally:
                self.seconds += _clock() - begin

        return call

    def timed_around(self, hook: Any) -> Any:
        """`hook`, called instead of an upstream function, which it may call."""

        def call(original: Any, *args: Any, **kwargs: Any) -> Any:
            def upstream(*args: Any, **kwargs: Any) -> Any:
                begin = _clock() - self._reading_s
                try:
                    return original(*args, **kwargs)
                finally:
                    self.seconds -= _clock() - begin

            begin = _clock() + self._reading_s
            try:
                return hook(upstream, *args, **kwargs)
            finally:
                self.seconds += _clock() - begin

        return call

    def instrument(self, registry: Any) -> None:
        """Every hook that is applied from now on."""
        wrap = registry._wrap_fn

        def timed_wrap(original: Any, hook: Any, kind: Any) -> Any:
            around = kind is registry.HookType.AROUND
            return wrap(original, (self.timed_around if around else self.timed)(hook), kind)

        registry._wrap_fn = timed_wrap


def _instrument(scheduler: Any) -> None:
    ingest, run = scheduler.ingest_requests, scheduler.run_batch
    hooks = _Hooks()
    hooks.instrument(importlib.import_module("sglang.srt.plugins.hook_registry"))

    def timed_ingest(self: Any, *args: Any, **kwargs: Any) -> Any:
        now = _clock()
        requests = getattr(self, "_probe_requests", None)
        if _FILE and requests is not None and self.disaggregation_mode.value == _ROLE:
            took = now - self._probe_begin - self._probe_launch, hooks.seconds
            with Path(_FILE).open("a") as file:
                file.write(json.dumps([requests, *(round(1e3 * s, 4) for s in took)]) + "\n")
        self._probe_requests = None
        hooks.seconds = self._probe_launch = 0.0
        self._probe_begin = _clock()
        return ingest(self, *args, **kwargs)

    def timed_run(self: Any, batch: Any, *args: Any, **kwargs: Any) -> Any:
        waiting = _ROLE == "prefill"
        self._probe_requests = len(self.waiting_queue) if waiting else batch.batch_size()
        begin = _clock()
        try:
            return run(self, batch, *args, **kwargs)
        finally:
            self._probe_launch += _clock() - begin

    scheduler.ingest_requests, scheduler.run_batch = timed_ingest, timed_run


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
