"""Command line of `scripts/calibrate.py`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from kairos.calibrate.session import ClusterFactory, calibrate
from kairos.cluster import ClusterError
from kairos.errors import InputError

DEFAULT_BASE = "minimax-m2.5-tp4-h200"

EXAMPLES = """\
examples:
  # A prefill and a decode server that run already, with nobody else on them:
  python scripts/calibrate.py --url http://HOST:30001 http://HOST:30002 --out out/own.json

  # One server without disaggregation:
  python scripts/calibrate.py --url http://HOST:30000 --out out/own.json

  # To try it without a GPU: servers whose time is modelled by a profile, which should be found
  # again (emulated):
  python scripts/calibrate.py --emulated tiny-fast --batches 1,4,16,32 --contexts 256,1024,4096 \\
    --out out/tiny-again.json

Then: python -m sglang.launch_server --kairos --kairos-profile out/own.json ...

exit code: 0; 1 servers failed, 2 bad input, 130 interrupted. What was measured until then is
written in any case.
"""


class _Parser(argparse.ArgumentParser):
    """Answers a bad command line with one line instead of the usage text."""

    def error(self, message: str) -> NoReturn:
        raise InputError(message)


def main(argv: Sequence[str], cluster_factory: ClusterFactory) -> int:
    """Calibrate as `argv` says.

    Args:
        cluster_factory: describes a prefill and a decode server that emulate a profile.

    Returns:
        Exit code; see `--help`.
    """
    try:
        return calibrate(_parser().parse_args(argv), cluster_factory)
    except (InputError, ClusterError) as error:
        print(f"calibrate: {error}", file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1
    except KeyboardInterrupt:
        print("calibrate: interrupted", file=sys.stderr)
        return 130


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of numbers like 1,8,64") from None


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="calibrate",
        description="Measure prefill and decode times of running SGLang servers and write them as "
        "a latency profile for --kairos-profile.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    # fmt: off
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--url", nargs="+", metavar="URL",
        help="a server, or a prefill and a decode server; not a router")
    where.add_argument("--emulated", metavar="NAME|FILE",
        help="start servers whose time this profile models")
    add = parser.add_argument
    add("--out", type=Path, required=True, metavar="FILE.json",
        help="the profile; FILE.samples.jsonl and FILE.png go beside it")
    add("--name", default="calibrated", help="of the profile (default calibrated)")
    add("--model", help="refuse servers of another model (path or served name)")
    add("--base", default=DEFAULT_BASE, metavar="NAME|FILE",
        help="profile of what is not measured: KV link, expert fraction, straggler; with "
        "--emulated that one (default %(default)s)")
    add("--budget-s", type=float, default=900.0, metavar="S",
        help="time for measuring; points beyond it are left out (default 900)")
    group = parser.add_argument_group("grid (default: chosen by the servers' limits)")
    add = group.add_argument
    add("--batches", type=_numbers, metavar="N,N", help="decode batch sizes")
    add("--contexts", type=_numbers, metavar="N,N", help="tokens of context of each request")
    add("--new", type=_numbers, metavar="N,N",
        help="new prompt tokens; some below, some several times the chunk size")
    add("--prefixes", type=_numbers, metavar="N,N", help="cached prompt tokens; 0 among them")
    # fmt: on
    return parser
