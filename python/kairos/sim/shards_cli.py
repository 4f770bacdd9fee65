"""The command of `scripts/simulate_shards.py`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson

from kairos.command_line import CommandParser, whole_numbers
from kairos.errors import InputError
from kairos.sim.presentation import plot_shards
from kairos.sim.shard_layout import ENGINES
from kairos.sim.shard_study import ShardStudy, compare_bindings, layouts, measure
from kairos.validation import Range, check_range
from kairos.workload.slo_sets import SLO_SETS

DEFAULT_PROFILE = "minimax-m2.5-tp4-h200"

DESCRIPTION = """\
Simulate router shards: how TTFT attainment depends on the number of pairs behind one router.
With --compare, simulate the rules by which a router binds requests to instances instead.

Prefill is simulated under urgency or FCFS. Decode is reduced to memory and to one token per 30 ms.
Arrivals are Poisson, of requests drawn from a trace without shared prefixes; with --compare, they
are those of the trace. A balancer chooses the shard: at random ("random"), or the shard with the
least requests ("least"). Figures are simulated, except the CPU time of the dispatchers
("router us"), which is measured on this machine.
"""

EPILOG = """\
examples:
  # 16 pairs behind one router, and cut into shards of 8, 4, 2 and 1:
  python scripts/simulate_shards.py --trace trace.jsonl.gz --pairs 16

  # The same at a higher load, shards of 2 and 8 pairs only, with a plot:
  python scripts/simulate_shards.py --trace trace.jsonl.gz --pairs 16 --per-shard 2,8 \\
    --load 1.1 --plot shards.png

  # Late binding beside other rules on the first 1,500 requests:
  python scripts/simulate_shards.py --trace trace.jsonl.gz --compare --first 1500

exit code: 0; 2 bad input
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the simulations that `argv` describes.

    Args:
        argv: arguments without the program's name; None takes the process's own.

    Returns:
        Exit code; see `--help`.
    """
    try:
        args = parser().parse_args(argv)
        study = ShardStudy(args.trace, args.profile, args.slo, args.load, args.engine)
        rows = _compare(study, args) if args.compare else _measure(study, args)
        if args.json is not None:
            args.json.write_bytes(orjson.dumps(rows, option=orjson.OPT_INDENT_2))
        if args.plot is not None and not args.compare:
            plot_shards(rows, args.plot)
    except (InputError, OSError) as error:
        print(f"simulate_shards: {error}", file=sys.stderr)
        return 2
    return 0


def parser() -> argparse.ArgumentParser:
    """The parser of `scripts/simulate_shards.py`."""
    parser = CommandParser(
        prog="simulate_shards",
        usage="simulate_shards --trace FILE [options]",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    # fmt: off
    add = parser.add_argument_group("workload").add_argument
    add("--trace", required=True, metavar="FILE",
        help="trace file, any format that `kairos simulate` reads")
    add("--load", type=float, default=0.9, metavar="RHO",
        help="prefill load per instance (default 0.9; --compare has 0.7, 0.9 and 1.1)")
    add("--slo", choices=SLO_SETS, default="L3", help="SLO set (default L3)")
    add("--requests", type=int, default=100, metavar="N",
        help="requests per pair, at least 3000 in all (default 100)")
    add("--profile", default=DEFAULT_PROFILE, metavar="NAME|FILE",
        help="latency profile of every instance (default %(default)s)")
    add = parser.add_argument_group("shards").add_argument
    add("--pairs", type=whole_numbers, default=[2, 4, 8, 16, 32, 64], metavar="N,N",
        help="pairs of a prefill and a decode instance in all (default 2,4,8,16,32,64)")
    add("--per-shard", type=whole_numbers, metavar="N,N",
        help="simulate only these sizes of a shard, in pairs (default: all powers of two)")
    add("--engine", choices=ENGINES, default="urgency",
        help="order inside prefill instances (default urgency)")
    add = parser.add_argument_group("rules of binding").add_argument
    add("--compare", action="store_true",
        help="compare rules of binding on 2P1D and 2P2D at loads 0.7, 0.9 and 1.1")
    add("--first", type=int, default=2_000, metavar="N",
        help="with --compare: requests of the trace (default 2000)")
    add = parser.add_argument_group("output").add_argument
    add("--json", type=Path, metavar="FILE", help="write the figures to FILE")
    add("--plot", type=Path, metavar="FILE",
        help="write a plot over the size of a shard to FILE; not with --compare")
    # fmt: on
    return parser


def _measure(study: ShardStudy, args: argparse.Namespace) -> list[dict[str, Any]]:
    """A row per layout, printed as it comes."""
    check_range("--load", args.load, Range(1e-3, 1e3))
    check_range("--requests", args.requests, Range(1, 1e7))
    rows = []
    print("pairs shards per-shard balancer  TTFT %  spread    p50     p99  router us   cores")
    for pairs in args.pairs:
        for layout in layouts(pairs, args.per_shard, args.engine):
            row = measure(study, layout, args.requests)
            rows.append(row)
            print(
                f"{row['pairs']:5} {row['shards']:6} {row['pairs_per_shard']:9} "
                f"{row['balancer']:8} {row['ttft_attainment']:7.2f} {row['spread']:7.2f} "
                f"{row['ttft_p50_s']:6.2f} {row['ttft_p99_s']:7.1f} {row['router_us']:10.0f} "
                f"{row['router_cores']:7.3f}",
                flush=True,
            )
    return rows


def _compare(study: ShardStudy, args: argparse.Namespace) -> list[dict[str, Any]]:
    """A row per load, engine, layout and rule of binding, printed as it comes."""
    check_range("--first", args.first, Range(2, 1e9))
    rows = []
    print("load engine  instances  binding        TTFT %    p50    p99  cached %  router us")
    for row in compare_bindings(study, args.first):
        rows.append(row)
        print(
            f"{row['load']:4} {row['engine']:8} 2P{row['decode']}D      {row['binding']:12} "
            f"{row['ttft_attainment']:8.1f} {row['ttft_p50_s']:6.2f} {row['ttft_p99_s']:6.1f} "
            f"{row['cached_share']:9.1f} {row['router_us']:10.0f}",
            flush=True,
        )
    return rows
