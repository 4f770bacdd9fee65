"""Command line of `scripts/replay.py`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from kairos.cluster import ClusterError
from kairos.errors import InputError
from kairos.replay import commands, exit_codes
from kairos.replay.client.api import SLO_HEADERS
from kairos.replay.client.worker import WorkerDiedError
from kairos.replay.plan.arms import ALLOWED
from kairos.replay.plan.dilation import LARGEST
from kairos.replay.run.config import DRAIN_S
from kairos.replay.run.local_cluster import ClusterOf
from kairos.workload.prefix import CACHE_TOKENS
from kairos.workload.readers import FORMATS
from kairos.workload.slo_sets import DEFAULT_TPOT_MS, SLO_SETS
from kairos.workload.synthetic import PRESETS

DEFAULT_PROFILE = "minimax-m2.5-tp4-h200"

EXAMPLES = f"""\
examples:
  # Two minutes of a trace at load 0.9 under upstream's FCFS and under Kairos, on real SGLang
  # servers without a GPU, their time modelled by the profile:
  python scripts/replay.py --trace conversation.jsonl.gz --load 0.9 --duration-s 120 --out out/a

  # A long campaign, a run at a time; say it again until nothing is left:
  python scripts/replay.py --trace t.csv --load 0.5,0.7,0.9,1.1 --repeats 3 --duration-s 300 \\
    --arms fcfs,sjf,kairos,kairos-hold --out out/b --resume --max-runs 1

  # A generated trace; presets: {", ".join(PRESETS)}
  python scripts/replay.py --trace synthetic:servegen-r1 --load 0.7 --arms fcfs,sjf --out out/c

  # Three classes of service, two prefill and two decode servers:
  python scripts/replay.py --trace t.csv --load 0.9 --slo tiers --instances 2P2D --out out/d

  # Against any OpenAI-compatible endpoint that runs already:
  python scripts/replay.py --trace t.csv --load 0.5 --url http://127.0.0.1:30000 --out out/e

  # The report of a folder once more; two folders side by side:
  python scripts/replay.py report out/b
  python scripts/replay.py compare out/a out/b --out out/both --force

exit code: 0; 1 servers failed, 2 bad input, {exit_codes.DISTURBED} a run was disturbed (the \
report says how),
130 interrupted. Runs that were left out or made again count for 1 and \
{exit_codes.DISTURBED}, too.
"""


class _Parser(argparse.ArgumentParser):
    """Answers a bad command line with one line instead of the usage text."""

    def error(self, message: str) -> NoReturn:
        raise InputError(message)


def main(argv: Sequence[str], cluster_of: ClusterOf) -> int:
    """Run the replay, report or comparison that `argv` asks for.

    Args:
        cluster_of: describes the servers of an arm on this machine.

    Returns:
        Exit code; see `--help`.
    """
    try:
        if argv and argv[0] == "report":
            return commands.report(_report_parser().parse_args(argv[1:]))
        if argv and argv[0] == "compare":
            return commands.compare(_compare_parser().parse_args(argv[1:]))
        return commands.replay(parser().parse_args(argv), ("replay.py", *argv), cluster_of)
    except (InputError, ClusterError, WorkerDiedError) as error:
        print(f"replay: {error}", file=sys.stderr)
        return exit_codes.BAD_INPUT if isinstance(error, InputError) else exit_codes.SERVERS_FAILED
    except KeyboardInterrupt:
        print("replay: interrupted", file=sys.stderr)
        return exit_codes.INTERRUPTED


def _loads(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number, nor several: 0.7,0.9") from None


def parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="replay",
        usage="replay --trace FILE --out DIR [options]\n"
        "       replay report DIR [--goodput none] | replay compare DIR DIR... --out DIR [--force]",
        description="Replay a request trace against SGLang servers under several schedulers and "
        "report how many requests met their SLOs.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    # fmt: off
    group = parser.add_argument_group("workload")
    add = group.add_argument
    add("--trace", required=True, metavar="FILE", help="a trace file, or synthetic:PRESET")
    add("--trace-format", choices=list(FORMATS), help="(default: recognised by content)")
    add("--load", type=_loads, default=[0.9], metavar="RHO",
        help="prefill load, or several: 0.7,0.9 (default 0.9)")
    add("--duration-s", type=float, metavar="S", help="arrivals for so long (default: all)")
    add("--start-s", type=float, default=0.0, metavar="S", help="where in the trace to begin")
    add("--slo", choices=SLO_SETS, default="L3", help="SLO set (default L3)")
    add("--tpot-ms", type=float, default=DEFAULT_TPOT_MS, metavar="MS",
        help="TPOT objective; tiers have their own (default 30)")
    add("--prefix-cache-tokens", type=int, default=CACHE_TOKENS, metavar="N",
        help="prefix cache of a prefill server, which the load assumes and emulated servers get "
        f"(default {CACHE_TOKENS:,})")
    add("--seed", type=int, default=0, help="of prompts, classes and generated traces (default 0)")
    group = parser.add_argument_group("servers")
    add = group.add_argument
    add("--arms", default="fcfs,kairos", metavar="A,B", help=f"of {ALLOWED}")
    add("--instances", default="1P1D", metavar="xPyD", help="servers (default 1P1D)")
    add("--profile", default=DEFAULT_PROFILE, metavar="NAME|FILE",
        help="latency profile of load, SLOs, predictions, emulation (default %(default)s)")
    add("--router", action="store_true",
        help="send through upstream's mini_lb where an arm has no router, not to both legs")
    add("--dilate", type=float, default=1.0, metavar="F",
        help=f"slow profile, SLOs and arrivals down by this factor, 1 to {LARGEST:g}, for machines "
        "that are too slow")
    add("--url", help="servers that run already, instead of --arms; they get the SLOs")
    add("--api", choices=("openai", "sglang"), default="openai",
        help="of --url: /v1/completions or /generate (default openai)")
    add("--model", help="of --url: its name there (default: the first that /v1/models lists)")
    add("--slo-headers", choices=list(SLO_HEADERS), default="kairos",
        help="of --url: which names the SLO headers have (default kairos)")
    group = parser.add_argument_group("runs")
    add = group.add_argument
    add("--repeats", type=int, default=1, metavar="N", help="runs of each arm (default 1)")
    add("--resume", action="store_true", help="keep the runs that are in --out already")
    add("--overwrite", action="store_true", help="replace the runs that are in --out already")
    add("--force", action="store_true",
        help="with --resume: keep runs of another commit; the report says so")
    add("--max-runs", type=int, metavar="N", help="stop after N runs; --resume goes on")
    add("--allow-disturbed", action="store_true",
        help="count runs although the machine was not quiet; the report still says so")
    add("--timeout-s", type=float, default=600.0, metavar="S", help="of a request (default 600)")
    add("--budget-s", type=float, metavar="S",
        help=f"of a run; what is left then is cut (default: arrivals + {DRAIN_S:g}; with "
        "--dilate as much longer)")
    add("--goodput", choices=commands.GOODPUT, default="simulated",
        help="search the largest load with 90 %% and 99 %% attainment in the simulator, or with "
        "runs of the engine (default simulated)")
    add("--out", type=Path, required=True, metavar="DIR", help="where records and report go")
    # fmt: on
    return parser


def _report_parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="replay report", description="Write the report of a folder of records.")
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--goodput", choices=("simulated", "none"), default="simulated")
    parser.add_argument("--force", action="store_true", help="compare what should not be")
    return parser


def _compare_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="replay compare", description="One report of the records in several folders."
    )
    add = parser.add_argument
    add("folders", type=Path, nargs="+", metavar="DIR")
    add("--out", type=Path, required=True, metavar="DIR")
    add("--goodput", choices=("simulated", "none"), default="none")
    add("--force", action="store_true", help="compare runs of other work; the report says so")
    return parser
