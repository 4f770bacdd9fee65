"""Command line of `scripts/evaluate.py`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from kairos.errors import InputError
from kairos.latency import load_profile
from kairos.replay.evaluation.pages import render, stale
from kairos.replay.evaluation.records import ENGINE, SIMULATED, engine_record, without_repetition
from kairos.replay.evaluation.study import SimulationStudy, simulate_trace
from kairos.replay.run.provenance import git_commit
from kairos.workload.readers import read_trace

DESCRIPTION = """\
Keep the evaluation: records of simulations and replays in docs/records, and the tables and plots
that docs/evaluation makes of them. A page states which table it wants in a comment; `render` fills
in the table behind it.
"""
EXAMPLES = """\
examples:
  # Simulate all arms on a trace (minutes), keep the figures and write all pages:
  python scripts/evaluate.py simulate --trace conversation.jsonl.gz --name 1-mooncake \\
      --label "Mooncake conversation" --requests 1000

  # Keep the report that scripts/replay.py wrote, and write all pages:
  python scripts/evaluate.py keep out/campaign --name 6-headline

  # Write tables and plots again, or only check that they are up to date:
  python scripts/evaluate.py render
  python scripts/evaluate.py render --check

exit codes: 0 done, 1 something is out of date (render --check), 2 bad input
"""


def main(argv: Sequence[str] | None, docs: Path) -> int:
    """Run one subcommand.

    Args:
        argv: arguments without the program's name; None takes the process's own.
        docs: folder that holds `records` and `evaluation`.

    Returns:
        The exit code.
    """
    options = _parser().parse_args(argv)
    try:
        if options.command == "simulate":
            _simulate(options, docs / "records")
        elif options.command == "keep":
            _keep(options.folder, docs / "records" / f"{ENGINE}{options.name}.json")
        elif options.check:
            return _check(docs)
        for path in render(docs):
            print(f"{path}: written")
    except (InputError, OSError) as error:
        print(f"evaluate: {error}", file=sys.stderr)
        return 2
    return 0


def _simulate(options: argparse.Namespace, folder: Path) -> None:
    study = SimulationStudy(
        options.label or options.name, options.requests, options.slo, options.tpot_ms
    )
    record = simulate_trace(
        study,
        read_trace(options.trace),
        load_profile(options.profile),
        git_commit(),
        progress=lambda text: print(text, flush=True),
    )
    _write(folder / f"{SIMULATED}{options.name}.json", msgspec.json.encode(record))


def _keep(folder: Path, record: Path) -> None:
    report = folder / "report.json"
    if not report.is_file():
        raise InputError(f"{report} is missing; give the folder that replay.py --out wrote")
    data = report.read_bytes()
    engine_record(str(report), data)
    _write(record, msgspec.json.encode(without_repetition(msgspec.json.decode(data))))


def _check(docs: Path) -> int:
    paths = stale(docs)
    for path in paths:
        print(f"{path}: differs from the records; run scripts/evaluate.py render", file=sys.stderr)
    return 1 if paths else 0


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.format(data, indent=1) + b"\n")
    print(f"{path}: written")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="evaluate.py",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser(
        "simulate", help="simulate all arms on a trace, keep the figures and render"
    )
    one.add_argument(
        "--trace", required=True, metavar="FILE", help="trace in any format that replay.py reads"
    )
    one.add_argument(
        "--name",
        required=True,
        help="name of the record, such as 1-mooncake; records are shown by their number",
    )
    one.add_argument(
        "--label", help="name of the trace in headings (default: the name of the record)"
    )
    one.add_argument(
        "--requests",
        type=int,
        default=2000,
        help="requests to take from the start of the trace (default %(default)s)",
    )
    one.add_argument("--slo", default="L3", help="SLO set of the requests (default %(default)s)")
    one.add_argument(
        "--tpot-ms", type=float, default=30.0, help="TPOT objective (default %(default)s)"
    )
    one.add_argument(
        "--profile", default="minimax-m2.5-tp4-h200", help="latency profile (default %(default)s)"
    )
    two = commands.add_parser("keep", help="keep the report of a replay and render")
    two.add_argument(
        "folder", type=Path, metavar="DIR", help="what replay.py --out wrote; has report.json"
    )
    two.add_argument("--name", required=True, help="name of the record, such as 6-headline")
    three = commands.add_parser("render", help="write all tables and plots from the records")
    three.add_argument(
        "--check", action="store_true", help="write nothing; exit with 1 if a file is out of date"
    )
    return parser
