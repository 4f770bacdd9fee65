"""Use of emulated devices during a run, read from their trace."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

IDLE_GAP_S = 0.02
"""A pause of at least this many seconds before a step of new requests only counts as idle time."""


class DeviceReport(msgspec.Struct, frozen=True, kw_only=True):
    """Use of the emulated devices during a run.

    Attributes:
        prefill_busy_percent: busy share of prefill devices, from the first arrival to the end,
            mean over servers.
        decode_busy_percent: the same of decode devices.
        decode_tokens_per_busy_s: tokens per second of decode time.
        decode_batch_mean: mean number of requests in a decode step of one rank, weighted by time.
        prefill_batches: number of prefill batches.
        decode_barrier_idle_percent: share of the steps of decode devices in which a data-parallel
            attention rank waits for the slowest one; None for servers without ranks.
    """

    prefill_busy_percent: float
    decode_busy_percent: float
    decode_tokens_per_busy_s: float
    decode_batch_mean: float
    prefill_batches: int
    decode_barrier_idle_percent: float | None = None


class Forward(msgspec.Struct, frozen=True, gc=False):
    """One forward pass or KV transfer, a `DeviceRecord` of the emulation.

    Times are monotonic seconds.

    Attributes:
        role: role of the server.
        pid: process id of the server.
        kind: "prefill", "decode", "idle" in a step of other ranks, or a transfer.
        batch: number of requests.
        tokens: number of new tokens.
        launch_s: time at which the host launched it.
        duration_s: time for which the device computed.
        end_s: time at which the device finished.
        bubble_s: time for which the device waited before it.
        waited_s: part of the duration in which it waited for the slowest rank.
        rids: requests of a prefill batch.
        new: new tokens of each of `rids`.
        joined: requests that joined the decode batch in this step.
        left: requests that left the decode batch before this step.
    """

    role: str
    pid: int
    kind: str
    batch: int
    tokens: int
    launch_s: float
    duration_s: float
    end_s: float
    bubble_s: float
    waited_s: float = 0.0
    rids: list[str] = []
    new: list[int] = []
    joined: list[str] = []
    left: list[str] = []

    @property
    def start_s(self) -> float:
        """Time at which the device began."""
        return self.end_s - self.duration_s


def read_forwards(path: Path) -> tuple[list[Forward], int]:
    """Read a device trace.

    Returns:
        All forwards in order of their start, and the number of damaged lines, as a killed server or
        a full disk leaves them. Both are empty without a file.
    """
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
    """Return the time that decode devices waited for their host between steps.

    A pause counts in full where the step continues requests of the previous step, because the
    device had work then.

    Returns:
        Percent of the computing time, of the worst server; None without decode steps.
    """
    waited: dict[int, float] = {}
    computed: dict[int, float] = {}
    for f in forwards:
        if f.kind != "decode":
            continue
        computed[f.pid] = computed.get(f.pid, 0.0) + f.duration_s
        if f.bubble_s < IDLE_GAP_S * dilate or f.batch > len(f.joined):
            waited[f.pid] = waited.get(f.pid, 0.0) + f.bubble_s
    return max((100.0 * waited.get(pid, 0.0) / computed[pid] for pid in computed), default=None)


def engine_tpot_ms(
    forwards: Sequence[Forward], output_tokens: Mapping[str, int]
) -> dict[str, float]:
    """Return the TPOT of requests on the engine's clock, in ms by rid.

    It is the time from the start of a request's first decode step to the end of the step of its
    last token, per token. Requests of one token, or not decoded to their end, are left out.

    Args:
        forwards: device trace in order of start.
        output_tokens: output length by rid, including the first token, which prefill computes.
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
            # Upstream may run a request for one step more before it notices the end.
            if count == wanted:
                result[rid] = 1e3 * (f.end_s - first[rid]) / wanted
    return result


def device_use(forwards: Sequence[Forward], seconds: float) -> DeviceReport | None:
    """Return the use of the devices over a run of `seconds`; None if a role has no forward."""
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
        decode_barrier_idle_percent=_barrier_idle_percent(forwards),
    )


def _barrier_idle_percent(forwards: Sequence[Forward]) -> float | None:
    steps = [f for f in forwards if f.role == "decode" and f.kind in ("decode", "idle")]
    waited_s = sum(f.waited_s for f in steps)
    if not waited_s:
        return None
    return round(100.0 * waited_s / sum(f.duration_s for f in steps), 2)


def _busy_percent(forwards: Sequence[Forward], seconds: float) -> float:
    servers = len({f.pid for f in forwards})
    return round(100.0 * sum(f.duration_s for f in forwards) / (servers * seconds), 2)
