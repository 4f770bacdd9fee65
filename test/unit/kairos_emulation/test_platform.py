"""Activation of a platform: inert unless named, and one line for a bad profile."""

import os
import subprocess
import sys

import pytest

_REPORT = "; import sys; print(result, 'torch' in sys.modules, 'sglang' in sys.modules)"


def activate(function, **env):
    code = f"from kairos_emulation.platform import {function}; result = {function}()" + _REPORT
    base = {k: v for k, v in os.environ.items() if not k.startswith(("SGLANG", "KAIROS", "COV"))}
    return subprocess.run(
        [sys.executable, "-c", code], env={**base, **env}, capture_output=True, text=True
    )


@pytest.mark.parametrize("function", ["activate_cpu", "activate_emulated"])
@pytest.mark.parametrize("selected", [None, "", "other", "kairos"])
def test_inert_and_light_unless_selected_by_its_exact_name(function, selected):
    env = {} if selected is None else {"SGLANG_PLATFORM": selected}
    assert activate(function, **env).stdout.split() == ["None", "False", "False"]


def test_one_platform_is_not_the_other():
    assert activate("activate_cpu", SGLANG_PLATFORM="kairos-emulated").stdout[:4] == "None"
    assert activate("activate_emulated", SGLANG_PLATFORM="kairos-cpu").stdout[:4] == "None"


def test_a_bad_profile_is_one_line_and_an_exit_code(tmp_path):
    bad = tmp_path / "bad.json"
    bad.write_text('{\n  "schema": 1,\n  "name" "x"\n}\n')
    for profile, words in ((str(bad), "line 3"), ("no-such", "tiny-fast")):
        done = activate(
            "activate_emulated",
            SGLANG_PLATFORM="kairos-emulated",
            KAIROS_EMULATION_PROFILE=profile,
        )
        assert done.returncode != 0
        assert done.stdout == ""
        (line,) = done.stderr.splitlines()
        assert line.startswith("kairos-emulated: KAIROS_EMULATION_PROFILE: ")
        assert words in line


@pytest.mark.slow
def test_adapter_servers_get_ordinary_tensors_instead_of_pinned_ones():
    code = (
        "import torch; from kairos_emulation import hooks; hooks.unpin_adapters()\n"
        "made = [torch.tensor([0.0], pin_memory=True), torch.zeros(1, pin_memory=True)]\n"
        "print(*[tensor.pin_memory().is_pinned() for tensor in made])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["False", "False"], done.stderr
