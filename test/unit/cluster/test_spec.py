"""Command lines and environment of a cluster's processes."""

import pytest

from kairos.cluster import ClusterSpec
from kairos.errors import InputError

SERVER = ("python", "-m", "server")


def spec(**fields):
    return ClusterSpec(model="/models/a b", server_command=SERVER, **fields)


@pytest.mark.parametrize(("prefill", "decode"), [(1, 0), (0, 2), (-1, 1), (-1, -1)])
def test_half_a_pair_is_refused(prefill, decode):
    with pytest.raises(InputError, match="at least one of each, or none"):
        spec(prefill=prefill, decode=decode)


def test_role_flags_follow_common_flags_and_the_launchers_come_last():
    argv = spec(args=("--x",), prefill_args=("--p",), decode_args=("--d",)).server_argv(
        "prefill", "127.0.0.1", 30, 40
    )
    assert argv == [
        *SERVER,
        *("--model-path", "/models/a b", "--x", "--p"),
        *("--host", "127.0.0.1", "--port", "30"),
        *("--disaggregation-mode", "prefill", "--disaggregation-bootstrap-port", "40"),
    ]


def test_a_decode_server_has_no_bootstrap_port():
    argv = spec(decode_args=("--d",)).server_argv("decode", "127.0.0.1", 30, None)
    assert argv[-2:] == ["--disaggregation-mode", "decode"]
    assert "--d" in argv
    assert "--disaggregation-bootstrap-port" not in argv


def test_a_single_server_is_not_disaggregated():
    single = spec(prefill=0, decode=0)
    assert not single.disaggregated
    assert "--disaggregation-mode" not in single.server_argv("single", "127.0.0.1", 30, None)


@pytest.mark.parametrize("kairos", [True, False])
def test_kairos_is_a_flag_of_every_server(kairos):
    for role in ("prefill", "decode", "single"):
        argv = spec(kairos=kairos).server_argv(role, "127.0.0.1", 30, None)
        assert ("--kairos" in argv) is kairos


def test_bytecode_is_written_in_every_environment(monkeypatch):
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    assert "PYTHONDONTWRITEBYTECODE" not in spec(env={"A": "1"}).process_env()
    assert spec(env={"A": "1"}).process_env()["A"] == "1"


def test_loopback_bypasses_a_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "example.org")
    monkeypatch.delenv("NO_PROXY", raising=False)
    env = spec().process_env()
    assert env["no_proxy"] == "example.org,127.0.0.1,localhost"
    assert env["NO_PROXY"] == "127.0.0.1,localhost"


def test_router_command_is_that_of_the_chosen_router():
    assert spec().router_argv()[1:] == [
        *("-m", "sglang_router.launch_router", "--pd-disaggregation", "--mini-lb")
    ]
    assert spec(router="kairos").router_argv()[1:] == ["-m", "kairos.router"]
    assert spec(router="kairos", router_command=("r",)).router_argv() == ["r"]
