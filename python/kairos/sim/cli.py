"""Simulate prefill and decode scheduling of a trace. Everything it prints is simulated."""

import argparse
import itertools
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from rich.console import Console

from kairos.errors import InputError
from kairos.sim.baselines.prefill import BASELINES
from kairos.sim.config import DECODE_POLICIES, ROUTINGS, SimConfig
from kairos.sim.presentation import plot_attainment, table_of
from kairos.sim.sweep import sweep
from kairos.sim.sweep_point import SweepPoint, run
from kairos.workload.slo_sets import DEFAULT_TPOT_MS, SLO_SETS

EXAMPLES = """\
examples:
  # One run, figures to a file:
  python scripts/simulate.py --trace trace.jsonl.gz --load 0.9 --json out.json

  # A sweep over loads and policies on all cores, with a plot:
  python scripts/simulate.py --trace trace.jsonl.gz --load 0.7,0.9,1.1 \\
    --prefill-policy fcfs,sjf,urgency --decode-policy continuous,slack --plot out.png

  # Decode alone, load relative to decode capacity; the second half of the trace only:
  python scripts/simulate.py --trace trace.jsonl.gz --stages decode --tpot-ms 25 --load 1 --part 2/2
"""


def _floats(text: str) -> list[float]:
    return [float(part) for part in text.split(",")]


def _part(text: str) -> tuple[int, int]:
    which, _, parts = text.partition("/")
    if not 1 <= int(which) <= int(parts):
        raise ValueError(text)
    return int(which), int(parts)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="simulate",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--trace", required=True, help="trace file, any format that replay.py reads")
    add("--load", type=_floats, default=[0.9], help="prefill load, or a list: 0.7,0.9")
    add("--slo", choices=SLO_SETS, default="L3")
    add("--tpot-ms", type=float, default=DEFAULT_TPOT_MS)
    add("--prefill-policy", default="urgency", help=f"urgency, {', '.join(BASELINES)}; or a list")
    add("--decode-policy", default="slack", help=f"{', '.join(DECODE_POLICIES)}; or a list")
    add("--hold", action="store_true", help="hold the first token until its decode slot is ready")
    add("--profile", default="minimax-m2.5-tp4-h200", help="shipped name or path")
    add("--instances", default="1P1D")
    add("--routing", choices=ROUTINGS, default="late")
    add("--stages", choices=("both", "prefill", "decode"), default="both")
    add("--no-lookahead", action="store_true", help="compose a batch only when the last one ended")
    add("--no-decode-lookahead", action="store_true", help="the same for decode steps only")
    add("--decode-cap", type=int, default=0, help="static cap on the decode batch")
    add("--no-lengths", action="store_true", help="do not learn output lengths")
    add("--starve-share", type=float, help="share of prefill time for starved requests")
    add("--tail-ms", type=float, default=0.0, help="time that urgency leaves before a deadline")
    add("--period", type=int, default=1, help="decode steps between two selections")
    add("--decode-bias", type=float, default=1.0, help="predicted / true step time")
    add("--prefill-bias", type=float, default=1.0, help="predicted / true batch time")
    add("--noise", type=float, default=0.0, help="relative deviation of true times")
    add("--change-cost-ms", type=float, default=0.0, help="of parking or resuming a request")
    add("--contention", action="store_true", help="transfers share the link")
    add("--preallocate", action="store_true", help="decode memory before prefill")
    add("--grants", choices=("arrival", "deadline"), default="", help="order of that memory")
    add("--admission", action="store_true", help="turn away or degrade by outlook")
    add("--part", type=_part, default=(1, 1), help="2/2: the second half of the trace")
    add("--requests", type=int, default=0, help="only so many requests")
    add("--seed", type=int, default=0, help="of the tiers and the noise")
    add("--bound", action="store_true", help="add upper bound and clairvoyant references")
    add("--workers", type=int, default=0, help="processes of a sweep; 0: all cores")
    add("--json", type=Path, help="write the figures here")
    add("--plot", type=Path, help="write a plot over load here")
    args = parser.parse_args(argv)
    for name in ("requests", "workers", "decode_cap"):
        value = getattr(args, name)
        if value < 0:
            parser.error(f"--{name.replace('_', '-')}: {value} is negative; allowed are 0 and more")
    return args


def _points(args: argparse.Namespace) -> list[SweepPoint]:
    base = SimConfig(
        instances=args.instances,
        lookahead=not args.no_lookahead,
        decode_lookahead=not args.no_decode_lookahead,
        hold=args.hold,
        routing=args.routing,
        decode_cap=args.decode_cap,
        stages=args.stages,
        lengths=not args.no_lengths,
        prefill_bias=args.prefill_bias,
        decode_bias=args.decode_bias,
        noise=args.noise,
        change_cost_s=args.change_cost_ms / 1e3,
        contention=args.contention,
        preallocate=args.preallocate,
        grants=args.grants,
        admission=args.admission,
        seed=args.seed,
    )
    base = replace(base, slack=base.slack._replace(period=args.period))
    base = replace(base, urgency=replace(base.urgency, post_prefill_s=args.tail_ms / 1e3))
    if args.starve_share is not None:
        base = replace(base, urgency=replace(base.urgency, starvation_share=args.starve_share))
    pairs = itertools.product(args.prefill_policy.split(","), args.decode_policy.split(","))
    return [
        SweepPoint(
            args.trace,
            args.part,
            args.requests,
            args.profile,
            load,
            args.slo,
            args.tpot_ms,
            args.seed,
            args.bound,
            replace(base, prefill_policy=prefill, decode_policy=decode),
        )
        for prefill, decode in pairs
        for load in args.load
    ]


def _checked(point: SweepPoint) -> dict[str, Any]:
    """`run`, with arithmetic errors as exceptions."""
    with np.errstate(all="raise", under="ignore"):
        return run(point)


def main(argv: Sequence[str] | None = None) -> int:
    args = _arguments(argv)
    try:
        results = sweep(_checked, _points(args), args.workers)
        if args.json is not None:
            body = results[0] if len(results) == 1 else {"runs": results}
            options = orjson.OPT_INDENT_2 | orjson.OPT_SERIALIZE_NUMPY
            args.json.write_bytes(orjson.dumps(body, option=options) + b"\n")
        if args.plot is not None:
            plot_attainment(results, args.plot)
    except (InputError, OSError) as error:
        print(f"simulate: {error}", file=sys.stderr)
        return 2
    title = f"simulated: {Path(args.trace).name}, {args.slo}, TPOT {args.tpot_ms:g} ms"
    console = Console()
    console.width = max(console.width, 110)
    console.print(table_of(results, title))
    return 0
