"""Commands on emulated servers: their options, their output folder and the demo's replay."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import pytest

from kairos.cluster import ClusterSpec, DpAttention
from kairos.replay.plan.arms import ArmSpec
from kairos.replay.run.local_cluster import LocalCluster
from kairos_emulation.cli import calibrate, cluster, demo, replay
from kairos_emulation.cli.output import output_folder


def make_package(root: Path) -> Path:
    package = root / "python" / "kairos_emulation"
    package.mkdir(parents=True)
    return package


def test_checkout_has_the_output_folder(tmp_path: Path) -> None:
    package = make_package(tmp_path)
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "setup.sh").touch()
    assert output_folder(package) == tmp_path / "out"


def test_installed_package_writes_to_the_current_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert output_folder(make_package(tmp_path / "site-packages")) == tmp_path / "out"


def test_flags_behind_the_dashes_go_to_the_servers() -> None:
    options, flags = cluster.parse(["--kairos", "--", "--kairos-tpot-slo-ms", "30", "--", "x"])
    assert options.kairos
    assert flags == ["--kairos-tpot-slo-ms", "30", "--", "x"]


def test_profile_without_emulation_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert cluster.main(["--platform", "cpu", "--profile", "tiny-fast"]) == 2
    assert "--profile: allowed with --platform emulated only" in capsys.readouterr().err


def test_half_a_pair_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert cluster.main(["--decode", "0"]) == 2
    assert "at least one of each" in capsys.readouterr().err


@pytest.mark.parametrize("command", [cluster, demo, calibrate, replay])
def test_help_has_examples(command: object, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exited:
        command.main(["--help"])  # type: ignore[attr-defined]  # a module
    assert exited.value.code == 0
    assert "examples:" in capsys.readouterr().out


@pytest.fixture
def replayed(monkeypatch: pytest.MonkeyPatch) -> list[Sequence[str]]:
    calls: list[Sequence[str]] = []

    def record(argv: Sequence[str]) -> int:
        calls.append(argv)
        return 3

    monkeypatch.setattr(replay, "main", record)
    return calls


def test_demo_passes_its_arguments_behind_its_own(replayed: list[Sequence[str]]) -> None:
    assert demo.main(["--load", "1.1"]) == 3
    (argv,) = replayed
    assert tuple(argv[: len(demo.OPTIONS)]) == demo.OPTIONS
    assert list(argv[-2:]) == ["--load", "1.1"]


def test_emulated_prefill_pool_holds_the_cache_beside_prompts_in_work() -> None:
    arm = ArmSpec("mine", "an arm", prefill_args=("--flag",), router="kairos")
    local = LocalCluster(
        arm=arm,
        prefill=1,
        decode=2,
        dp_attention=DpAttention(),
        profile="tiny-fast",
        mini_lb=False,
        cache_tokens=1000,
        kv_tokens=400,
    )
    spec = replay.emulated_cluster(local)
    assert isinstance(spec, ClusterSpec)
    assert (spec.prefill, spec.decode, spec.router) == (1, 2, "kairos")
    assert spec.prefill_args[-3:] == ("--max-total-tokens", "1100", "--flag")
    ranks = replay.emulated_cluster(dataclasses.replace(local, dp_attention=DpAttention(2, 4)))
    assert ranks.dp_attention == DpAttention(2, 4)
    # The ranks share the cache. Each has room for the prompts that it works on.
    assert ranks.prefill_args[-3:] == ("--max-total-tokens", "600", "--flag")
