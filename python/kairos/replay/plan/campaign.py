"""The runs of a replay and their order."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kairos.errors import InputError


@dataclass(frozen=True, slots=True)
class ReplayRun:
    """One run of a replay.

    Attributes:
        arm: server configuration; "url" for servers that run already.
        load: offered prefill load.
        repeat: number of the run among those of this arm and load, from 1.
        position: number of the run among all, from 1.
        stem: name of its files: requests-STEM.jsonl, forwards-STEM.jsonl, logs/STEM.
    """

    arm: str
    load: float
    repeat: int
    position: int
    stem: str

    def records(self, out: Path) -> Path:
        """Return the path of its record file in the folder `out`."""
        return out / f"requests-{self.stem}.jsonl"

    def forwards(self, out: Path) -> Path:
        """Return the path of its device trace in the folder `out`."""
        return out / f"forwards-{self.stem}.jsonl"


def runs_of(arms: Sequence[str], loads: Sequence[float], repeats: int) -> list[ReplayRun]:
    """Return all runs in the order in which they are made.

    Every arm runs once before any arm runs again, and the order of arms is reversed each time, so
    that a machine that drifts favours no arm.

    Raises:
        InputError: `repeats` is out of range.
    """
    if not 1 <= repeats <= 1000:
        raise InputError(f"--repeats: {repeats} is out of range, allowed are 1 to 1000")
    rounds = itertools.product(range(1, repeats + 1), loads)
    runs: list[ReplayRun] = []
    for turn, (repeat, load) in enumerate(rounds):
        for arm in arms if turn % 2 == 0 else reversed(arms):
            stem = arm
            if len(loads) > 1:
                stem += f"@{load:g}"
            if repeat > 1:
                stem += f".r{repeat}"
            runs.append(ReplayRun(arm, load, repeat, len(runs) + 1, stem))
    return runs
