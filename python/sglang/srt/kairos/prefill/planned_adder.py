"""Upstream's prefill adder under the limits of a planned batch."""

from collections.abc import Callable

from sglang.srt.kairos.upstream import PrefillAdder, Req


def planned_adder(
    base: type[PrefillAdder], continued_limit: Callable[[], int | None]
) -> type[PrefillAdder]:
    """Return a class of adders that form planned batches.

    Args:
        base: upstream's class.
        continued_limit: returns the most tokens of the continued prompt in the batch being formed.
    """

    def add_chunked_req(adder: PrefillAdder, req: Req) -> Req | None:
        """Leave tokens beside the continued prompt for the prompts that are planned with it."""
        adder.chunked_req_limit = continued_limit()
        return base.add_chunked_req(adder, req)

    def select_prefill_admission(
        adder: PrefillAdder, req: Req, *, has_chunked_req: bool = False, **sizes: int
    ) -> object:
        """Refuse a second unfinished prompt in a batch, which the scheduler cannot track."""
        admission = base._select_prefill_admission(
            adder, req, has_chunked_req=has_chunked_req, **sizes
        )
        if has_chunked_req and getattr(admission, "is_chunked", False):
            # Here, because importing it takes seconds; a scheduler has it loaded.
            from sglang.srt.managers.schedule_policy import AddReqResult

            return AddReqResult.OTHER
        return admission

    members = {
        "add_chunked_req": add_chunked_req,
        "_select_prefill_admission": select_prefill_admission,
    }
    return type("PlannedPrefillAdder", (base,), members)
