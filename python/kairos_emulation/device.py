"""The emulated accelerator of this process: latency model, KV link and trace.

One scheduler process drives one accelerator, so its state is the module's.
"""

import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from kairos.errors import InputError
from kairos.latency import Chunk, Profile, load_profile
from kairos_emulation import streams
from kairos_emulation.device_trace import DeviceTrace
from kairos_emulation.launch import DEFAULT_PROFILE


@dataclass
class EmulatedDevice:
    """Attributes:
    profile: where durations come from.
    blocking: a launch returns only at its end, as the overlap schedule is off.
    trace: writes every forward and transfer, None for no trace.
    link_end: monotonic time at which the KV link is free again.
    """

    profile: Profile
    blocking: bool = False
    trace: DeviceTrace | None = None
    link_end: float = 0.0
    link_lock: threading.Lock = field(default_factory=threading.Lock)
    _decoding: set[str] = field(default_factory=set)

    def prefill(self, chunks: list[Chunk], rids: Sequence[str] = ()) -> None:
        """Queue one prefill batch on the current stream. `rids` go into the trace."""
        self._launch(
            "prefill",
            self.profile.prefill.batch_s(chunks),
            batch=len(chunks),
            tokens=sum(chunk.new for chunk in chunks),
            context=sum(chunk.context for chunk in chunks),
            rids=list(rids),
            new=[chunk.new for chunk in chunks] if rids else [],
        )

    def decode(self, contexts: list[int], rids: Sequence[str] = ()) -> None:
        """Queue one decode step over requests with these context lengths, in tokens. What changes
        in `rids` from step to step goes into the trace."""
        total = sum(contexts)
        joined: list[str] = []
        left: list[str] = []
        if self.trace and rids:
            now = set(rids)
            joined, left = sorted(now - self._decoding), sorted(self._decoding - now)
            self._decoding = now
        self._launch(
            "decode",
            self.profile.decode.step_s(len(contexts), total, max(contexts)),
            batch=len(contexts),
            tokens=len(contexts),
            context=total,
            joined=joined,
            left=left,
        )

    def transfer(self, tokens: int) -> None:
        """Return when the KV of `tokens` tokens has crossed the link.

        Transfers queue up, so whoever shares the link shares its bandwidth. The profile's fixed
        cost is left out: it stands for the handshake, which upstream really performs here.
        """
        duration = self.profile.kv.wire_s(tokens)
        launched = streams.now()
        with self.link_lock:
            bubble = _idle_s(self.link_end, launched)
            end = self.link_end = max(self.link_end, launched) + duration
        streams.sleep_until(end)
        if self.trace:
            self.trace.write(
                kind="transfer",
                batch=1,
                tokens=tokens,
                context=0,
                launch_s=launched,
                duration_s=duration,
                end_s=end,
                bubble_s=bubble,
            )

    def _launch(
        self, kind: str, duration: float, batch: int, tokens: int, context: int, **who: list[Any]
    ) -> None:
        stream = streams.current_stream()
        launched = streams.now()
        bubble = _idle_s(stream.end, launched)
        end = stream.launch(duration)
        if self.blocking:
            streams.sleep_until(end)
        if self.trace:
            self.trace.write(
                kind=kind,
                batch=batch,
                tokens=tokens,
                context=context,
                launch_s=launched,
                duration_s=duration,
                end_s=end,
                bubble_s=bubble,
                **who,
            )


def _idle_s(end: float, launched: float) -> float:
    return max(0.0, launched - end) if end else 0.0  # before its first work nothing is idle


_device: EmulatedDevice | None = None


def configure() -> None:
    """Load the profile that KAIROS_EMULATION_PROFILE names.

    Raises:
        InputError: it cannot be read or is not a valid profile.
    """
    global _device
    _device = EmulatedDevice(
        load_profile(os.environ.get("KAIROS_EMULATION_PROFILE") or DEFAULT_PROFILE)
    )


def start(role: str, blocking: bool) -> None:
    """Take over what only the scheduler process knows: its role and its schedule.

    Raises:
        InputError: KAIROS_EMULATION_TRACE cannot be written.
    """
    device = current()
    device.blocking = blocking
    path = os.environ.get("KAIROS_EMULATION_TRACE")
    if path:
        try:
            device.trace = DeviceTrace(path, role)
        except OSError as error:
            raise InputError(f"KAIROS_EMULATION_TRACE: cannot write {path}: {error}") from error


def current() -> EmulatedDevice:
    """The process's accelerator."""
    if _device is None:
        raise RuntimeError("SGLANG_PLATFORM is not kairos-emulated in this process")
    return _device


def transfer(tokens: int) -> None:
    """`EmulatedDevice.transfer` of the process's accelerator."""
    current().transfer(tokens)
