"""Flags, on upstream's own parser."""

import argparse
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from sglang.srt.kairos import config as kairos_config
from sglang.srt.kairos.config import (
    ENV,
    KairosConfig,
    activate,
    config_from_args,
    config_from_env,
    config_of_launch,
)
from sglang.srt.kairos.support import refuse_unsupported

from kairos.errors import InputError
from kairos.slo import Slo, SloClasses


def parse(*flags: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    kairos_config.add_arguments(parser)
    return parser.parse_args(flags)


def test_without_the_flag_there_is_no_config() -> None:
    assert config_from_args(parse()) is None


def test_defaults() -> None:
    config = config_from_args(parse("--kairos"))
    assert config is not None
    assert config.classes.default == Slo()
    assert config.classes.default.best_effort
    assert config.profile == "minimax-m2.5-tp4-h200"


def test_classes_may_be_repeated_and_listed() -> None:
    config = config_from_args(
        parse("--kairos", "--kairos-slo-class", "a=1,2", "b=3,4", "--kairos-slo-class", "c=5,6")
    )
    assert config is not None
    assert list(config.classes.named) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--kairos-ttft-slo-ms", "5"], "--kairos-ttft-slo-ms has no effect without --kairos"),
        (["--kairos-hold"], "--kairos-hold has no effect without --kairos"),
        (["--kairos", "--kairos-state-dir", "/dev/null/x"], "--kairos-state-dir /dev/null/x: Not"),
        (["--kairos-slo-class", "a=1,2"], "--kairos-slo-class has no effect without --kairos"),
        (["--kairos", "--kairos-ttft-slo-ms", "-5"], "--kairos-ttft-slo-ms: '-5' is not allowed"),
        (["--kairos", "--kairos-tpot-slo-ms", "nan"], "--kairos-tpot-slo-ms: 'nan'"),
        (["--kairos", "--kairos-ttft-slo-ms", "9e99"], "allowed are 1 to 3600000 milliseconds"),
        (["--kairos", "--kairos-slo-class", "a=1"], "'a=1' is not NAME=TTFT_MS,TPOT_MS"),
        (["--kairos", "--kairos-slo-class", "a=1,2", "a=3,4"], "'a' is defined twice"),
        (["--kairos", "--kairos-profile", "nope"], "unknown profile 'nope'"),
    ],
)
def test_bad_flags_are_refused_with_the_flag(flags: list[str], message: str) -> None:
    with pytest.raises(InputError) as error:
        config_from_args(parse(*flags))
    assert message in str(error.value)


def test_config_survives_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENV, "")
    config = config_from_args(
        parse(
            *("--kairos", "--kairos-tpot-slo-ms", "30", "--kairos-slo-class", "a=1,2", "b=3,4"),
            *("--kairos-hold", "--kairos-state-dir", str(tmp_path / "new" / "folder")),
        )
    )
    assert config is not None
    assert config.hold
    assert config.state_dir == str(tmp_path / "new" / "folder")
    activate(config)
    assert kairos_config.active_config() == config
    monkeypatch.undo()
    kairos_config.active_config.cache_clear()


@pytest.mark.parametrize("given", [None, "0", "--kairos-tpot-slo-ms 70"])
def test_a_launch_does_not_inherit_flags_of_an_earlier_one(
    given: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ENV, given or "")
    if given is None:
        monkeypatch.delenv(ENV)
    kairos_config._given_text.cache_clear()
    first = config_of_launch(parse("--kairos", "--kairos-tpot-slo-ms", "30"))
    assert first is not None
    activate(first)
    second = config_of_launch(parse())
    tpot_ms = None if second is None else second.classes.default.tpot_ms
    assert tpot_ms == (70 if given and "70" in given else None)
    assert os.environ.get(ENV) == given
    monkeypatch.undo()
    kairos_config._given_text.cache_clear()
    kairos_config.active_config.cache_clear()


@pytest.mark.parametrize("text", ["", " ", "0"])
def test_environment_off(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENV, text)
    assert config_from_env() is None


@pytest.mark.parametrize(
    ("text", "default"),
    [("1", Slo()), ("--kairos", Slo()), ("--kairos-tpot-slo-ms 50", Slo(tpot_ms=50))],
)
def test_environment_on(text: str, default: Slo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENV, text)
    config = config_from_env()
    assert config is not None
    assert config.classes.default == default


@pytest.mark.parametrize(
    "text",
    ["yes", "--kairos-ttft-slo-ms", "--kairos-nope 3", "--kairos-tpot-slo-ms -1", "--kairos '"],
)
def test_environment_malformed(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENV, text)
    with pytest.raises(InputError):
        config_from_env()


CONFIG = KairosConfig(SloClasses(Slo(2000, 50)), "tiny-fast", ("--kairos",))
SUPPORTED = {
    "disaggregation_mode": "decode",
    "pp_size": 1,
    "tp_size": 1,
    "enable_dp_attention": False,
    "enable_two_batch_overlap": False,
    "elastic_ep_backend": None,
    "dp_size": 1,
    "attn_dp_size": 1,
    "tokenizer_worker_num": 1,
    "speculative_algorithm": None,
    "grpc_mode": False,
    "smg_grpc_mode": False,
    "grpc_port": None,
    "encoder_only": False,
    "use_ray": False,
    "enable_pd_role_switch": False,
}


RANKS = {"attn_dp_size": 2, "dp_size": 2}


def test_supported_modes_pass() -> None:
    refuse_unsupported(argparse.Namespace(**SUPPORTED), CONFIG)
    refuse_unsupported(argparse.Namespace(**{**SUPPORTED, "tp_size": 4}), CONFIG)
    refuse_unsupported(argparse.Namespace(**SUPPORTED), replace(CONFIG, hold=True))
    refuse_unsupported(argparse.Namespace(**{**SUPPORTED, **RANKS}), CONFIG)
    by_old_flag = {"dp_size": 2, "enable_dp_attention": True}
    refuse_unsupported(argparse.Namespace(**{**SUPPORTED, **by_old_flag}), CONFIG)


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        ("pp_size", 2, "--pp-size 2"),
        ("dp_size", 2, "--dp-size 2"),
        ("tokenizer_worker_num", 2, "--tokenizer-worker-num 2"),
        ("speculative_algorithm", "EAGLE", "--speculative-algorithm"),
        ("grpc_mode", True, "--grpc-mode"),
        ("smg_grpc_mode", True, "--grpc-mode"),
        ("grpc_port", 50051, "--grpc-port 50051"),
        ("encoder_only", True, "--encoder-only"),
        ("use_ray", True, "--use-ray"),
        ("enable_pd_role_switch", True, "--enable-pd-role-switch"),
    ],
)
def test_unsupported_modes_are_refused(field: str, value: object, named: str) -> None:
    with pytest.raises(InputError, match=named):
        refuse_unsupported(argparse.Namespace(**{**SUPPORTED, field: value}), CONFIG)


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        ("disaggregation_mode", "null", "--attn-dp-size 2"),
        ("enable_two_batch_overlap", True, "--enable-two-batch-overlap"),
        ("elastic_ep_backend", "nixl", "--elastic-ep-backend nixl"),
    ],
)
def test_what_data_parallel_attention_excludes_is_refused(
    field: str, value: object, named: str
) -> None:
    with pytest.raises(InputError, match=named):
        refuse_unsupported(argparse.Namespace(**{**SUPPORTED, **RANKS, field: value}), CONFIG)


def test_one_address_for_the_telemetry_of_several_ranks_is_refused() -> None:
    config = replace(CONFIG, telemetry="tcp://127.0.0.1:0")
    refuse_unsupported(argparse.Namespace(**SUPPORTED), config)
    with pytest.raises(InputError, match=r"--kairos-telemetry tcp://\S+ is not supported"):
        refuse_unsupported(argparse.Namespace(**{**SUPPORTED, **RANKS}), config)


def test_without_the_gather_of_the_ranks_they_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SGLANG_SCHEDULER_SKIP_ALL_GATHER", "1")
    with pytest.raises(InputError, match="SGLANG_SCHEDULER_SKIP_ALL_GATHER 1"):
        refuse_unsupported(argparse.Namespace(**{**SUPPORTED, **RANKS}), CONFIG)


def test_a_mode_that_upstream_has_resolved_is_refused() -> None:
    """Resolution declares values beside the options as given: a model may ask for a layout."""
    args = argparse.Namespace(**SUPPORTED, _resolved_overrides=[("a model", {"pp_size": 4})])
    with pytest.raises(InputError, match="--pp-size 4"):
        refuse_unsupported(args, CONFIG)


def test_the_embedded_rust_server_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """It serves HTTP in place of the server that Kairos hooks: SLOs would be ignored."""
    monkeypatch.setenv("SGLANG_RUST_SERVER", "1")
    with pytest.raises(InputError, match="SGLANG_RUST_SERVER 1 is not supported"):
        refuse_unsupported(argparse.Namespace(**SUPPORTED), CONFIG)


@pytest.mark.parametrize("mode", ["prefill", "null"])
def test_holding_first_tokens_is_refused_where_none_are_decoded(mode: str) -> None:
    args = argparse.Namespace(**{**SUPPORTED, "disaggregation_mode": mode})
    refuse_unsupported(args, CONFIG)
    with pytest.raises(InputError, match=f"--kairos-hold .* --disaggregation-mode {mode}"):
        refuse_unsupported(args, replace(CONFIG, hold=True))


# The rest needs a process of its own: hooks on upstream's classes stay once they are applied.
PROBE = """
import json, os, sys
from sglang.srt.plugins import load_plugins
load_plugins()
from sglang.srt.server_args import prepare_server_args
for flags in json.loads(sys.argv[1]):
    prepare_server_args(flags)
from sglang.srt.kairos.config import active_config
config = active_config()
print(json.dumps({
    "on": config is not None,
    "flags": config and list(config.flags),
    "http": "sglang.srt.entrypoints.http_server" in sys.modules,
}))
"""


def probe(*flags: str, more: tuple[tuple[str, ...], ...] = ()) -> subprocess.CompletedProcess[str]:
    """Parse a command line in a process of its own, and then `more` command lines."""
    lines = [["--model-path", "none", *line] for line in (flags, *more)]
    return subprocess.run(
        [sys.executable, "-c", PROBE, json.dumps(lines)],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        # The platform stands in for the GPU packages that the HTTP server imports.
        env={**os.environ, "SGLANG_PLATFORM": "kairos-cpu"},
    )


@pytest.mark.slow
def test_flags_on_upstreams_parser_and_in_its_config_file(tmp_path: Path) -> None:
    file = tmp_path / "server.yaml"
    file.write_text(
        "kairos: true\nkairos-tpot-slo-ms: 30\nkairos-slo-class: ['a=1000,20', 'b=2000,40']\n"
    )
    done = probe("--config", str(file), "--kairos-ttft-slo-ms", "900")
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout.splitlines()[-1])
    assert seen["on"]
    assert seen["http"]
    assert "a=1000,20" in seen["flags"]
    assert "b=2000,40" in seen["flags"]
    assert seen["flags"][seen["flags"].index("--kairos-ttft-slo-ms") + 1] == "900"


@pytest.mark.slow
def test_off_is_off_in_the_launcher() -> None:
    done = probe()
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout.splitlines()[-1])
    assert seen == {"on": False, "flags": None, "http": False}


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags",
    [("--kairos-tpot-slo-ms", "-1"), ("--kairos-hold",), ("--dp-size", "2")],
)
def test_a_bad_flag_is_one_line_and_exit_code_2(flags: tuple[str, ...]) -> None:
    done = probe("--kairos", *flags)
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if "kairos: error" in line]
    assert len(lines) == 1
    assert flags[0] in lines[0]
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_second_command_line_does_not_inherit_the_first() -> None:
    done = probe("--kairos", "--kairos-ttft-slo-ms", "900", more=((),))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["flags"] is None
