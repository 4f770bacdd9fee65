"""The commands of `kairos replay`: replay, report and compare."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from kairos.errors import InputError
from kairos.extras import check_bench_extra
from kairos.replay import exit_codes
from kairos.replay.report.model import Extras, headline, subtitle
from kairos.replay.report.results import ArmResult, by_load, check_comparable, read_arms
from kairos.replay.report.writer import terminal_table, write_report
from kairos.replay.run.local_cluster import ClusterOf
from kairos.replay.run.options import ReplayOptions
from kairos.replay.run.record_file import records_in, rejected_in, writable

if TYPE_CHECKING:
    from rich.console import Console

GOODPUT = ("simulated", "engine", "none")
_PURPOSE = "kairos replay"


def replay(options: ReplayOptions, command: Sequence[str], cluster_of: ClusterOf) -> int:
    """Make the runs that are not done yet and write the report.

    Args:
        options: the command line, parsed.
        command: the command line as entered, for the record files.
        cluster_of: describes the servers of an arm.

    Returns:
        The exit code.

    Raises:
        InputError: a value is not allowed, or the bench extra is not installed.
    """
    console = _console()
    from kairos.replay.report.engine_goodput import EngineGoodput
    from kairos.replay.run.session import ReplaySession

    session = ReplaySession(options, command, cluster_of, console)
    limit = options.max_runs
    if limit is not None and limit < 1:
        raise InputError(f"--max-runs: {limit} is not allowed; at least 1")
    todo = session.todo()
    made = len(todo) if limit is None else limit
    for run in todo[:made]:
        session.run(run)
    rest = len(todo) - made
    searched: dict[str, Any] = {}
    cut_short = False
    if options.goodput == "engine" and rest <= 0:
        search = EngineGoodput(session, None if limit is None else -rest)
        searched = search.results()
        cut_short = search.cut_short
    arms = read_arms(session.record_files(), rejected=session.rejected_files())
    found = None if options.goodput == "simulated" else searched
    code = publish(arms, options.out, console, found, force=options.force)
    if rest > 0 or cut_short:
        remaining = f"{rest} runs" if rest > 0 else "probes of the goodput search"
        console.print(f"{remaining} are left; go on with --resume")
    return code


def report(folder: Path, goodput: str, force: bool) -> int:
    """Write the report of a folder of records again.

    Args:
        folder: folder of the records, which receives the report.
        goodput: "simulated" searches it in the simulator, "none" leaves it out.
        force: compare runs of other work; the report names the differences.

    Returns:
        The exit code.

    Raises:
        InputError: the folder has no readable records, or they cannot be compared.
    """
    console = _console()
    arms = read_arms(records_in(folder), rejected=rejected_in(folder))
    found: dict[str, Any] | None = None if goodput == "simulated" else {}
    return publish(arms, folder, console, found, force=force)


def compare(folders: Sequence[Path], out: Path, goodput: str, force: bool) -> int:
    """Write one report of the records in several folders.

    Args:
        folders: folders of records.
        out: folder that receives the report.
        goodput: "simulated" searches it in the simulator, "none" leaves it out.
        force: compare runs of other work; the report names the differences.

    Returns:
        The exit code.

    Raises:
        InputError: a folder has no readable records, or they cannot be compared.
    """
    console = _console()
    arms = [
        arm
        for folder, label in zip(folders, labels(folders), strict=True)
        for arm in read_arms(records_in(folder), label, rejected_in(folder))
    ]
    found: dict[str, Any] | None = None if goodput == "simulated" else {}
    return publish(arms, writable(out), console, found, force=force)


def labels(folders: Sequence[Path]) -> list[str]:
    """Return the prefix of the arms of each folder.

    It is as much of the path as tells the folder from the others, and empty for a single folder.

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


def publish(
    arms: Sequence[ArmResult],
    folder: Path,
    console: "Console",
    goodput: Mapping[str, Any] | None,
    *,
    force: bool = False,
) -> int:
    """Write the report and print its table.

    Args:
        arms: arms of one load or several.
        folder: existing folder.
        console: terminal output.
        goodput: goodput per arm, for report.json; None searches it in the simulator.
        force: compare runs of other work; the report names the differences.

    Returns:
        The exit code: 1 if servers died in a run, 3 if a run was disturbed. Runs that were left out
        of the figures or made again count, too.

    Raises:
        InputError: the arms of a load cannot be compared.
    """
    groups = by_load(arms)
    for group in groups.values():  # before figures are computed from runs that differ
        check_comparable(group, force=force)
    found = _simulated_goodput(groups) if goodput is None else goodput
    write_report(arms, folder, _extras(groups, found), force=force)
    for group in groups.values():
        console.print(f"\n{subtitle(group)}", highlight=False, style="dim")
        console.print(terminal_table(group))
    _print_problems(arms, console)
    for name in ("report.html", "report.png", "report.json"):
        console.print(str(folder / name), highlight=False, soft_wrap=True)
    headers = [h for arm in arms for h in (*(run.header for run in arm.runs), *arm.left_out)]
    if any(header.note for header in headers):
        return exit_codes.SERVERS_FAILED
    return 0 if all(header.counts for header in headers) else exit_codes.DISTURBED


def _console() -> "Console":
    check_bench_extra(_PURPOSE)
    from rich.console import Console

    return Console()


def _simulated_goodput(groups: Mapping[float, Sequence[ArmResult]]) -> dict[str, Any]:
    """Search the goodput of the headline load's arms in the simulator."""
    from kairos.replay.report.simulated import simulated_goodput

    found: dict[str, Any] = {}
    for arm in groups[headline(groups)]:
        result = simulated_goodput(arm.header, arm.runs[0].records)
        found[arm.name] = {"in": "simulator", "loads": msgspec.to_builtins(result)}
    return found


def _extras(groups: Mapping[float, Sequence[ArmResult]], goodput: Mapping[str, Any]) -> Extras:
    from kairos.replay.report.simulated import fidelity, simulated_figures

    simulated: dict[float, dict[str, Any]] = {}
    differences: dict[float, dict[str, Any]] = {}
    for load, group in groups.items():
        simulated[load] = {
            arm.name: simulated_figures(arm.header, arm.runs[0].records) for arm in group
        }
        differences[load] = {
            arm.name: fidelity(simulated[load][arm.name], arm.summary) for arm in group
        }
    return Extras(simulated, differences, goodput)


def _print_problems(arms: Sequence[ArmResult], console: "Console") -> None:
    for arm in arms:
        if arm.summary.note:
            state = "disturbed" if arm.counts else "NOT VALID"
            where = f"{arm.name} at load {arm.header.load:g}"
            console.print(f"{where}: {state}: {arm.summary.note}", style="red")
        for header in arm.left_out:
            where = f"{arm.name} at load {header.load:g}, run {header.repeat}"
            reason = "; ".join(header.problems)
            console.print(f"{where}: NOT VALID, left out: {reason}", style="red")
