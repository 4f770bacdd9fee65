"""The command of `scripts/make_trace.py`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from kairos.command_line import CommandParser
from kairos.errors import InputError
from kairos.workload.synthetic import PRESETS, generate, write_trace

DESCRIPTION = """\
Write a synthetic request trace with long-tailed lengths, bursty arrivals and shared prefixes. The
same arguments write the same bytes.
"""

EPILOG = """\
A preset is fitted to the lengths and gaps of the public trace it is named after.

examples:
  # An hour of chat requests at 3.3 requests per second:
  python scripts/make_trace.py mooncake-conversation chat.jsonl.gz --requests 12000

  # Another trace of the same kind:
  python scripts/make_trace.py mooncake-conversation other.jsonl.gz --seed 1

exit code: 0; 2 bad input
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Write the trace that `argv` asks for.

    Args:
        argv: arguments without the program's name; None takes the process's own.

    Returns:
        Exit code; see `--help`.
    """
    try:
        args = parser().parse_args(argv)
        write_trace(generate(args.preset, args.requests, args.seed), args.file)
    except (InputError, OSError) as error:
        print(f"make_trace: {error}", file=sys.stderr)
        return 2
    return 0


def parser() -> argparse.ArgumentParser:
    """The parser of `scripts/make_trace.py`."""
    parser = CommandParser(
        prog="make_trace",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("preset", choices=list(PRESETS), help="kind of traffic")
    add("file", type=Path, metavar="FILE.jsonl.gz", help="trace to write, gzip JSON lines")
    add("--requests", type=int, default=10_000, metavar="N", help="number (default 10000)")
    add("--seed", type=int, default=0, metavar="N", help="seed of the generator (default 0)")
    return parser
