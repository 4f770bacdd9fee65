"""Registration of the emulation's hooks, with upstream's own registry but without its engine."""

import gc
import importlib.util
import sys
import types
from pathlib import Path
from types import SimpleNamespace

import pytest

from kairos.latency import load_profile
from kairos_emulation import device, hooks
from kairos_emulation.hooks import EmulationHook
from kairos_emulation.rank_step import RankStep, RankWork

_REGISTRY = "sglang.srt.plugins.hook_registry"


@pytest.fixture
def registry(monkeypatch):
    """Upstream's HookRegistry, loaded by path: importing its package takes seconds."""
    package = importlib.util.find_spec("sglang")
    if package is None:
        pytest.skip("SGLang is not installed")
    path = Path(package.submodule_search_locations[0]) / "srt/plugins/hook_registry.py"
    spec = importlib.util.spec_from_file_location(_REGISTRY, path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, _REGISTRY, module)
    spec.loader.exec_module(module)
    monkeypatch.setenv("SGLANG_PLATFORM", "kairos-cpu")
    return module.HookRegistry


@pytest.fixture
def upstream(monkeypatch):
    """A module with something to hook."""
    module = types.ModuleType("upstream_module")
    module.function = lambda: "upstream"
    monkeypatch.setitem(sys.modules, "upstream_module", module)
    return module


@pytest.fixture
def scheduler_process(monkeypatch):
    name = hooks.SCHEDULER_MODULE
    monkeypatch.setitem(sys.modules, name, types.ModuleType(name))


HOOKS = (EmulationHook("upstream_module.function", lambda: "hooked", "REPLACE"),)


def test_hooks_apply_in_a_scheduler_process(registry, upstream, scheduler_process):
    hooks.install(HOOKS)
    registry.apply_hooks()
    assert upstream.function() == "hooked"
    hooks.verify(HOOKS)


@pytest.fixture
def registered(registry, monkeypatch):
    """Targets in the order of their registration."""
    targets = []
    register = registry.register

    def record(target, *args, **kwargs):
        targets.append(target)
        register(target, *args, **kwargs)

    monkeypatch.setattr(registry, "register", record)
    return targets


def test_hooks_stay_out_of_other_processes(registry, registered, upstream, monkeypatch):
    monkeypatch.delitem(sys.modules, hooks.SCHEDULER_MODULE, raising=False)
    hooks.install(HOOKS)
    registry.apply_hooks()
    assert upstream.function() == "upstream"
    assert not registered


def test_other_plugins_hooks_are_applied_and_the_emulations_only_once(
    registry, registered, upstream, scheduler_process
):
    upstream.other = lambda: "upstream"
    hooks.install(HOOKS)
    registry.register("upstream_module.other", lambda r: r + ", after", registry_kind("AFTER"))
    registry.apply_hooks()
    registry.apply_hooks()
    assert upstream.other() == "upstream, after"
    assert registered.count("upstream_module.function") == 1


def test_a_hook_whose_target_was_renamed_is_an_error(registry, upstream, scheduler_process):
    gone = (*HOOKS, EmulationHook("upstream_module.renamed", lambda: None, "AFTER"))
    hooks.install(gone)
    registry.apply_hooks()  # upstream only logs
    with pytest.raises(RuntimeError, match=r"upstream_module\.renamed"):
        hooks.verify(gone)


def test_garbage_collection_is_on_again_once_hooks_are_applied(registry):
    hooks.install(HOOKS)
    gc.disable()
    try:
        registry.apply_hooks()
        assert gc.isenabled()
    finally:
        gc.enable()


@pytest.mark.parametrize(("fully_idle", "naps"), [(True, 0), (False, 1)])
def test_only_a_scheduler_with_waiting_work_naps(monkeypatch, fully_idle, naps):
    slept = []
    monkeypatch.setattr(hooks.time, "sleep", slept.append)
    hooks.nap_when_waiting(None, SimpleNamespace(is_fully_idle=lambda: fully_idle))
    assert len(slept) == naps


def test_transferred_blocks_are_counted_in_tokens_in_every_pool_layout(monkeypatch):
    moved = []
    monkeypatch.setattr(device, "transfer", moved.append)
    # Two buffers (K and V) of 16 bytes a token in pages of 4: three pages, then one.
    manager = SimpleNamespace(kv_args=SimpleNamespace(kv_item_lens=[64, 64], page_size=4))
    blocks = [(0, 0, 192), (0, 0, 64), (0, 0, 192), (0, 0, 64)]
    assert hooks.modelled_transfer(manager, "peer", blocks) == 0
    assert moved == [16]


def registry_kind(name):
    return sys.modules[_REGISTRY].HookType[name]


class Polled:
    """A socket or poller that records how long it was asked to wait."""

    def __init__(self, answers: list[bool]) -> None:
        self.waits: list[float] = []
        self._answers = answers

    def poll(self, milliseconds: float) -> bool:
        self.waits.append(milliseconds)
        return self._answers.pop(0)


def test_a_rank_that_others_wait_for_sleeps_for_milliseconds_only():
    slept = []
    sleeper = SimpleNamespace(poller=Polled([False]))
    rank = SimpleNamespace(attn_dp_enabled=True, idle_sleeper=sleeper)
    hooks.sleep_when_idle(slept.append, rank)
    assert not slept
    assert 0 < sleeper.poller.waits[0] <= 5

    alone = SimpleNamespace(attn_dp_enabled=False, idle_sleeper=sleeper)
    hooks.sleep_when_idle(slept.append, alone)
    assert slept == [alone]


def test_the_controller_of_ranks_waits_for_requests(monkeypatch):
    class EndError(Exception):
        """Ends the loop."""

    def dispatch(request: object) -> None:
        dispatched.append(request)
        if len(dispatched) == 2:
            raise EndError

    dispatched: list[object] = []
    socket = Polled([True, False, False, True])
    io_struct = types.ModuleType("sglang.srt.managers.io_struct")
    io_struct.sock_recv = lambda _socket: f"request {len(socket.waits)}"
    monkeypatch.setitem(sys.modules, io_struct.__name__, io_struct)
    fed = []
    controller = SimpleNamespace(
        recv_from_tokenizer=socket,
        soft_watchdog=SimpleNamespace(feed=lambda: fed.append(None)),
        _request_dispatcher=dispatch,
    )
    with pytest.raises(EndError):
        hooks.dispatch_requests(controller)
    assert dispatched == ["request 1", "request 4"]
    assert min(socket.waits) >= 100
    assert len(fed) == 4


def test_the_step_of_all_ranks_travels_in_upstreams_gather(monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(device, "_device", device.EmulatedDevice(load_profile("tiny-fast")))

    def row(tokens: int, pairs: int, *, prefill: bool, free_s: float) -> "torch.Tensor":
        device.current().free_s = free_s
        numbers = [tokens, tokens, 1, int(prefill), 0, 0, 0, 0, 1, 0, pairs]
        return hooks.add_free_time(torch.tensor(numbers, dtype=torch.int64), "cpu")

    rows = [row(3, 500, prefill=False, free_s=7.5), row(40, 90, prefill=True, free_s=8.25)]
    gathered = SimpleNamespace(
        global_num_tokens=[3, 40], global_attention_pairs=[500, 90], tp0_info_cpu=torch.stack(rows)
    )
    hooks.set_step(None, gathered)
    work = (RankWork(False, 3, 500), RankWork(True, 40, 90))
    assert device.current().step == RankStep(work, 8.25)
