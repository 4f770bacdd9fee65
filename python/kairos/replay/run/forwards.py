"""What emulated devices did during a run, read from their trace."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

LAG_LIMIT_S = 0.02
"""A longer pause before a step of new requests only is taken for having had nothing to do."""


class DeviceReport(msgspec.Struct, frozen=True, kw_only=True):
    """What emulated devices did during a run.

    Attributes:
        prefill_busy_percent, decode_busy_percent: of the time from the first arrival to the end,
            mean over servers.
        decode_tokens_per_busy_s: tokens per second of decode time.
        decode_batch_mean: requests in a decode step.
        prefill_batches: how many.
    """

    prefill_busy_percent: float
    decode_busy_percent: float
    decode_tokens_per_busy_s: float
    decode_batch_mean: float
    prefill_batches: int


class Forward(msgspec.Struct, frozen=True, gc=False):
    """One forward or KV transfer, a `DeviceRecord` of the emulation. Monotonic seconds."""

    role: str
    pid: int
    kind: str
    batch: int
    tokens: int
    launch_s: float
    duration_s: float
    end_s: float
    bubble_s: float
    rids: list[str] = []
    new: list[int] = []
    joined: list[str] = []
    left: list[str] = []

    @property
    def start_s(self) -> float:
        """When the device began with it."""
        return self.end_s - self.duration_s


def read_forwards(path: Path) -> tuple[list[Forward], int]:
    """All forwards of a trace in order of their start, and how many of its lines are damaged, as a
    killed server or a full disk leaves them; none where there is no file."""
    if not path.exists():
        return [], 0
    decoder = msgspec.json.Decoder(Forward)
    found = []
    damaged = 0
    for line in path.read_bytes().splitlines():
        try:
            found.append(decoder.decode(line))
        except msgspec.DecodeError:
            damaged += 1
    found.sort(key=lambda f: f.start_s)
    return found, damaged


def decode_lag_percent(forwards: Sequence[Forward], dilate: float = 1.0) -> float | None:
    """Time that decode devices waited for their host between steps, in percent of the time they
    computed; of the worst server. None without decode steps.

    A pause counts however long it was where the step carries on requests of the one before: the
    device had work then.
    """
    waited: dict[int, float] = {}
    computed: dict[int, float] = {}
    for f in forwards:
        if f.kind != "decode":
            continue
        computed[f.pid] = computed.get(f.pid, 0.0) + f.duration_s
        if f.bubble_s < LAG_LIMIT_S * dilate or f.batch > len(f.joined):
            waited[f.pid] = waited.get(f.pid, 0.0) + f.bubble_s
    return max((100.0 * waited.get(pid, 0.0) / computed[pid] for pid in computed), default=None)


def engine_tpot_ms(
    forwards: Sequence[Forward], output_tokens: Mapping[str, int]
) -> dict[str, float]:
    """TPOT on the engine's clock: from the start of a request's first decode step to the end of
    the one that made its last token, per token. Requests that were not decoded to their end, or
    have one token, are left out.

    Args:
        output_tokens: per rid, the first one included, which prefill makes.
    """
    running: dict[int, set[str]] = {}
    steps: dict[str, int] = {}
    first: dict[str, float] = {}
    result = {}
    for f in forwards:
        if f.kind != "decode":
            continue
        active = running.setdefault(f.pid, set())
        active.difference_update(f.left)
        active.update(f.joined)
        for rid in active:
            wanted = output_tokens.get(rid, 0) - 1
            count = steps[rid] = steps.get(rid, 0) + 1
            if count == 1:
                first[rid] = f.start_s
            # Upstream may run a request once more than needed before it notices its end.
            if count == wanted:
                result[rid] = 1e3 * (f.end_s - first[rid]) / wanted
    return result


def device_use(forwards: Sequence[Forward], seconds: float) -> DeviceReport | None:
    """Use of the devices over a run of `seconds`; None without a forward of either kind."""
    prefill = [f for f in forwards if f.kind == "prefill"]
    decode = [f for f in forwards if f.kind == "decode"]
    if not prefill or not decode or seconds <= 0.0:
        return None
    decode_s = sum(f.duration_s for f in decode)
    return DeviceReport(
        prefill_busy_percent=_busy_percent(prefill, seconds),
        decode_busy_percent=_busy_percent(decode, seconds),
        decode_tokens_per_busy_s=round(sum(f.batch for f in decode) / decode_s, 1),
        decode_batch_mean=round(sum(f.batch * f.duration_s for f in decode) / decode_s, 2),
        prefill_batches=len(prefill),
    )


def _busy_percent(forwards: Sequence[Forward], seconds: float) -> float:
    servers = len({f.pid for f in forwards})
    return round(100.0 * sum(f.duration_s for f in forwards) / (servers * seconds), 2)
