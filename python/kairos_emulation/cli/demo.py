"""`kairos demo`: one trace under upstream's FCFS and under Kairos, side by side."""

import argparse
import sys
from collections.abc import Sequence

from kairos_emulation.cli import replay
from kairos_emulation.cli.output import output_folder

SUMMARY = """\
Serve a long-tailed trace on real SGLang servers, first come first served and under Kairos.

No GPU is needed: the servers' time is modelled after 4 H200 per instance. Takes about four minutes.
"""
OPTIONS = (
    *("--trace", "synthetic:mooncake-conversation", "--load", "0.9"),
    *("--duration-s", "65", "--budget-s", "110"),
    *("--slo", "L3", "--arms", "fcfs,kairos", "--goodput", "none"),
    *("--overwrite", "--allow-disturbed"),
)
EXAMPLES = """\
The demo is a replay with these options, and with --out set to the folder `demo` in the output
folder (`out` in the checkout; without a checkout, `out` in the current directory):
  {options}

An option given here is passed on and wins over the demo's own. `kairos replay --help` explains all
of them.

examples:
  # The demo as it is. The report is report.html in the output folder:
  kairos demo

  # A higher load, for two minutes of arrivals:
  kairos demo --load 1.1 --duration-s 120 --budget-s 180

  # Three service classes, and the report in a folder of your choice:
  kairos demo --slo tiers --out /tmp/tiers
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Replay the demo's trace.

    Args:
        argv: options of `kairos replay` that replace the demo's; None takes the process's own
            arguments.

    Returns:
        Exit code of the replay.
    """
    options = list(sys.argv[1:] if argv is None else argv)
    if "-h" in options or "--help" in options:
        _parser().parse_args(["--help"])
    print(SUMMARY)
    return replay.main([*OPTIONS, "--out", str(output_folder() / "demo"), *options])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="kairos demo",
        usage="kairos demo [REPLAY OPTION ...]",
        description=SUMMARY,
        epilog=EXAMPLES.format(options=" ".join(OPTIONS)),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "options", nargs="*", metavar="REPLAY OPTION", help="an option of `kairos replay`"
    )
    return parser
