"""Options of one calibration, and the files that it writes."""

from dataclasses import dataclass
from pathlib import Path

from kairos.calibrate.grid import GridAxes
from kairos.errors import InputError
from kairos.validation import Range, check_range

_BUDGET_S = Range(1.0, 1e6)


@dataclass(frozen=True, slots=True)
class CalibrationConfig:
    """Options of one calibration.

    Attributes:
        urls: servers to measure; empty with `emulated`.
        emulated: profile, shipped name or path, of servers to start; None with `urls`.
        out: file of the profile.
        name: name of the profile.
        model: path or served name that the servers must have; None allows any.
        base: profile, shipped name or path, that gives the values that are not measured.
        budget_s: time for measuring, in seconds.
        axes: values along each axis of the grid.
    """

    urls: tuple[str, ...]
    emulated: str | None
    out: Path
    name: str
    model: str | None
    base: str
    budget_s: float
    axes: GridAxes

    def __post_init__(self) -> None:
        check_range("--budget-s", self.budget_s, _BUDGET_S)

    @property
    def samples(self) -> Path:
        """Return the file of the samples."""
        return self.out.with_suffix(".samples.jsonl")

    @property
    def picture(self) -> Path:
        """Return the file of the picture."""
        return self.out.with_suffix(".png")

    @property
    def logs(self) -> Path:
        """Return the log directory of servers that are started."""
        return self.out.with_suffix(".logs")

    @property
    def kind(self) -> str:
        """Return "emulated" or "measured", which labels the results."""
        return "emulated" if self.emulated else "measured"

    def check_writable(self) -> None:
        """Create the folder and the file of the samples.

        Raises:
            InputError: `out` is no JSON file, or its folder cannot be written.
        """
        if self.out.suffix != ".json":
            raise InputError(f"--out: {self.out} must end in .json")
        try:
            self.out.parent.mkdir(parents=True, exist_ok=True)
            self.samples.open("ab").close()
        except OSError as error:
            raise InputError(
                f"--out: cannot write to {self.out.parent}: {error.strerror}"
            ) from error
