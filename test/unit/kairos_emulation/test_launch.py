"""Environment and flags of a server without a GPU."""

import subprocess
import sys
from pathlib import Path

import pytest

from kairos.errors import InputError
from kairos.latency import load_profile
from kairos_emulation.launch import settings


def flag(args, name):
    return args[args.index(name) + 1]


def test_importing_needs_neither_torch_nor_sglang():
    code = (
        "import sys; import kairos_emulation.launch; "
        "assert not {'torch', 'sglang', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("platform", ["cpu", "emulated"])
def test_the_platform_is_selected_by_its_entry_point(platform):
    assert settings(platform, "single", None, "m").env["SGLANG_PLATFORM"] == f"kairos-{platform}"


@pytest.mark.parametrize("platform", ["cpu", "emulated"])
def test_only_disaggregated_roles_have_disaggregation_flags(platform):
    single = settings(platform, "single", None, "m").args
    prefill = settings(platform, "prefill", None, "m").args
    decode = settings(platform, "decode", None, "m").args
    assert not [argument for argument in single if "disaggregation" in argument]
    assert flag(prefill, "--disaggregation-mode") == "prefill"
    assert flag(decode, "--disaggregation-mode") == "decode"
    assert flag(decode, "--disaggregation-decode-retraction-backup") == "cpu_tensor"
    assert "--disaggregation-decode-retraction-backup" not in prefill


def test_sizes_of_an_emulated_server_come_from_the_profile():
    limits = load_profile("tiny-fast").limits
    args = settings("emulated", "decode", "tiny-fast", "m").args
    assert flag(args, "--max-total-tokens") == str(limits.kv_tokens)
    assert flag(args, "--chunked-prefill-size") == str(limits.chunk_tokens)
    assert flag(args, "--max-prefill-tokens") == str(limits.chunk_tokens)
    assert flag(args, "--max-running-requests") == str(limits.max_batch)
    assert int(flag(args, "--context-length")) <= limits.kv_tokens


@pytest.mark.parametrize(("platform", "ranks"), [("cpu", 3), ("cpu", 16), ("emulated", 65)])
def test_ranks_that_a_platform_cannot_have_are_refused(platform, ranks):
    with pytest.raises(InputError, match=rf"--dp-attention {ranks} .*which allows 1.* ranks"):
        settings(platform, "decode", None, "m", ranks)
    settings("emulated", "decode", None, "m", 3)


def test_a_profile_file_is_found_from_any_directory(tmp_path, monkeypatch):
    source = tmp_path / "mine.json"
    profiles = sys.modules["kairos.latency"].__path__[0]
    source.write_text(Path(profiles, "profiles/tiny-fast.json").read_text())
    monkeypatch.chdir(tmp_path)
    env = settings("emulated", "single", "mine.json", "m").env
    assert env["KAIROS_EMULATION_PROFILE"] == str(source)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("gpu", "single", None), "cpu, emulated"),
        (("cpu", "router", None), "prefill, decode, single"),
        (("emulated", "single", "no-such-profile"), "tiny-fast"),
    ],
)
def test_bad_input_is_refused_with_the_allowed_values(arguments, words):
    with pytest.raises(InputError, match=words):
        settings(*arguments, "m")
