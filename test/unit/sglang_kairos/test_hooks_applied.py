"""Class attributes that --kairos changes in a scheduler process: exactly the hooked ones.

The process starts as upstream starts its scheduler.
"""

import json
import os
import subprocess
import sys

import pytest

from kairos_patches import HOOKS, HookProcess

# Upstream spawns its scheduler process, and unpickling the entry point imports the scheduler
# module before the plugins are loaded. This does the same.
PROBE = """
import importlib, json, multiprocessing, pkgutil, sys

OWNERS = [
    "sglang.srt.managers.scheduler.Scheduler",
    "sglang.srt.managers.schedule_policy.SchedulePolicy",
    "sglang.srt.managers.schedule_policy.PrefillAdder",
    "sglang.srt.managers.schedule_batch.Req",
    "sglang.srt.managers.schedule_batch.ScheduleBatch",
    "sglang.srt.managers.scheduler_components.request_receiver.SchedulerRequestReceiver",
    "sglang.srt.disaggregation.prefill.PrefillBootstrapQueue",
    "sglang.srt.disaggregation.prefill.SchedulerDisaggregationPrefillMixin",
    "sglang.srt.disaggregation.decode.DecodePreallocQueue",
    "sglang.srt.disaggregation.decode.SchedulerDisaggregationDecodeMixin",
    "sglang.srt.managers.scheduler_components.batch_result_processor.SchedulerBatchResultProcessor",
    "sglang.srt.managers.scheduler_components.dp_attn.MLPSyncBatchInfo",
]

def attributes():
    return {
        f"{owner}.{name}": value
        for owner in OWNERS
        for name, value in vars(pkgutil.resolve_name(owner)).items()
    }

def scheduler_process(pipe):
    from sglang.srt.plugins import load_plugins
    before = attributes()
    load_plugins()
    after = attributes()
    pipe.send(sorted(n for n in before.keys() | after.keys() if before.get(n) is not after.get(n)))

class Target:
    def __reduce__(self):
        return importlib.import_module, ("sglang.srt.managers.scheduler",)

def run(target, pipe):
    scheduler_process(pipe)

if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    child = context.Process(target=run, args=(Target(), there))
    child.start()
    there.close()
    try:
        print(json.dumps(here.recv()))
    finally:
        child.join()
        sys.exit(child.exitcode)
"""


def scheduler_process(
    factory: pytest.TempPathFactory, kairos: str
) -> subprocess.CompletedProcess[str]:
    script = factory.mktemp("probe") / "probe.py"
    script.write_text(PROBE)
    # The platform stands in for the GPU packages that the scheduler imports.
    env = {**os.environ, "SGLANG_PLATFORM": "kairos-cpu", "SGLANG_KAIROS": kairos}
    return subprocess.run(
        [sys.executable, script], capture_output=True, text=True, timeout=240, check=False, env=env
    )


def changed_attributes(factory: pytest.TempPathFactory, kairos: str) -> list[str]:
    done = scheduler_process(factory, kairos)
    assert done.returncode == 0, done.stderr
    changed = json.loads(done.stdout.splitlines()[-1])
    for name in ("on_idle", "maybe_sleep_on_idle"):  # the platform's own hooks
        changed.remove(f"sglang.srt.managers.scheduler.Scheduler.{name}")
    return changed


@pytest.mark.slow
def test_no_attribute_changes_without_the_flag(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    assert changed_attributes(tmp_path_factory, "") == []


@pytest.mark.slow
def test_exactly_the_hooked_attributes_change_with_the_flag(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    hooked = sorted(hook.symbol for hook in HOOKS if hook.process is HookProcess.SCHEDULER)
    assert changed_attributes(tmp_path_factory, "--kairos") == hooked


@pytest.mark.slow
@pytest.mark.parametrize("kairos", ["--kairos '", "--kairos-tpot-slo-ms -1"])
def test_scheduler_with_unreadable_flags_does_not_start(
    tmp_path_factory: pytest.TempPathFactory, kairos: str
) -> None:
    done = scheduler_process(tmp_path_factory, kairos)
    assert done.returncode != 0
    assert "kairos: error: " in done.stderr


@pytest.mark.slow
def test_scheduler_that_cannot_import_kairos_does_not_start(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path_factory.mktemp("broken")
    (broken / "sitecustomize.py").write_text("import sys\nsys.modules['kairos.slo'] = None\n")
    monkeypatch.setenv("PYTHONPATH", str(broken))
    done = scheduler_process(tmp_path_factory, "--kairos")
    assert done.returncode != 0
    assert "kairos: error: import of kairos.slo halted" in done.stderr
