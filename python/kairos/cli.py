"""The command `kairos`: one name for every tool.

Each tool has its own parser and `main` in its package and is imported only when it is called, so
that `kairos --help` answers at once and a router host needs no measuring libraries.
"""

import difflib
import importlib
import sys
from collections.abc import Sequence
from typing import NamedTuple

from kairos import __version__
from kairos.extras import BENCH_MODULES


class Command(NamedTuple):
    """A subcommand of `kairos`.

    Attributes:
        main: "module:function", taking the arguments behind the subcommand and returning an exit
            code.
        summary: one line for `kairos --help`.
        bench: whether it needs the `bench` extra.
    """

    main: str
    summary: str
    bench: bool = False


COMMANDS = {
    "router": Command("kairos.router.cli:main", "Run the prefill/decode router."),
    "simulate": Command(
        "kairos.sim.cli:main", "Simulate prefill and decode scheduling of a trace.", bench=True
    ),
    "replay": Command(
        "kairos_emulation.cli.replay:main",
        "Replay a trace against SGLang servers and report SLO attainment.",
        bench=True,
    ),
    "calibrate": Command(
        "kairos_emulation.cli.calibrate:main",
        "Measure running SGLang servers and write their latency profile.",
        bench=True,
    ),
    "cluster": Command(
        "kairos_emulation.cli.cluster:main",
        "Start a prefill/decode cluster on this machine, without a GPU.",
        bench=True,
    ),
    "demo": Command(
        "kairos_emulation.cli.demo:main",
        "Serve a long-tailed trace under FCFS and under Kairos, and compare.",
        bench=True,
    ),
    "upstream-diff": Command(
        "kairos_patches.cli:main", "Check or describe what Kairos changes in SGLang."
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand.

    Args:
        argv: arguments without the program's name; None takes the process's own.

    Returns:
        The subcommand's exit code; 2 for an unknown subcommand or a missing extra.
    """
    name, *rest = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in ("-h", "--help"):
        print(usage())
        return 0
    if name == "--version":
        print(f"kairos {__version__}")
        return 0
    command = COMMANDS.get(name)
    if command is None:
        print(f"kairos: {_unknown(name)}", file=sys.stderr)
        return 2
    module, _, function = command.main.partition(":")
    try:
        code: int = getattr(importlib.import_module(module), function)(rest)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if not command.bench or missing not in BENCH_MODULES:
            raise
        print(
            f"kairos {name}: {missing} is not installed; run: pip install 'kairos-sglang[bench]'",
            file=sys.stderr,
        )
        return 2
    return code


def usage() -> str:
    """The text of `kairos --help`."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: kairos COMMAND [ARGUMENT ...]",
            "",
            "SLO-aware scheduling for prefill/decode-disaggregated serving on SGLang.",
            "",
            "commands:",
            *lines,
            "",
            "`kairos COMMAND --help` explains a command with examples; `kairos --version` prints",
            "the version. SGLang starts the servers:",
            "  python -m sglang.launch_server --kairos ...",
        ]
    )


def _unknown(name: str) -> str:
    close = difflib.get_close_matches(name, COMMANDS, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"unknown command {name!r}; allowed are {', '.join(COMMANDS)}{hint}"
