"""A decode server's queues and memory, as preallocation finds them."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from sglang.srt.kairos import upstream
from sglang.srt.kairos.decode.preallocation import DecodePreallocation
from sglang.srt.kairos.decode.rows import DecodeRows
from sglang.srt.kairos.request_slo import RequestSlo
from sglang.srt.kairos.request_state import RequestState
from sglang.srt.kairos.shared_clock import SharedClock

from kairos.latency import load_profile
from kairos.policy.length import LengthEstimator
from kairos.slo import Slo, SloClasses
from support.decode_loop import Allocator, Batch, DecodeReq
from support.fake_req import FakeSamplingParams
from support.fake_scheduler import FakeServerArgs

CAPACITY_TOKENS = 100_000
RESERVED_TOKENS = 512


@dataclass(eq=False)
class Waiting:
    """A request that waits for memory, or for its KV."""

    req: upstream.Req
    waiting_for_input: bool = True


def waiting(
    number: int, tokens: int, max_new: int = 100, host: str = "10.0.0.1", lora: str | None = None
) -> Waiting:
    """A prompt whose handshake is done."""
    return Waiting(retracted(number, tokens, max_new, host, lora))


def retracted(
    number: int, tokens: int, max_new: int = 100, host: str = "10.0.0.1", lora: str | None = None
) -> DecodeReq:
    """A request without memory."""
    slo = RequestState(RequestSlo(Slo(10_000.0, 50.0), 0.0), number)
    options = FakeSamplingParams(max_new_tokens=max_new)
    return DecodeReq(slo, [1] * tokens, [], options, lora_id=lora, bootstrap_host=host)


@dataclass
class TransferQueue:
    """`arrived`: requests whose KV has arrived."""

    queue: list[upstream.DecodeRequest] = field(default_factory=list)
    arrived: list[upstream.Req] = field(default_factory=list)

    def pop_transferred(self) -> list[upstream.Req]:
        return self.arrived


@dataclass
class PreallocQueue:
    """`free_tokens`: KV tokens to give away."""

    queue: list[upstream.DecodeRequest]
    free_tokens: int
    req_to_token_pool: Allocator
    retracted_queue: list[upstream.Req] = field(default_factory=list)
    req_to_metadata_buffer_idx_allocator: Allocator = field(default_factory=lambda: Allocator(64))
    num_reserved_decode_tokens: int = RESERVED_TOKENS

    def _allocatable_token_budgets(
        self, retractable_tokens: int | None = None, count_retracted: bool = True
    ) -> int:
        return self.free_tokens


@dataclass
class Scheduler:
    """Upstream's scheduler, as preallocation uses it.

    Attributes:
        adapter_without_slot: a LoRA adapter that has no slot and would not get one.
    """

    running_batch: Batch
    disagg_decode_prealloc_queue: PreallocQueue
    server_args: FakeServerArgs = field(default_factory=FakeServerArgs)
    max_total_num_tokens: int = CAPACITY_TOKENS
    page_size: int = 1
    enable_lora: bool = False
    adapter_without_slot: str | None = None
    disagg_decode_transfer_queue: TransferQueue = field(default_factory=TransferQueue)
    waiting_queue: list[upstream.Req] = field(default_factory=list)

    def can_schedule_lora_req(self, req: upstream.Req, running_loras: set[str | None]) -> bool:
        return req.lora_id in running_loras or req.lora_id != self.adapter_without_slot


class DecodeServer:
    """A decode server with prompts that wait for memory.

    Args:
        free: KV tokens to give away.
        rows: requests that may get memory at most.
        prompts: what waits.
        running: requests of a hundred tokens that run.
    """

    def __init__(self, free: int, rows: int, prompts: Sequence[Waiting], running: int = 1) -> None:
        self.now = 1.0
        self.queue = PreallocQueue(list(prompts), free, Allocator(rows))
        residents = [retracted(0, 100) for _ in range(running)]
        self.scheduler = Scheduler(Batch(residents, Allocator()), self.queue)
        self.connect()

    def connect(self) -> None:
        """Make Kairos read the scheduler's options again."""
        self.preallocation = DecodePreallocation(
            load_profile("tiny-fast").prefill,
            DecodeRows(SloClasses(Slo(2_000.0, 50.0))),
            LengthEstimator(),
            SharedClock(1, lambda: self.now),
            self.scheduler,
            None,
        )

    def arrange(self) -> list[int]:
        """Numbers of the prompts that upstream will look at, in order."""
        self.preallocation.arrange(self.queue)
        return [one.req.kairos.number for one in self.queue.queue if one.waiting_for_input]
