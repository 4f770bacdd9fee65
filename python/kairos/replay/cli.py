"""Command line of `kairos replay`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from kairos.cluster import ClusterError
from kairos.command_line import CommandParser
from kairos.errors import InputError
from kairos.replay import commands, exit_codes
from kairos.replay.client.api import SLO_HEADERS
from kairos.replay.client.worker import WorkerDiedError
from kairos.replay.plan.arms import ALLOWED
from kairos.replay.plan.dilation import MAX_FACTOR
from kairos.replay.run.config import DRAIN_S
from kairos.replay.run.local_cluster import ClusterOf
from kairos.replay.run.options import ReplayOptions
from kairos.workload.prefix import CACHE_TOKENS
from kairos.workload.readers import FORMATS
from kairos.workload.slo_sets import DEFAULT_TPOT_MS, SLO_SETS, in_words
from kairos.workload.synthetic import PRESETS

DEFAULT_PROFILE = "minimax-m2.5-tp4-h200"

DESCRIPTION = """\
Replay a request trace against SGLang servers under several schedulers ("arms"), one after the
other, and report how many requests met their SLOs. Without --url, each run starts its own servers
on this machine, without a GPU: real SGLang schedulers, whose time comes from a latency profile.
"""


def _slo_sets() -> str:
    lines = (f"  {name:<5}  {in_words(name, DEFAULT_TPOT_MS)}" for name in SLO_SETS)
    return "\n".join(lines).replace("; ", ";\n         ")


EXAMPLES = f"""\
examples:
  # Two minutes of a trace at load 0.9, under upstream's FCFS and under Kairos:
  kairos replay --trace conversation.jsonl.gz --load 0.9 --duration-s 120 --out out/a

  # A long campaign, one run at a time; repeat the command until no runs are left:
  kairos replay --trace t.csv --load 0.5,0.7,0.9,1.1 --repeats 3 --duration-s 300 \\
    --arms fcfs,sjf,kairos,kairos-hold --out out/b --resume --max-runs 1

  # A generated trace; presets: {", ".join(PRESETS)}
  kairos replay --trace synthetic:servegen-r1 --load 0.7 --arms fcfs,sjf --out out/c

  # Three service classes, two prefill and two decode servers:
  kairos replay --trace t.csv --load 0.9 --slo tiers --instances 2P2D --out out/d

  # Two data-parallel attention ranks in the prefill server and in the decode server:
  kairos replay --trace t.csv --load 0.9 --arms fcfs --dp-attention 2 --out out/f

  # Any OpenAI-compatible endpoint that runs already:
  kairos replay --trace t.csv --load 0.5 --url http://127.0.0.1:30000 --out out/e

  # Write the report of a folder again; compare two folders:
  kairos replay report out/b
  kairos replay compare out/a out/b --out out/both --force

SLO sets; "own prefill" is the time that the prompt takes alone on an idle server:
{_slo_sets()}

output in --out:
  report.html, report.json and *.png   the report
  requests-ARM.jsonl                   a header, then one line per request
  forwards-ARM.jsonl, logs/ARM         device trace and server output of own servers

exit code:
  0    all runs are valid
  {exit_codes.SERVERS_FAILED}    servers failed
  {exit_codes.BAD_INPUT}    bad input
  {exit_codes.DISTURBED}    a run was disturbed; the report says how
  {exit_codes.INTERRUPTED}  interrupted
Runs that were left out of the figures or made again count for {exit_codes.SERVERS_FAILED} and \
{exit_codes.DISTURBED}, too.
"""
_FORCE_HELP = "compare runs of other work or software; the report names the differences"


def main(argv: Sequence[str], cluster_of: ClusterOf) -> int:
    """Carry out a replay, report or comparison.

    Args:
        argv: arguments without the program's name.
        cluster_of: describes the servers of an arm on this machine.

    Returns:
        The exit code; see `--help`.
    """
    try:
        if argv and argv[0] == "report":
            chosen = _report_parser().parse_args(argv[1:])
            return commands.report(chosen.folder, chosen.goodput, chosen.force)
        if argv and argv[0] == "compare":
            chosen = _compare_parser().parse_args(argv[1:])
            return commands.compare(chosen.folders, chosen.out, chosen.goodput, chosen.force)
        return commands.replay(parse_options(argv), ("kairos", "replay", *argv), cluster_of)
    except (InputError, ClusterError, WorkerDiedError) as error:
        print(f"replay: {error}", file=sys.stderr)
        is_input = isinstance(error, InputError)
        return exit_codes.BAD_INPUT if is_input else exit_codes.SERVERS_FAILED
    except KeyboardInterrupt:
        print("replay: interrupted", file=sys.stderr)
        return exit_codes.INTERRUPTED


def parse_options(argv: Sequence[str]) -> ReplayOptions:
    """Parse the flags of a replay.

    Raises:
        InputError: an unknown flag, or a value that is not allowed.
    """
    return ReplayOptions(**vars(parser().parse_args(argv)))


def _loads(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither a number nor a list such as 0.7,0.9"
        ) from None


def parser() -> argparse.ArgumentParser:
    """Return the parser of a replay, without the commands `report` and `compare`."""
    parser = CommandParser(
        prog="kairos replay",
        usage="kairos replay --trace FILE --out DIR [options]\n"
        "       kairos replay report DIR [--goodput none] [--force]\n"
        "       kairos replay compare DIR DIR... --out DIR [--force]",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_workload(parser.add_argument_group("workload"))
    _add_own_servers(parser.add_argument_group("servers that the replay starts"))
    _add_url(parser.add_argument_group("servers that run already"))
    _add_runs(parser.add_argument_group("runs"))
    _add_report(parser.add_argument_group("output"))
    return parser


# fmt: off
def _add_workload(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--trace", required=True, metavar="FILE",
        help="trace file, or synthetic:PRESET for a generated trace")
    add("--trace-format", choices=list(FORMATS),
        help="format of the file (default: recognised by content)")
    add("--load", type=_loads, default=[0.9], metavar="RHO",
        help="prefill load, or several as 0.7,0.9; at 1 the prefill work that arrives equals the "
        "capacity (default 0.9)")
    add("--duration-s", type=float, metavar="S",
        help="seconds of arrivals (default: the whole trace)")
    add("--start-s", type=float, default=0.0, metavar="S",
        help="where in the trace to begin, seconds (default 0)")
    add("--slo", choices=SLO_SETS, default="L3", help="SLO set (default L3)")
    add("--tpot-ms", type=float, default=DEFAULT_TPOT_MS, metavar="MS",
        help="TPOT objective; the tiers set has its own (default 30)")
    add("--prefix-cache-tokens", type=int, default=CACHE_TOKENS, metavar="N",
        help="prefix cache of a prefill server, which the load assumes and emulated servers get "
        f"(default {CACHE_TOKENS:,})")
    add("--seed", type=int, default=0,
        help="seed of prompts, classes and generated traces (default 0)")


def _add_own_servers(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--arms", default="fcfs,kairos", metavar="A,B",
        help=f"server configurations to compare (default fcfs,kairos): {ALLOWED}")
    add("--instances", default="1P1D", metavar="xPyD",
        help="number of prefill and decode servers (default 1P1D)")
    add("--dp-attention", default="1", metavar="N|P,D",
        help="data-parallel attention ranks of every server, or of a prefill and of a decode "
        "server; the profile is that of one rank (default %(default)s: none)")
    add("--profile", default=DEFAULT_PROFILE, metavar="NAME|FILE",
        help="latency profile for load, SLOs, predictions and emulation (default %(default)s)")
    add("--router", action="store_true",
        help="send requests of arms without a router through upstream's mini_lb")
    add("--dilate", type=float, default=1.0, metavar="F",
        help=f"slow profile, SLOs and arrivals down by this factor, 1 to {MAX_FACTOR:g}, on "
        "machines whose cores cannot keep up (default 1)")


def _add_url(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--url", help="send to these servers instead of starting those of --arms; requests carry "
        "their SLOs")
    add("--api", choices=("openai", "sglang"), default="openai",
        help="openai: /v1/completions, sglang: /generate (default openai)")
    add("--model", help="name of the model (default: the first that /v1/models lists)")
    add("--slo-headers", choices=list(SLO_HEADERS), default="kairos",
        help="names of the SLO headers of openai (default kairos)")


def _add_runs(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--repeats", type=int, default=1, metavar="N",
        help="number of runs of each arm and load (default 1)")
    add("--resume", action="store_true", help="keep the runs that are in --out already")
    add("--overwrite", action="store_true", help="replace the runs that are in --out already")
    add("--force", action="store_true",
        help="with --resume: keep runs of another commit; the report names the difference")
    add("--max-runs", type=int, metavar="N",
        help="stop after N runs; --resume continues (default: all runs)")
    add("--allow-disturbed", action="store_true",
        help="count runs that were disturbed by other processes; the report still says so")
    add("--timeout-s", type=float, default=600.0, metavar="S",
        help="limit of a request, seconds (default 600)")
    add("--budget-s", type=float, metavar="S",
        help="limit of a run, seconds; requests left then are cut (default: arrivals + "
        f"{DRAIN_S:g}; both limits grow with --dilate)")


def _add_report(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--goodput", choices=commands.GOODPUT, default="simulated",
        help="search the largest load with 90 %% and 99 %% attainment in the simulator, or with "
        "further runs of the engine (default simulated)")
    add("--out", type=Path, required=True, metavar="DIR", help="folder of records and report")
# fmt: on


def _report_parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="kairos replay report", description="Write the report of a folder of records again."
    )
    add = parser.add_argument
    add("folder", type=Path, metavar="DIR", help="folder of records, which receives the report")
    add(
        "--goodput", choices=("simulated", "none"), default="simulated",
        help="search the goodput in the simulator, or leave it out (default simulated)",
    )  # fmt: skip
    add("--force", action="store_true", help=_FORCE_HELP)
    return parser


def _compare_parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="kairos replay compare",
        description="Write one report of the records in several folders. The first arm is the "
        "baseline of all gains.",
    )
    add = parser.add_argument
    add("folders", type=Path, nargs="+", metavar="DIR", help="folders of records")
    add("--out", type=Path, required=True, metavar="DIR", help="folder of the report")
    add(
        "--goodput", choices=("simulated", "none"), default="none",
        help="search the goodput in the simulator, or leave it out (default none)",
    )  # fmt: skip
    add("--force", action="store_true", help=_FORCE_HELP)
    return parser
