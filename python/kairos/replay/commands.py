"""Reports from records: of one folder, of several, and after a replay."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from kairos.errors import InputError
from kairos.replay.campaign import records_in, rejected_in

if TYPE_CHECKING:
    from rich.console import Console

    from kairos.replay.results import Arm

GOODPUT = ("simulated", "engine", "none")


def report(options: argparse.Namespace) -> int:
    """`replay report DIR`."""
    from rich.console import Console

    from kairos.replay.results import read_arms

    arms = read_arms(records_in(options.folder), rejected=rejected_in(options.folder))
    return publish(arms, options.folder, Console(), goodput=options.goodput, force=options.force)


def compare(options: argparse.Namespace) -> int:
    """`replay compare DIR DIR... --out DIR`."""
    from rich.console import Console

    from kairos.replay.results import read_arms

    folders: list[Path] = options.folders
    arms = [
        arm
        for folder, label in zip(folders, labels(folders), strict=True)
        for arm in read_arms(records_in(folder), label, rejected_in(folder))
    ]
    return publish(
        arms, writable(options.out), Console(), goodput=options.goodput, force=options.force
    )


def labels(folders: Sequence[Path]) -> list[str]:
    """What is put in front of the arms of each folder: as much of its path as tells it from the
    others; nothing where there is one.

    Raises:
        InputError: a folder is named twice.
    """
    paths = [folder.resolve() for folder in folders]
    if len(set(paths)) < len(paths):
        raise InputError("compare: a folder is named twice")
    if len(paths) < 2:
        return [""]
    depth = 1
    while len({path.parts[-depth:] for path in paths}) < len(paths):
        depth += 1
    return ["/".join(path.parts[-depth:]) + "/" for path in paths]


def writable(path: Path) -> Path:
    """The folder `path`, made when missing.

    Raises:
        InputError: it cannot be written to.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / "report.json"
        probe.open("ab").close()
        if not probe.stat().st_size:
            probe.unlink()
    except OSError as error:
        raise InputError(f"--out: cannot write to {path}: {error.strerror}") from error
    return path


def publish(
    arms: Sequence["Arm"],
    folder: Path,
    console: "Console",
    *,
    goodput: str = "none",
    searched: dict[str, Any] | None = None,
    force: bool = False,
) -> int:
    """Write the report and show its table.

    Args:
        goodput: "simulated" searches it.
        searched: found on the engine already.

    Returns:
        Exit code: 1 where servers died in a run, 3 where one was disturbed; runs that were left out
        of the figures, and those made again, are no exception.

    Raises:
        InputError: the arms of a load cannot be compared.
    """
    from kairos.replay.cli import INVALID
    from kairos.replay.report import Extras, headline, subtitle, terminal_table, write_report
    from kairos.replay.results import by_load, check_comparable
    from kairos.replay.simulated import fidelity, simulated_figures, simulated_goodput

    groups = by_load(arms)
    for group in groups.values():  # before anything is computed from what does not fit together
        check_comparable(group, force=force)
    simulated: dict[float, dict[str, Any]] = {}
    differences: dict[float, dict[str, Any]] = {}
    for load, group in groups.items():
        simulated[load] = {
            arm.name: simulated_figures(arm.header, arm.runs[0].records) for arm in group
        }
        differences[load] = {
            arm.name: fidelity(simulated[load][arm.name], arm.summary) for arm in group
        }
    found: dict[str, Any] = dict(searched or {})
    if goodput == "simulated":
        for arm in groups[headline(groups)]:
            result = simulated_goodput(arm.header, arm.runs[0].records)
            found[arm.name] = {"in": "simulator", "loads": msgspec.to_builtins(result)}
    extras = Extras(simulated, differences, found)
    write_report(arms, folder, extras, force=force)
    for group in groups.values():
        console.print(f"\n{subtitle(group)}", highlight=False, style="dim")
        console.print(terminal_table(group))
    for arm in arms:
        if arm.summary.note:
            verdict = "disturbed" if arm.counts else "NOT VALID"
            where = f"{arm.name} at load {arm.header.load:g}"
            console.print(f"{where}: {verdict}: {arm.summary.note}", style="red")
        for header in arm.left_out:
            where = f"{arm.name} at load {header.load:g}, run {header.repeat}"
            reason = "; ".join(header.troubles)
            console.print(f"{where}: NOT VALID, left out: {reason}", style="red")
    for name in ("report.html", "report.png", "report.json"):
        console.print(str(folder / name), highlight=False, soft_wrap=True)
    headers = [h for arm in arms for h in (*(run.header for run in arm.runs), *arm.left_out)]
    if any(header.note for header in headers):
        return 1
    return 0 if all(header.counts for header in headers) else INVALID
