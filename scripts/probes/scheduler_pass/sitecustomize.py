"""Measures passes of a scheduler's event loop that launch a batch; on the path of a server.

Python imports this module at start. A pass runs from one `ingest_requests` to the next, and is
measured in CPU time of the scheduler's thread. Time that upstream spends in `run_batch` is left
out: on an emulated accelerator it belongs to the device.

Each pass is one line: [requests, milliseconds, milliseconds of them in hooks]. The requests are
the waiting ones on a prefill server and the running ones on a decode server. Hooks are the
functions that plugins put around upstream functions, without the upstream functions themselves and
without the clock readings of this module.
"""

import importlib
import importlib.abc
import importlib.machinery
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from enum import Enum
from pathlib import Path
from types import ModuleType
from typing import ParamSpec, Protocol, TypeVar

_MODULE = "sglang.srt.managers.scheduler"
_FILE = os.environ.get("KAIROS_PROBE_FILE")
_ROLE = os.environ.get("KAIROS_PROBE_ROLE")  # of the measured servers
_clock = time.thread_time

P = ParamSpec("P")
R = TypeVar("R")
Function = Callable[..., object]


class _Mode(Protocol):
    """`sglang.srt.disaggregation.utils.DisaggregationMode`."""

    value: str


class _Batch(Protocol):
    """`sglang.srt.managers.schedule_batch.ScheduleBatch`."""

    def batch_size(self) -> int: ...


class _Scheduler(Protocol):
    """`sglang.srt.managers.scheduler.Scheduler`."""

    disaggregation_mode: _Mode
    waiting_queue: Sequence[object]


class _SchedulerClass(Protocol):
    """The class of schedulers, with the methods that are replaced."""

    ingest_requests: Function
    run_batch: Function


class _HookRegistry(Protocol):
    """`sglang.srt.plugins.hook_registry`."""

    _wrap_fn: Callable[[Function, Function, Enum], Function]


class _Hooks:
    """The time spent in hooks.

    Attributes:
        seconds: CPU time since the last reset.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        readings = [_clock() for _ in range(1000)]
        self._reading_s = (readings[-1] - readings[0]) / (len(readings) - 1)

    def timed(self, hook: Callable[P, R]) -> Callable[P, R]:
        """Return `hook` measured; it is called before or after an upstream function."""

        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            begin = _clock() + self._reading_s
            try:
                return hook(*args, **kwargs)
            finally:
                self.seconds += _clock() - begin

        return call

    def timed_around(self, hook: Function) -> Function:
        """Return `hook` measured; it is called instead of an upstream function and may call it."""

        def call(original: Function, *args: object, **kwargs: object) -> object:
            def upstream(*args: object, **kwargs: object) -> object:
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

    def instrument(self, registry: _HookRegistry) -> None:
        """Measure every hook that is applied from now on."""
        wrap = registry._wrap_fn

        def timed_wrap(original: Function, hook: Function, kind: Enum) -> Function:
            measured = self.timed_around if kind.name == "AROUND" else self.timed
            return wrap(original, measured(hook), kind)

        registry._wrap_fn = timed_wrap


class _Pass:
    """The pass that is under way.

    Attributes:
        requests: waiting or running requests; None until a batch is launched.
        begin_s: when the pass began.
        launch_s: time spent in upstream's `run_batch`.
    """

    def __init__(self) -> None:
        self.requests: int | None = None
        self.begin_s = _clock()
        self.launch_s = 0.0


def _instrument(scheduler_class: _SchedulerClass) -> None:
    ingest, run = scheduler_class.ingest_requests, scheduler_class.run_batch
    hooks = _Hooks()
    registry: _HookRegistry = importlib.import_module("sglang.srt.plugins.hook_registry")
    hooks.instrument(registry)
    current = _Pass()

    def timed_ingest(scheduler: _Scheduler, *args: object, **kwargs: object) -> object:
        nonlocal current
        now = _clock()
        requests = current.requests
        if _FILE and requests is not None and scheduler.disaggregation_mode.value == _ROLE:
            took = now - current.begin_s - current.launch_s, hooks.seconds
            with Path(_FILE).open("a") as file:
                file.write(json.dumps([requests, *(round(1e3 * s, 4) for s in took)]) + "\n")
        hooks.seconds = 0.0
        current = _Pass()
        return ingest(scheduler, *args, **kwargs)

    def timed_run(scheduler: _Scheduler, batch: _Batch, *args: object, **kwargs: object) -> object:
        waiting = _ROLE == "prefill"
        current.requests = len(scheduler.waiting_queue) if waiting else batch.batch_size()
        begin = _clock()
        try:
            return run(scheduler, batch, *args, **kwargs)
        finally:
            current.launch_s += _clock() - begin

    scheduler_class.ingest_requests, scheduler_class.run_batch = timed_ingest, timed_run


class _Loader(importlib.abc.Loader):
    """Instruments the scheduler right after it is imported, before anything is hooked."""

    def __init__(self, loader: importlib.abc.Loader) -> None:
        self._loader = loader

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        _instrument(module.Scheduler)


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the scheduler module, once."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != _MODULE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


if _FILE:
    sys.meta_path.insert(0, _Finder())
