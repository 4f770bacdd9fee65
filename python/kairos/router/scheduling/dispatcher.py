"""Who goes next, to which pair, and when: the router's one queue and its model of the instances."""

from enum import Enum
from typing import Any

from kairos.latency import Profile
from kairos.router.scheduling.load import InstanceLoad
from kairos.router.scheduling.params import DispatchParams
from kairos.router.scheduling.verdict import Verdict
from kairos.router.scheduling.work import Assignment, Work


class Role(Enum):
    """What an instance does."""

    PREFILL = "prefill"
    DECODE = "decode"


class Dispatcher:
    """All of it runs on one thread; nothing in it waits. Times are monotonic seconds and must not
    go back. Every event of an id that is not known (any more) is ignored, so that late events of
    ended requests do no harm.

    A request is queued (`offer`, `requeue`), then dispatched (`dispatch`), then gone (`finished`,
    `cancelled`). The owner calls `dispatch` after every event and at `next_wake_s`.

    Args:
        params: bounds and shares; `configure` changes them later.
    """

    def __init__(self, params: DispatchParams | None = None) -> None:
        raise NotImplementedError

    def configure(self, params: DispatchParams) -> None:
        """Apply new bounds and shares; what waits already stays."""
        raise NotImplementedError

    def add_instance(
        self,
        key: str,
        role: Role,
        profile: Profile | None = None,
        *,
        preemptive: bool = False,
        kv_tokens: int | None = None,
        max_running: int | None = None,
    ) -> None:
        """A new instance; it is available at once.

        Args:
            key: `host:port`; names it in assignments.
            profile: latency model; None: speed is learned from what is observed, requests are
                dispatched early until then.
            preemptive: it orders its own prefill work by urgency (Kairos engines), so an urgent
                request may be sent to it while it works on a long prompt.
            kv_tokens: KV capacity; None: the profile's, or what its reports say. Unknown
                everywhere: KV is not limited by the router.
            max_running: requests in its batch at most; None as for `kv_tokens`.

        Raises:
            InputError: the key is known already, or a limit is not positive.
        """
        raise NotImplementedError

    def remove_instance(self, key: str) -> list[int]:
        """Forget an instance; ids of the requests that were dispatched to it (either leg). The
        owner ends or requeues these. KeyError if it is not known."""
        raise NotImplementedError

    def set_available(self, key: str, available: bool) -> None:
        """Nothing is dispatched to an instance that is not available; what it holds stays."""
        raise NotImplementedError

    def forget_cache(self, key: str) -> None:
        """The instance was restarted or its prefix cache flushed."""
        raise NotImplementedError

    def has_pair(self) -> bool:
        """Whether a prefill and a decode instance are available."""
        raise NotImplementedError

    def offer(self, work: Work, now_s: float) -> Verdict:
        """Queue a request, or reject it.

        Raises:
            InputError: its id is known already, or a number in it makes no sense.
        """
        raise NotImplementedError

    def dispatch(self, now_s: float) -> list[Assignment]:
        """Requests to send now, most urgent first; they count as sent when this returns."""
        raise NotImplementedError

    def next_wake_s(self, now_s: float) -> float | None:
        """When `dispatch` should be called again if nothing happens before; None: only events
        matter."""
        raise NotImplementedError

    def prefill_done(self, id: int, now_s: float) -> None:
        """The prefill leg answered: the prompt is computed."""
        raise NotImplementedError

    def first_token(self, id: int, now_s: float) -> None:
        """The decode leg sent its first token; implies `prefill_done`."""
        raise NotImplementedError

    def finished(self, id: int, now_s: float, output_tokens: int | None = None) -> None:
        """The request ended normally. `output_tokens`: as counted, None where not known."""
        raise NotImplementedError

    def cancelled(self, id: int, now_s: float) -> None:
        """The request is gone: withdrawn, failed or expired. Call it when its legs have ended; what
        it holds counts as free then."""
        raise NotImplementedError

    def requeue(self, id: int, now_s: float) -> bool:
        """A dispatched request waits again, as if it had never been sent; bounds do not apply.
        False if it is not dispatched."""
        raise NotImplementedError

    def loads(self, key: str, load: InstanceLoad, now_s: float) -> None:
        """A report of an instance."""
        raise NotImplementedError

    def waiting(self) -> int:
        """Requests that are queued."""
        raise NotImplementedError

    def snapshot(self, now_s: float) -> dict[str, Any]:
        """Plain values for /workers, /metrics and logs: queue (requests, sequences, bytes, work_s)
        and per instance key: role, available, dispatched, backlog_s, kv_reserved_tokens,
        kv_capacity_tokens, report_age_s, stale."""
        raise NotImplementedError
