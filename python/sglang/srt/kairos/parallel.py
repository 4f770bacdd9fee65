"""The place of this process among the ranks of its server."""

from sglang.srt.kairos.upstream import ServerArgs


def attention_ranks(server_args: ServerArgs) -> int:
    """Return the number of data-parallel attention ranks; 1 without data-parallel attention."""
    # Here, because importing it takes seconds; a server has it loaded.
    from sglang.srt.arg_groups.model_override_base import resolving_view

    ranks: int = resolving_view(server_args).attn_dp_size
    return ranks


def attention_rank() -> int:
    """Return the index of this process among them."""
    from sglang.srt.runtime_context import get_parallel

    rank: int = get_parallel().attn_dp_rank
    return rank


def first_rank() -> bool:
    """Return whether this process is the first of all ranks of its server."""
    from sglang.srt.runtime_context import get_parallel

    return bool(get_parallel().tp_rank == 0)
