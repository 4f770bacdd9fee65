"""Command line of `kairos calibrate`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from kairos.calibrate.config import CalibrationConfig
from kairos.calibrate.grid import GridAxes
from kairos.calibrate.session import ClusterFactory, calibrate
from kairos.cluster import ClusterError
from kairos.command_line import CommandParser
from kairos.errors import InputError

DEFAULT_BASE = "minimax-m2.5-tp4-h200"

DESCRIPTION = """\
Measure prefill and decode times of running SGLang servers, and write them as a latency profile for
--kairos-profile. The servers must serve no other requests meanwhile.
"""
EXAMPLES = """\
examples:
  # A prefill and a decode server that run already:
  kairos calibrate --url http://HOST:30001 http://HOST:30002 --out out/own.json

  # One server without disaggregation:
  kairos calibrate --url http://HOST:30000 --out out/own.json

  # A trial without a GPU: the servers' time is modelled by a profile, and the calibration should
  # find that profile again (emulated):
  kairos calibrate --emulated tiny-fast --batches 1,4,16,32 --contexts 256,1024,4096 \\
    --out out/tiny-again.json

Then: python -m sglang.launch_server --kairos --kairos-profile out/own.json ...

exit code: 0; 1 servers failed, 2 bad input, 130 interrupted. The samples measured until then are
written in every case.
"""


def main(argv: Sequence[str], cluster_factory: ClusterFactory) -> int:
    """Calibrate as the command line says.

    Args:
        argv: arguments without the program's name.
        cluster_factory: describes a prefill and a decode server that emulate a profile.

    Returns:
        Exit code; see `--help`.
    """
    try:
        return calibrate(_config(_parser().parse_args(argv)), cluster_factory)
    except (InputError, ClusterError) as error:
        print(f"calibrate: {error}", file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1
    except KeyboardInterrupt:
        print("calibrate: interrupted", file=sys.stderr)
        return 130


def _config(options: argparse.Namespace) -> CalibrationConfig:
    return CalibrationConfig(
        urls=tuple(options.url or ()),
        emulated=options.emulated,
        out=options.out,
        name=options.name,
        model=options.model,
        base=options.base,
        budget_s=options.budget_s,
        axes=GridAxes(options.batches, options.contexts, options.new, options.prefixes),
    )


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of numbers like 1,8,64") from None


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="kairos calibrate",
        usage="kairos calibrate (--url URL [URL] | --emulated NAME|FILE) --out FILE.json [options]",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    # fmt: off
    group = parser.add_argument_group("servers")
    one_of = group.add_mutually_exclusive_group(required=True)
    one_of.add_argument("--url", nargs="+", metavar="URL",
        help="one server, or a prefill and a decode server; not a router")
    one_of.add_argument("--emulated", metavar="NAME|FILE",
        help="start servers whose time this latency profile models")
    add = group.add_argument
    add("--model", help="refuse servers of another model, by path or served name (default: any)")
    add = parser.add_argument_group("profile").add_argument
    add("--out", type=Path, required=True, metavar="FILE.json",
        help="the profile; FILE.samples.jsonl and FILE.png are written beside it")
    add("--name", default="calibrated", help="name of the profile (default %(default)s)")
    add("--base", default=DEFAULT_BASE, metavar="NAME|FILE",
        help="profile that gives the values that are not measured: KV link, expert fraction, "
        "straggler; with --emulated, the emulated one (default %(default)s)")
    add = parser.add_argument_group("measurement").add_argument
    add("--budget-s", type=float, default=900.0, metavar="S",
        help="time for measuring; points beyond it are left out (default 900)")
    add = parser.add_argument_group("grid (default: chosen by the servers' limits)").add_argument
    add("--batches", type=_numbers, metavar="N,N", help="decode batch sizes, in requests")
    add("--contexts", type=_numbers, metavar="N,N", help="context of each request, in tokens")
    add("--new", type=_numbers, metavar="N,N",
        help="new prompt tokens; some below and some several times the chunk size")
    add("--prefixes", type=_numbers, metavar="N,N", help="cached prompt tokens; include 0")
    # fmt: on
    return parser
