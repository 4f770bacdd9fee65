"""`sglang.srt.managers.scheduler_components.dp_attn`: what all data-parallel ranks run."""

from typing import TYPE_CHECKING

from kairos_patches.current_state import scheduler_state
from kairos_patches.hook import Hook, HookKind, HookProcess, UpstreamDependency

if TYPE_CHECKING:
    from sglang.srt.kairos.upstream import MLPSyncBatchInfo


def all_gather(result: None, gathered: "MLPSyncBatchInfo", *args: object, **kwargs: object) -> None:
    """Note what the other data-parallel ranks run."""
    scheduler_state().gathered(gathered.global_num_tokens, gathered.global_attention_pairs)


HOOKS = [
    Hook(
        module="sglang.srt.managers.scheduler_components.dp_attn",
        name="MLPSyncBatchInfo.all_gather",
        kind=HookKind.AFTER,
        process=HookProcess.SCHEDULER,
        call=all_gather,
        changes="Nothing: the tokens and the attention work of every data-parallel rank are noted.",
        why="A batch lasts as long as that of the slowest rank, and upstream keeps no attention "
        "work of the others on the batch.",
        test="test/engine/test_data_parallel.py",
    ),
]
DEPENDENCIES: list[UpstreamDependency] = []
