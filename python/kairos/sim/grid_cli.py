"""The command `kairos simulate grid`."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import orjson
from rich.console import Console

from kairos.command_line import CommandParser, count, numbers
from kairos.errors import InputError
from kairos.sim.config import UPSTREAM_ORDERS
from kairos.sim.regret import RegretCell, RegretGrid, cells_of, trace_name, worst
from kairos.sim.regret_presentation import plot_regret, table_of_regret
from kairos.sim.result_cache import ResultCache
from kairos.sim.sweep import sweep
from kairos.workload.slo_sets import SLO_SETS

DEFAULT_PROFILE = "minimax-m2.5-tp4-h200"
_TPOT_MS: Sequence[float] = (20.0, 30.0, 50.0, 100.0)
_LOADS: Sequence[float] = (0.3, 0.5, 0.7, 0.9, 1.1)
_REQUESTS = 2000
_QUICK_TPOT_MS = (20.0, 50.0)
_QUICK_LOADS = (0.7, 1.1)
_QUICK_REQUESTS = 300
_MIN_WIDTH = 110

DESCRIPTION = f"""\
Simulate the grid of regret: in each cell, a trace, a TPOT objective and a load, the end-to-end
attainment of the best of SGLang's orders ({", ".join(UPSTREAM_ORDERS)}, continuous batching) minus
that of Kairos. Servers are simulated as on the engine, without hold; the load is that of the busier
stage. A positive regret is what Kairos loses. Nothing is served, and no GPU is needed.

The full grid of five traces is 500 simulations, which take tens of minutes on two cores. Each
result is cached: the same command resumes an interrupted grid. After a change of the code, of a
trace or of the profile, it simulates anew.
"""

EPILOG = """\
examples:
  # The full grid with table, figures and heat map:
  kairos simulate grid traces/*.jsonl.gz --json grid.json --plot grid.svg

  # A subset in about a minute; exit code 1 if Kairos loses more than 0.3 points anywhere:
  kairos simulate grid traces/*.jsonl.gz --quick --limit 0.3

  # One cell again, with all figures:
  kairos simulate --trace azure.jsonl.gz --requests 2000 --as-on-engine --busier --load 0.7 \\
    --tpot-ms 20 --prefill-policy urgency,fcfs --decode-policy slack,continuous --json cell.json

exit code: 0; 1 a regret exceeds --limit; 2 bad input
"""


def main(argv: Sequence[str]) -> int:
    """Simulate a grid of regret.

    Args:
        argv: arguments behind `kairos simulate grid`.

    Returns:
        Exit code; see `--help`.
    """
    try:
        args = parser().parse_args(argv)
        grid = _grid(args)
        cells = cells_of(sweep(ResultCache(args.cache).run, grid.points(), args.workers))
        if args.json is not None:
            _write(grid, cells, args.json)
        if args.plot is not None:
            plot_regret(cells, args.plot)
    except (InputError, OSError) as error:
        print(f"simulate grid: {error}", file=sys.stderr)
        return 2
    console = Console()
    console.width = max(console.width, _MIN_WIDTH)
    console.print(table_of_regret(cells, args.limit))
    most = worst(cells)
    console.print(
        f"largest regret: {most.regret:.2f} points ({most.trace}, {most.tpot_ms:g} ms, "
        f"load {most.load:g}: {most.best_order} {most.best:.2f} %, Kairos {most.kairos:.2f} %)"
    )
    return int(most.regret > args.limit)


def parser() -> argparse.ArgumentParser:
    """The parser of `kairos simulate grid`."""
    parser = CommandParser(
        prog="kairos simulate grid",
        usage="kairos simulate grid TRACE [TRACE ...] [options]",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    # fmt: off
    add = parser.add_argument_group("workload").add_argument
    add("traces", nargs="+", metavar="TRACE",
        help="trace file: normalised, Mooncake, Azure or BurstGPT, plain or gzip")
    add("--tpot-ms", type=numbers, metavar="MS,MS",
        help="TPOT objectives (default 20,30,50,100)")
    add("--load", type=numbers, metavar="RHO,RHO",
        help="loads of the busier stage (default 0.3,0.5,0.7,0.9,1.1)")
    add("--requests", type=count, metavar="N",
        help=f"take the first N requests of each trace; 0: all (default {_REQUESTS})")
    add("--quick", action="store_true",
        help=f"TPOT objectives 20,50, loads 0.7,1.1 and {_QUICK_REQUESTS} requests, unless given")
    add("--slo", choices=SLO_SETS[:-1], default="L3", help="SLO set (default L3)")
    add("--profile", default=DEFAULT_PROFILE, metavar="NAME|FILE",
        help="latency profile of both instances (default %(default)s)")
    add = parser.add_argument_group("output").add_argument
    add("--limit", type=float, default=float("inf"), metavar="POINTS",
        help="mark larger regrets, and exit with 1 if there is one (default: none)")
    add("--json", type=Path, metavar="FILE", help="write the cells to FILE")
    add("--plot", type=Path, metavar="FILE", help="write a heat map to FILE, such as grid.svg")
    add("--cache", type=Path, default=Path(".kairos-grid"), metavar="DIR",
        help="folder of the results (default .kairos-grid)")
    add("--workers", type=count, default=0, metavar="N",
        help="processes; 0: one per core (default 0)")
    # fmt: on
    return parser


def _grid(args: argparse.Namespace) -> RegretGrid:
    names = [trace_name(path) for path in args.traces]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"{name}: two traces have this name; name each trace once")
    tpot_ms, loads, requests = _TPOT_MS, _LOADS, _REQUESTS
    if args.quick:
        tpot_ms, loads, requests = _QUICK_TPOT_MS, _QUICK_LOADS, _QUICK_REQUESTS
    return RegretGrid(
        tuple(args.traces),
        tuple(args.tpot_ms or tpot_ms),
        tuple(args.load or loads),
        requests if args.requests is None else args.requests,
        args.slo,
        args.profile,
    )


def _write(grid: RegretGrid, cells: Sequence[RegretCell], path: Path) -> None:
    body = {"simulated": True, **asdict(grid), "worst": asdict(worst(cells)), "cells": cells}
    path.write_bytes(orjson.dumps(body, option=orjson.OPT_INDENT_2) + b"\n")
