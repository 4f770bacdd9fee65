"""The command `kairos simulate`."""

import argparse
import itertools
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
from rich.console import Console

from kairos.command_line import CommandParser, count, numbers
from kairos.errors import InputError
from kairos.latency import load_profile
from kairos.sim.config import (
    DECODE_POLICIES,
    GRANT_ORDERS,
    PLACEMENTS,
    PREFILL_POLICIES,
    ROUTINGS,
    STAGES,
    SimConfig,
)
from kairos.sim.presentation import plot_attainment, table_of
from kairos.sim.sweep import sweep
from kairos.sim.sweep_point import SweepPoint, run_checked
from kairos.validation import Range, check_range
from kairos.workload.slo_sets import DEFAULT_TPOT_MS, NO_SLO, SLO_SETS, in_words

DEFAULT_PROFILE = "minimax-m2.5-tp4-h200"

# Ranges of arguments that the configuration holds in another unit or under another name.
_RANGES = {
    "change_cost_ms": Range(0.0, 1e3),
    "period": Range(1, 10_000),
    "starve_share": Range(0.0, 1.0),
    "tail_ms": Range(0.0, 60e3),
}
_MIN_WIDTH = 110  # columns of the table; below it, rich cuts the figures

DESCRIPTION = """\
Simulate prefill and decode scheduling of a request trace, and print how many requests meet their
SLOs. Every figure is simulated: batch and step times come from a latency profile. Nothing is
served, and no GPU is needed. A run takes seconds.

--load, --prefill-policy and --decode-policy take several values, separated by commas; every
combination is simulated. `kairos simulate grid --help` explains the grid of regret, which compares
Kairos with the best of SGLang's orders over traces, TPOT objectives and loads.
"""

EPILOG = f"""\
SLO sets, with a TPOT objective of 30 ms:
{chr(10).join(f"  {name:<7}{in_words(name, DEFAULT_TPOT_MS)}" for name in SLO_SETS[:-1])}
  tiers  interactive, standard and batch requests with objectives of their own
  none   no objectives: every request is best effort

prefill policies:
  urgency                  Kairos
  fcfs, lpm, spf, hrrn-np  SGLang's orders: arrival, longest cached prefix, shortest prompt,
                           highest response ratio
  sjf, sjf-np, edf, llf, ff-edf, hrrn
                           textbook orders; -np: a started prompt is finished first
decode policies:
  slack       Kairos
  continuous  continuous batching: every admitted request runs in every step
  greedy      short requests first, within the tightest slack of the batch

examples:
  # One run at 90 % prefill load, figures to a file:
  kairos simulate --trace trace.jsonl.gz --load 0.9 --json out.json

  # Compare policies over several loads on all cores, with a plot:
  kairos simulate --trace trace.jsonl.gz --load 0.7,0.9,1.1 \\
    --prefill-policy fcfs,sjf,urgency --decode-policy continuous,slack --plot out.png

  # Decode alone at its capacity for a TPOT of 25 ms, on the second half of the trace:
  kairos simulate --trace trace.jsonl.gz --stages decode --tpot-ms 25 --load 1 --part 2/2

exit code: 0; 2 bad input
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the simulations that `argv` describes.

    Args:
        argv: arguments without the program's name; None takes the process's own.

    Returns:
        Exit code; see `--help`.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["grid"]:
        from kairos.sim import grid_cli

        return grid_cli.main(words[1:])
    try:
        args = parser().parse_args(words)
        results = sweep(run_checked, _points(args), args.workers)
        if args.json is not None:
            _write(results, args.json)
        if args.plot is not None:
            plot_attainment(results, args.plot)
    except (InputError, OSError) as error:
        print(f"simulate: {error}", file=sys.stderr)
        return 2
    objectives = "no objectives"
    if args.slo != NO_SLO:
        objectives = f"{args.slo}, TPOT {args.tpot_ms:g} ms"
    title = f"simulated: {Path(args.trace).name}, {objectives}"
    console = Console()
    console.width = max(console.width, _MIN_WIDTH)
    console.print(table_of(results, title))
    return 0


def parser() -> argparse.ArgumentParser:
    """The parser of `kairos simulate`."""
    parser = CommandParser(
        prog="kairos simulate",
        usage="kairos simulate --trace FILE [options]\n"
        "       kairos simulate grid TRACE [TRACE ...] [options]",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_workload(parser.add_argument_group("workload"))
    _add_objectives(parser.add_argument_group("objectives"))
    _add_scheduling(parser.add_argument_group("scheduling"))
    _add_servers(parser.add_argument_group("servers"))
    _add_model_errors(parser.add_argument_group("model errors"))
    _add_output(parser.add_argument_group("output"))
    return parser


# fmt: off
def _add_workload(group: Any) -> None:
    add = group.add_argument
    add("--trace", required=True, metavar="FILE",
        help="trace file: normalised, Mooncake, Azure or BurstGPT, plain or gzip")
    add("--load", type=numbers, default=[0.9], metavar="RHO",
        help="prefill load, or several: 0.7,0.9. At 1, prompts bring exactly the work that the "
        "prefill instances can do. With --stages decode, load of the decode stage (default 0.9)")
    add("--busier", action="store_true",
        help="--load is that of the stage with the higher load, with 1P1D; decode is at 1 when its "
        "batch is as large as the TPOT objective allows")
    add("--part", type=_part, default=(1, 1), metavar="K/N",
        help="the K-th of N equal parts of the trace (default 1/1)")
    add("--requests", type=count, default=0, metavar="N",
        help="take the first N requests of the part; 0: all (default 0)")
    add("--seed", type=int, default=0, metavar="N",
        help="seed of the tiers and of --noise (default 0)")


def _add_objectives(group: Any) -> None:
    add = group.add_argument
    add("--slo", choices=(*SLO_SETS, NO_SLO), default="L3", help="SLO set, see below (default L3)")
    add("--tpot-ms", type=float, default=DEFAULT_TPOT_MS, metavar="MS",
        help="TPOT objective; tiers have their own (default 30)")


def _add_scheduling(group: Any) -> None:
    add = group.add_argument
    add("--prefill-policy", type=_names_of(PREFILL_POLICIES), default=["urgency"],
        metavar="P,P", help="order of prefill, or several, see below (default urgency)")
    add("--decode-policy", type=_names_of(DECODE_POLICIES), default=["slack"],
        metavar="P,P", help="selection of decode steps, or several, see below (default slack)")
    add("--hold", action="store_true",
        help="hold the first token until its decode slot is ready, at most until the deadline")
    add("--preallocate", action="store_true",
        help="prefill a prompt only once a decode instance has memory for it")
    add("--grants", choices=GRANT_ORDERS, default="",
        help="order in which prompts get that memory (default: deadline with urgency, else "
        "arrival)")
    add("--admission", action="store_true",
        help="degrade or reject arrivals whose forecast misses their SLO; one prefill instance")
    add("--no-lengths", action="store_true", help="do not learn output lengths")
    add("--starve-share", type=float, metavar="SHARE",
        help="share of prefill time for prompts that wait too long, 0 to 1 (default: urgency's)")
    add("--tail-ms", type=float, default=0.0, metavar="MS",
        help="time that urgency plans for after a prefill, before the deadline (default 0)")
    add("--period", type=int, default=1, metavar="STEPS",
        help="decode steps between two selections of slack (default 1)")


def _add_servers(group: Any) -> None:
    add = group.add_argument
    add("--instances", default="1P1D", metavar="xPyD",
        help="prefill and decode instances (default 1P1D)")
    add("--profile", default=DEFAULT_PROFILE, metavar="NAME|FILE",
        help="latency profile of every instance (default %(default)s)")
    add("--routing", choices=ROUTINGS, default="late",
        help="binding of arrivals to prefill instances; late: by the first one that is ready "
        "(default late)")
    add("--stages", choices=STAGES, default="both",
        help="prefill: decode nothing; decode: prefill prompts at once (default both)")
    add("--as-on-engine", action="store_true",
        help="preallocate, share links, and add the handshake and the hand-over of real servers")
    add("--no-lookahead", action="store_true",
        help="compose a batch or step only when the one before it has ended")
    add("--no-decode-lookahead", action="store_true", help="the same for decode steps only")
    add("--decode-cap", type=count, default=0, metavar="N",
        help="static cap on the decode batch of a rank; 0: the profile's limit (default 0)")
    add("--dp-attention", type=count, default=0, metavar="N",
        help="data-parallel attention: ranks of a decode instance, which wait for the slowest in "
        "every step; limits are of one rank; 0: the profile's number (default 0)")
    add("--placement", choices=PLACEMENTS, default="kairos",
        help="rank of a request; the others are SGLang's, round-robin its default (default kairos)")
    add("--change-cost-ms", type=float, default=0.0, metavar="MS",
        help="added to a decode step that skips or resumes a request (default 0)")
    add("--contention", action="store_true",
        help="KV transfers of a prefill instance share its link, one after another")


def _add_model_errors(group: Any) -> None:
    add = group.add_argument
    add("--prefill-bias", type=float, default=1.0, metavar="F",
        help="predicted / true batch time, 0.1 to 10 (default 1)")
    add("--decode-bias", type=float, default=1.0, metavar="F",
        help="predicted / true step time, 0.1 to 10 (default 1)")
    add("--noise", type=float, default=0.0, metavar="SHARE",
        help="relative standard deviation of true times, 0 to 1 (default 0)")


def _add_output(group: Any) -> None:
    add = group.add_argument
    add("--bound", action="store_true",
        help="add an upper bound of TTFT attainment, and references that know the future")
    add("--json", type=Path, metavar="FILE", help="write the figures to FILE")
    add("--plot", type=Path, metavar="FILE", help="write a plot of attainment over load to FILE")
    add("--workers", type=count, default=0, metavar="N",
        help="processes of a sweep; 0: one per core (default 0)")
# fmt: on


def _part(text: str) -> tuple[int, int]:
    which, _, parts = text.partition("/")
    if not (which.isdigit() and parts.isdigit() and 1 <= int(which) <= int(parts)):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not allowed; write K/N with K from 1 to N, such as 2/2"
        )
    return int(which), int(parts)


def _names_of(allowed: Sequence[str]) -> Callable[[str], list[str]]:
    """An argument type: one or several of `allowed`, separated by commas."""

    def parse(text: str) -> list[str]:
        for name in text.split(","):
            if name not in allowed:
                raise argparse.ArgumentTypeError(
                    f"{name!r} is not allowed; allowed are {', '.join(allowed)}"
                )
        return text.split(",")

    return parse


def _config(args: argparse.Namespace) -> SimConfig:
    """The configuration that all points share."""
    for name, allowed in _RANGES.items():
        value = getattr(args, name)
        if value is not None:
            check_range(f"--{name.replace('_', '-')}", value, allowed)
    config = SimConfig(
        instances=args.instances,
        lookahead=not args.no_lookahead,
        decode_lookahead=not args.no_decode_lookahead,
        hold=args.hold,
        routing=args.routing,
        decode_cap=args.decode_cap,
        dp_attention=args.dp_attention,
        placement=args.placement,
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
    urgency = replace(config.urgency, post_prefill_s=args.tail_ms / 1e3)
    if args.starve_share is not None:
        urgency = replace(urgency, starvation_share=args.starve_share)
    slack = config.slack._replace(period=args.period)
    config = replace(config, slack=slack, urgency=urgency)
    return config.as_on_engine(load_profile(args.profile)) if args.as_on_engine else config


def _points(args: argparse.Namespace) -> list[SweepPoint]:
    """Every combination of policies and loads."""
    base = _config(args)
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
            args.busier,
        )
        for prefill, decode, load in itertools.product(
            args.prefill_policy, args.decode_policy, args.load
        )
    ]


def _write(results: Sequence[dict[str, Any]], path: Path) -> None:
    body = results[0] if len(results) == 1 else {"runs": results}
    options = orjson.OPT_INDENT_2 | orjson.OPT_SERIALIZE_NUMPY
    path.write_bytes(orjson.dumps(body, option=options) + b"\n")
