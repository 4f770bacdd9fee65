"""Cluster specifications of the platforms without a GPU."""

import pytest

from kairos.cluster import ClusterSpec
from kairos.errors import InputError
from kairos_emulation.cluster import platform_model, with_platform


def value(argv, flag):
    """The value that counts: the last."""
    return argv[len(argv) - argv[::-1].index(flag)]


def argv(spec, role):
    return spec.server_argv(role, "127.0.0.1", 30, None)


@pytest.mark.parametrize("platform", ["cpu", "emulated"])
def test_each_role_gets_its_settings_and_the_callers_flags_win(platform):
    own = ClusterSpec(
        model="/m", args=("--max-running-requests", "7"), decode_args=("--max-total-tokens", "9")
    )
    spec = with_platform(own, platform, None)
    assert spec.env["SGLANG_PLATFORM"] == f"kairos-{platform}"
    for role in ("prefill", "decode"):
        assert value(argv(spec, role), "--max-running-requests") == "7"
        assert value(argv(spec, role), "--device") == "cpu"
    assert value(argv(spec, "decode"), "--max-total-tokens") == "9"
    assert value(argv(spec, "prefill"), "--max-total-tokens") != "9"
    assert "--disaggregation-decode-retraction-backup" in argv(spec, "decode")
    assert "--disaggregation-decode-retraction-backup" not in argv(spec, "prefill")


def test_a_single_server_is_not_disaggregated():
    spec = with_platform(ClusterSpec(model="/m", prefill=0, decode=0, args=("--x",)), "cpu")
    assert not [flag for flag in argv(spec, "single") if flag.startswith("--disaggregation")]
    assert "--x" in argv(spec, "single")


def test_the_callers_variables_win():
    spec = with_platform(ClusterSpec(model="/m", env={"OMP_NUM_THREADS": "2"}), "cpu")
    assert spec.env["OMP_NUM_THREADS"] == "2"


def test_servers_without_a_device_have_a_short_stop_grace():
    assert with_platform(ClusterSpec(model="/m"), "cpu").stop_grace_s < 1
    assert ClusterSpec(model="/m").stop_grace_s >= 10


def test_an_unknown_profile_is_refused():
    with pytest.raises(InputError, match="unknown profile 'nope'"):
        with_platform(ClusterSpec(model="/m"), "emulated", "nope")


def test_existing_model_is_not_written_again(tmp_path):
    model = platform_model("emulated", tmp_path / "models")
    written = (model / "config.json").stat().st_mtime_ns
    assert platform_model("emulated", tmp_path / "models") == model
    assert (model / "config.json").stat().st_mtime_ns == written
