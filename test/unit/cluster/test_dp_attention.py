"""Data-parallel attention of a cluster's servers: flags, and combinations that are refused."""

import pytest

from kairos.cluster import ClusterSpec, DpAttention
from kairos.errors import InputError
from kairos_emulation.cluster import with_platform


def value(argv: list[str], flag: str) -> str:
    """Return the value that counts: the last."""
    return argv[len(argv) - argv[::-1].index(flag)]


@pytest.mark.parametrize(
    ("text", "expected"), [("1", (1, 1)), ("4", (4, 4)), ("2,4", (2, 4)), ("1,2", (1, 2))]
)
def test_one_number_is_for_all_servers_and_two_are_for_the_roles(text, expected):
    ranks = DpAttention.parse(text)
    assert (ranks.prefill, ranks.decode) == expected
    assert (ranks.ranks("prefill"), ranks.ranks("decode")) == expected
    assert str(ranks) == text


@pytest.mark.parametrize("text", ["", "two", "2,", "1,2,3", "0", "2,-1", "1.5"])
def test_other_numbers_are_refused(text):
    with pytest.raises(InputError, match="--dp-attention"):
        DpAttention.parse(text)


def test_only_a_role_with_ranks_gets_the_flags():
    spec = ClusterSpec(model="/m", dp_attention=DpAttention(1, 2))
    decode = spec.server_argv("decode", "127.0.0.1", 30, None)
    assert value(decode, "--tp-size") == value(decode, "--attn-dp-size") == "2"
    assert "--attn-dp-size" not in spec.server_argv("prefill", "127.0.0.1", 30, 40)


def test_every_rank_has_the_limits_of_the_profile():
    def limits(ranks: int) -> dict[str, int]:
        spec = ClusterSpec(model="/m", dp_attention=DpAttention(ranks, ranks))
        argv = with_platform(spec, "emulated", "tiny-fast").server_argv("decode", "h", 30, None)
        flags = ("--max-running-requests", "--chunked-prefill-size", "--max-total-tokens")
        return {flag: int(value(argv, flag)) for flag in flags}

    one, three = limits(1), limits(3)
    # Upstream divides these by the number of ranks.
    assert three["--max-running-requests"] == 3 * one["--max-running-requests"]
    assert three["--chunked-prefill-size"] == 3 * one["--chunked-prefill-size"]
    assert three["--max-total-tokens"] == one["--max-total-tokens"]


def test_a_single_server_has_one_number_of_ranks():
    with pytest.raises(InputError, match="a single server has one number of ranks"):
        ClusterSpec(model="/m", prefill=0, decode=0, dp_attention=DpAttention(1, 2))
    single = ClusterSpec(model="/m", prefill=0, decode=0, dp_attention=DpAttention(2, 2))
    assert value(single.server_argv("single", "127.0.0.1", 30, None), "--attn-dp-size") == "2"


@pytest.mark.parametrize(
    "flags",
    [
        ("--attn-dp-size", "2"),
        ("--dp-size=2",),
        ("--enable-dp-attention",),
        ("--pp-size", "2"),
        ("--enable-two-batch-overlap",),
        ("--elastic-ep-backend", "mooncake"),
        ("--moe-a2a-backend", "deepep"),
        ("--speculative-algorithm", "EAGLE"),
        ("--tp-size", "3"),
        ("--tp-size=1",),
    ],
)
def test_what_excludes_ranks_is_refused_with_reason_and_alternative(flags):
    option = flags[0].partition("=")[0]
    with pytest.raises(InputError, match=rf"^{option} .*--dp-attention 2: .+\. ?.*\.$"):
        ClusterSpec(model="/m", decode_args=flags, dp_attention=DpAttention(1, 2))
    ClusterSpec(model="/m", decode_args=flags, dp_attention=DpAttention(2, 1))
    ClusterSpec(model="/m", args=flags)


def test_tensor_parallelism_inside_a_rank_is_allowed():
    spec = ClusterSpec(model="/m", args=("--tp-size", "4"), dp_attention=DpAttention(2, 2))
    argv = spec.server_argv("decode", "127.0.0.1", 30, None)
    assert (value(argv, "--tp-size"), value(argv, "--attn-dp-size")) == ("4", "2")
