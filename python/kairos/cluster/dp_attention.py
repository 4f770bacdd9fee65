"""Data-parallel attention of the servers of a cluster: ranks per role, and what excludes it."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple, Self

from kairos.errors import InputError

_FLAG = "--dp-attention"


class _Excluded(NamedTuple):
    """A server flag that cannot be combined with data-parallel attention here.

    Attributes:
        option: the flag.
        reason: why it cannot, and what can be used in its place.
    """

    option: str
    reason: str


_EXCLUDED = (
    *(
        _Excluded(option, f"{_FLAG} gives the number of ranks. Leave it out")
        for option in (
            *("--attn-dp-size", "--attention-data-parallel-size"),
            *("--dp-size", "--data-parallel-size", "--enable-dp-attention"),
        )
    ),
    *(
        _Excluded(
            option,
            "the ranks of every stage would have steps of their own. "
            "Leave it out and start more servers, or more ranks",
        )
        for option in ("--pp-size", "--pipeline-parallel-size")
    ),
    _Excluded(
        "--enable-two-batch-overlap",
        "the halves of a batch would be steps of their own, and overlap on a GPU only. "
        "Leave it out",
    ),
    _Excluded(
        "--elastic-ep-backend",
        "a step waits for a fixed number of ranks. "
        "Leave it out, and start another server for another number of ranks",
    ),
    _Excluded(
        "--moe-a2a-backend",
        "all-to-all backends need a GPU. Leave it out: the ranks then gather their tokens",
    ),
    _Excluded(
        "--speculative-algorithm",
        "its kernels need a GPU, and the latency profile has no time for drafts. Leave it out",
    ),
)
_TENSOR_PARALLEL = ("--tp-size", "--tensor-parallel-size")


@dataclass(frozen=True)
class DpAttention:
    """Number of data-parallel attention ranks in a server of each role; 1 is a server without.

    Every rank has its own queue, KV cache and attention. The ranks of a server share the other
    weights and run every step together.

    Attributes:
        prefill: ranks of a prefill server, or of a single one.
        decode: ranks of a decode server.

    Raises:
        InputError: a number below 1.
    """

    prefill: int = 1
    decode: int = 1

    def __post_init__(self) -> None:
        if min(self.prefill, self.decode) < 1:
            raise InputError(
                f"{_FLAG} {self}: at least 1 rank per server, "
                "which is a server without data-parallel attention"
            )

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the ranks that a command line gives.

        Args:
            text: "N" for both roles, or "P,D" for prefill and decode servers.

        Raises:
            InputError: neither of both, or a number below 1.
        """
        try:
            numbers = [int(part) for part in text.split(",")]
            prefill, decode = numbers if len(numbers) > 1 else numbers * 2
        except ValueError:
            raise InputError(
                f"{_FLAG} {text}: give one number for all servers, such as 2, or those of prefill "
                "and decode servers, such as 2,4"
            ) from None
        return cls(prefill, decode)

    def __str__(self) -> str:
        return str(self.prefill) if self.prefill == self.decode else f"{self.prefill},{self.decode}"

    def ranks(self, role: str) -> int:
        """Return the ranks of a server of a role: "prefill", "decode" or "single"."""
        return self.decode if role == "decode" else self.prefill

    def server_args(self, role: str) -> tuple[str, ...]:
        """Return the flags of a server of a role; none for a server without ranks."""
        ranks = self.ranks(role)
        return () if ranks == 1 else ("--tp-size", str(ranks), "--attn-dp-size", str(ranks))

    def check(self, role: str, args: Sequence[str]) -> None:
        """Refuse flags that a server with these ranks cannot have.

        Args:
            role: role of the server.
            args: its further flags.

        Raises:
            InputError: names the flag, the reason and the alternative.
        """
        ranks = self.ranks(role)
        if ranks == 1:
            return
        flags = dict(pairwise([*args, ""]))
        flags |= dict(argument.split("=", 1) for argument in args if "=" in argument)
        for option, reason in _EXCLUDED:
            if option in flags:
                raise InputError(f"{option} is not supported with {_FLAG} {ranks}: {reason}.")
        for option in _TENSOR_PARALLEL:
            size = flags.get(option, str(ranks))
            if not size.isdecimal() or int(size) % ranks or int(size) < ranks:
                raise InputError(
                    f"{option} {size} is not supported with {_FLAG} {ranks}: every rank has the "
                    f"same number of devices. Give a multiple of {ranks}, or leave it out."
                )
