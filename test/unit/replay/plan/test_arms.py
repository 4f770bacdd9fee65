"""Arms: server flags, and the simulation of the same."""

import pytest

from kairos.errors import InputError
from kairos.latency import load_profile
from kairos.replay.plan.arms import ARMS, arm_spec, parse_arms
from kairos.replay.plan.dilation import dilated
from kairos.replay.report.simulated import settings_of
from support.replay import header


def test_upstream_orders_apply_to_prefill_servers_only() -> None:
    """Decode servers have no prefix cache and refuse to start with some of the orders."""
    arm = arm_spec("sjf", "tiny-fast")
    assert arm.prefill_args == ("--schedule-policy", "shortest-prefill-first")
    assert "--schedule-policy" not in (*arm.args, *arm.decode_args)
    assert not arm.send_slo
    assert "--kairos" not in (*arm.args, *arm.prefill_args, *arm.decode_args)


def test_cap_limits_the_decode_batch_only() -> None:
    arm = arm_spec("hrrn-cap32", "tiny-fast")
    assert arm.prefill_args == ("--schedule-policy", "hrrn")
    assert arm.decode_args == ("--max-running-requests", "32")
    assert arm.simulated is not None
    assert arm.simulated.decode_cap == 32


@pytest.mark.parametrize(
    ("name", "prefill", "decode", "router"),
    [
        ("kairos", True, True, None),
        ("kairos-hold", True, True, None),
        ("kairos-no-overlap", True, True, None),
        ("kairos-urgency", True, False, None),
        ("kairos-slack", False, True, None),
        ("kairos-router", False, False, "kairos"),
        ("kairos-routed", True, True, "kairos"),
        ("kairos-all", True, True, "kairos"),
    ],
)
def test_parts_of_kairos_are_disabled_by_role(
    name: str, prefill: bool, decode: bool, router: str | None
) -> None:
    arm = arm_spec(name, "tiny-fast")
    assert ("--kairos" in arm.prefill_args) == prefill
    assert ("--kairos" in arm.decode_args) == decode
    assert ("--kairos-hold" in arm.decode_args) == (name in ("kairos-hold", "kairos-all"))
    assert ("--disable-overlap-schedule" in arm.prefill_args) == (name == "kairos-no-overlap")
    assert "--disable-overlap-schedule" not in arm.decode_args
    assert (arm.router, arm.send_slo) == (router, True)
    if arm.simulated is not None:
        assert arm.simulated.prefill_policy == ("urgency" if prefill else "fcfs")
        assert arm.simulated.decode_policy == ("slack" if decode else "continuous")
        assert arm.simulated.grants == ("deadline" if decode else "arrival")


def test_kairos_servers_know_the_classes_of_the_tiers_set() -> None:
    arm = arm_spec("kairos", "tiny-fast", "tiers")
    assert "interactive=1000,25" in arm.prefill_args
    assert "interactive=1000,25" in arm.decode_args
    assert "interactive=1000,25" in arm_spec("kairos-all", "tiny-fast", "tiers").router_args
    assert arm_spec("kairos-router", "tiny-fast").router_args[:2] == ("--profile", "tiny-fast")
    assert "interactive=1000,25" not in arm_spec("kairos", "tiny-fast", "L3").prefill_args


@pytest.mark.parametrize(
    "name",
    [
        name
        for name in ARMS
        if "route" not in name
        and name not in ("kairos-all", "kairos-no-overlap", "kairos-prefill-complete")
    ],
)
def test_simulated_arms_have_the_properties_of_an_engine(name: str) -> None:
    settings = arm_spec(name, "tiny-fast").settings(load_profile("tiny-fast"))
    assert settings is not None
    assert (settings.lookahead, settings.preallocate, settings.contention) == (True, True, True)


@pytest.mark.parametrize("text", ["", "magic", "fcfs,fcfs", "fcfs-cap0", "kairos-cap8", "fcfs-cap"])
def test_unknown_arm_names_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="--arms"):
        parse_arms(text)


@pytest.mark.parametrize("profile", ["tiny-fast", "minimax-m2.5-tp4-h200"])
def test_post_prefill_time_comes_from_the_profile(profile: str) -> None:
    servers = load_profile(profile)
    transfer_s = servers.kv.transfer_s(servers.limits.chunk_tokens)
    settings = arm_spec("kairos", profile).settings(servers)
    assert settings is not None
    assert settings.urgency.post_prefill_s == pytest.approx(0.066 + transfer_s)
    assert arm_spec("kairos-all", profile).settings(servers) is None


def test_dilation_leaves_the_hand_over_constant() -> None:
    base = load_profile("tiny-fast")
    transfer_s = base.kv.transfer_s(base.limits.chunk_tokens)
    settings = settings_of(header("kairos", profile=dilated(base, 2.0), dilate=2.0))
    assert settings is not None
    assert settings.urgency.post_prefill_s == pytest.approx(0.066 + 2.0 * transfer_s)


@pytest.mark.parametrize("name", [name for name in ARMS if name.startswith("router-")])
def test_other_routers_use_servers_without_kairos(name: str) -> None:
    arm = arm_spec(name, "tiny-fast")
    assert arm.router == ("sglang" if name == "router-upstream" else "kairos")
    assert "urgency" not in arm.router_args
    assert "--kairos" not in (*arm.args, *arm.prefill_args, *arm.decode_args)
    assert arm.simulated is None
