"""The commands of `kairos replay`: replay, report and compare."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from kairos.errors import InputError
from kairos.replay import exit_codes
from kairos.replay.report.model import Extras, headline, subtitle
from kairos.replay.report.results import Arm, by_load, check_comparable, read_arms
from kairos.replay.report.writer import terminal_table, write_report
from kairos.replay.run.local_cluster import ClusterOf
from kairos.replay.run.record_file import records_in, rejected_in, writable

if TYPE_CHECKING:
    from rich.console import Console

GOODPUT = ("simulated", "engine", "none")


def replay(options: argparse.Namespace, command: Sequence[str], cluster_of: ClusterOf) -> int:
    """Everything that a replay's command line asks for; returns the exit code."""
    from rich.console import Console

    from kairos.replay.report.engine_goodput import EngineGoodput
    from kairos.replay.run.session import ReplaySession

    console = Console()
    session = ReplaySession(options, command, cluster_of, console)
    limit = options.max_runs
    if limit is not None and limit < 1:
        raise InputError(f"--max-runs: {limit} is not allowed; at least 1")
    todo = session.todo()
    left = len(todo) if limit is None else limit
    for run in todo[:left]:
        session.run(run)
    rest = len(todo) - left
    searched: dict[str, Any] = {}
    cut_short = False
    if options.goodput == "engine" and rest <= 0:
        search = EngineGoodput(session, console, None if limit is None else -rest)
        searched = search.search()
        cut_short = search.cut_short
    arms = read_arms(session.record_files(), rejected=session.rejected_files())
    code = publish(
        arms,
        options.out,
        console,
        goodput=options.goodput,
        searched=searched,
        force=options.force,
    )
    if rest > 0 or cut_short:
        rest_name = f"{rest} runs" if rest > 0 else "probes of the goodput search"
        console.print(f"{rest_name} are left; go on with --resume")
    return code


def report(options: argparse.Namespace) -> int:
    """`replay report DIR`."""
    from rich.console import Console

    arms = read_arms(records_in(options.folder), rejected=rejected_in(options.folder))
    return publish(arms, options.folder, Console(), goodput=options.goodput, force=options.force)


def compare(options: argparse.Namespace) -> int:
    """`replay compare DIR DIR... --out DIR`."""
    from rich.console import Console

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


def publish(
    arms: Sequence[Arm],
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
    from kairos.replay.report.simulated import fidelity, simulated_figures, simulated_goodput

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
        return exit_codes.SERVERS_FAILED
    return 0 if all(header.counts for header in headers) else exit_codes.DISTURBED
