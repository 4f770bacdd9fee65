"""The emulated accelerator of this process: latency model, KV link and trace.

One scheduler process drives one accelerator, so its state is the module's.
"""

import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

from kairos.errors import InputError
from kairos.latency import Chunk, Profile, load_profile
from kairos_emulation import streams
from kairos_emulation.device_trace import DeviceTimes, DeviceTrace, DeviceWork
from kairos_emulation.launch import DEFAULT_PROFILE
from kairos_emulation.rank_step import RankStep, StepTimes


@dataclass
class EmulatedDevice:
    """An accelerator that exists as a timeline only.

    Attributes:
        profile: gives the duration of forwards and transfers.
        blocking: whether a launch returns at its end, because the overlap schedule is off.
        trace: records every forward and transfer; None for no trace.
        rank: index among the data-parallel attention ranks of its server.
        step: the step of all these ranks that the next launch takes part in; None without ranks.
        free_s: monotonic time at which everything launched so far is done.
        link_end: monotonic time at which the KV link is free again.
        link_lock: guards `link_end` between transfer threads.
    """

    profile: Profile
    blocking: bool = False
    trace: DeviceTrace | None = None
    rank: int = 0
    step: RankStep | None = None
    free_s: float = 0.0
    link_end: float = 0.0
    link_lock: threading.Lock = field(default_factory=threading.Lock)
    _decoding: set[str] = field(default_factory=set)

    def prefill(self, chunks: list[Chunk], rids: Sequence[str] = ()) -> None:
        """Queue one prefill batch on the current stream.

        Args:
            chunks: of each request.
            rids: request ids, for the trace.
        """
        work = DeviceWork(
            "prefill",
            batch=len(chunks),
            tokens=sum(chunk.new for chunk in chunks),
            context=sum(chunk.context for chunk in chunks),
            rids=rids,
            new=[chunk.new for chunk in chunks] if rids else (),
        )
        self._launch(work, self.profile.prefill.batch_s(chunks))

    def decode(self, contexts: list[int], rids: Sequence[str] = ()) -> None:
        """Queue one decode step on the current stream.

        Args:
            contexts: tokens of each request's context.
            rids: request ids; the trace gets their changes from step to step.
        """
        total = sum(contexts)
        joined: list[str] = []
        left: list[str] = []
        if self.trace and rids:
            now = set(rids)
            joined, left = sorted(now - self._decoding), sorted(self._decoding - now)
            self._decoding = now
        work = DeviceWork(
            "decode",
            batch=len(contexts),
            tokens=len(contexts),
            context=total,
            joined=joined,
            left=left,
        )
        self._launch(work, self.profile.decode.step_s(len(contexts), total, max(contexts)))

    def idle(self) -> None:
        """Queue the part of a rank without requests in the step of its peers."""
        if self.step is not None:
            self._launch(DeviceWork("idle", batch=0, tokens=0, context=0), 0.0)

    def transfer(self, tokens: int) -> None:
        """Return when the KV of `tokens` tokens has crossed the link.

        Transfers queue, so senders that share the link share its bandwidth. The profile's fixed
        cost is not charged: it stands for the handshake, which upstream performs here.
        """
        duration = self.profile.kv.wire_s(tokens)
        launched = streams.now()
        with self.link_lock:
            bubble = _idle_s(self.link_end, launched)
            end = self.link_end = max(self.link_end, launched) + duration
        streams.sleep_until(end)
        if self.trace:
            work = DeviceWork("transfer", batch=1, tokens=tokens, context=0)
            self.trace.write(work, DeviceTimes(launched, duration, end, bubble))

    def _launch(self, work: DeviceWork, alone_s: float) -> None:
        """Queue work that takes `alone_s`, or as long as the step of all ranks."""
        stream = streams.current_stream()
        times = StepTimes(alone_s, 0.0)
        if self.step is not None:
            times = self.step.times(self.rank, self.profile)
            stream.end = max(stream.end, self.step.free_s)
            self.step = None
        launched = streams.now()
        bubble = _idle_s(stream.end, launched)
        end = self.free_s = stream.launch(times.duration_s)
        if self.blocking:
            streams.sleep_until(end)
        if self.trace:
            self.trace.write(
                work, DeviceTimes(launched, times.duration_s, end, bubble, times.waited_s)
            )


def _idle_s(end: float, launched: float) -> float:
    return max(0.0, launched - end) if end else 0.0  # before its first work nothing is idle


_device: EmulatedDevice | None = None


def set_current(device: EmulatedDevice | None) -> None:
    """Make `device` the process's accelerator; None for a process that has none."""
    global _device
    _device = device


def configure() -> None:
    """Create the process's accelerator from the profile that KAIROS_EMULATION_PROFILE names.

    Raises:
        InputError: the profile cannot be read or is not valid.
    """
    profile = os.environ.get("KAIROS_EMULATION_PROFILE") or DEFAULT_PROFILE
    set_current(EmulatedDevice(load_profile(profile)))


def start(role: str, blocking: bool, rank: int = 0, ranks: int = 1) -> None:
    """Set what the scheduler process alone knows, and open the trace.

    Args:
        role: "prefill", "decode" or "null", for the trace.
        blocking: whether the overlap schedule is off.
        rank: index among the data-parallel attention ranks of the server.
        ranks: their number.

    Raises:
        InputError: KAIROS_EMULATION_TRACE cannot be written, or the profile needs more than the
            ranks know of each other.
    """
    device = current()
    device.blocking = blocking
    device.rank = rank
    if ranks > 1 and device.profile.decode.straggler:
        raise InputError(
            f"profile {device.profile.name}: decode.straggler must be 0 with data-parallel "
            "attention, because upstream's ranks do not know the longest context of each other"
        )
    path = os.environ.get("KAIROS_EMULATION_TRACE")
    if path:
        try:
            device.trace = DeviceTrace(path, role)
        except OSError as error:
            raise InputError(f"KAIROS_EMULATION_TRACE: cannot write {path}: {error}") from error


def current() -> EmulatedDevice:
    """Return the process's accelerator.

    Raises:
        RuntimeError: the process has none.
    """
    if _device is None:
        raise RuntimeError("SGLANG_PLATFORM is not kairos-emulated in this process")
    return _device


def transfer(tokens: int) -> None:
    """Return when the process's accelerator has moved the KV of `tokens` tokens."""
    current().transfer(tokens)
