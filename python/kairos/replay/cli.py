"""Command line of `scripts/replay.py`."""

import argparse
import re
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn
from urllib.parse import urlsplit

from kairos.cluster import ClusterError, ClusterSpec
from kairos.errors import InputError
from kairos.latency import load_profile
from kairos.replay.arms import ARMS, ArmSpec, arm_spec, parse_arms
from kairos.replay.client import Options
from kairos.replay.plan import make_plan
from kairos.replay.target import UrlTarget
from kairos.workload.readers import FORMATS, read_trace
from kairos.workload.slo_sets import DEFAULT_TPOT_MS, SLO_SETS
from kairos.workload.synthetic import PRESETS, generate
from kairos.workload.trace import Trace

SYNTHETIC = "synthetic:"
_SYNTHETIC_REQUESTS = 20_000  # more than a load of 2 over half an hour takes of any preset
_DRAIN_S = 300.0
DEFAULT_PROFILE = "minimax-m2.5-tp4-h200"

EXAMPLES = f"""\
examples:
  # Two minutes of a trace at load 0.9 under upstream's FCFS and under Kairos, on real SGLang
  # servers without a GPU, their time modelled by the profile:
  python scripts/replay.py --trace conversation.jsonl.gz --load 0.9 --duration-s 120 --out out/a

  # A generated trace; presets: {", ".join(PRESETS)}
  python scripts/replay.py --trace synthetic:servegen-r1 --load 0.7 --arms fcfs,sjf --out out/b

  # Three classes of service, two prefill and two decode servers:
  python scripts/replay.py --trace t.csv --load 0.9 --slo tiers --instances 2P2D --out out/c

  # Against servers that run already:
  python scripts/replay.py --trace t.csv --load 0.5 --url http://127.0.0.1:30000 --out out/d
"""


@dataclass(frozen=True, slots=True)
class LocalCluster:
    """What the caller needs to describe the servers of an arm.

    Attributes:
        prefill, decode: number of servers.
        profile: latency profile, shipped name or path.
        router: whether requests go through a router instead of straight to both servers.
    """

    arm: ArmSpec
    prefill: int
    decode: int
    profile: str
    router: bool


class _Parser(argparse.ArgumentParser):
    """Answers a bad command line with one line instead of the usage text."""

    def error(self, message: str) -> NoReturn:
        raise InputError(message)


def main(argv: Sequence[str], cluster_of: Callable[[LocalCluster], ClusterSpec]) -> int:
    """Run the replay that `argv` asks for.

    Args:
        cluster_of: describes the servers of an arm on this machine.

    Returns:
        Exit code: 0; 1 when servers fail, 2 for bad input, 130 when interrupted.
    """
    try:
        return _replay(_parser().parse_args(argv), cluster_of)
    except (InputError, ClusterError) as error:
        print(f"replay: {error}", file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1
    except KeyboardInterrupt:
        print("replay: interrupted", file=sys.stderr)
        return 130


def _replay(options: argparse.Namespace, cluster_of: Callable[[LocalCluster], ClusterSpec]) -> int:
    from rich.console import Console

    from kairos.replay.report import subtitle, terminal_table, write_report
    from kairos.replay.runner import Replay

    prefill, decode = parse_instances(options.instances)
    profile = load_profile(options.profile)
    plan = make_plan(
        load_trace(options.trace, options.trace_format, options.seed),
        profile,
        load=options.load,
        duration_s=options.duration_s,
        start_s=options.start_s,
        instances=prefill,
        slo_set=options.slo,
        tpot_ms=options.tpot_ms,
        seed=options.seed,
    )
    names = parse_arms(options.arms)
    if options.url is not None:
        _reachable(options.url)
    budget_s = options.budget_s
    if budget_s is None:
        budget_s = plan.workload.trace.span_s + _DRAIN_S
    console = Console()
    replay = Replay(
        plan=plan,
        instances=options.instances,
        profile=profile.name,
        emulated=options.url is None,
        start_s=options.start_s,
        limits=Options(timeout_s=options.timeout_s, budget_s=budget_s),
        out=_folder(options.out),
        console=console,
    )
    if options.url is not None:
        arms = [replay.on_url("url", options.url)]
    else:
        arms = []
        for name in names:
            arm = arm_spec(name, plan, options.profile)
            local = LocalCluster(arm, prefill, decode, options.profile, options.router)
            arms.append(replay.on_cluster(arm, cluster_of(local)))
    write_report(arms, options.out)
    console.print(f"\n{subtitle(arms)}", highlight=False, style="dim")
    console.print(terminal_table(arms))
    for arm_run in arms:
        if arm_run.summary.note:
            console.print(f"{arm_run.header.arm}: {arm_run.summary.note}", style="red")
    for name in ("report.html", "report.png", "report.json"):
        console.print(str(options.out / name), highlight=False, soft_wrap=True)
    return 1 if any(arm_run.summary.note for arm_run in arms) else 0


def load_trace(source: str, format_name: str | None, seed: int) -> Trace:
    """Read a file, or generate `synthetic:PRESET`.

    Raises:
        InputError: see `read_trace` and `generate`.
    """
    if source.startswith(SYNTHETIC):
        return generate(source.removeprefix(SYNTHETIC), _SYNTHETIC_REQUESTS, seed)
    return read_trace(source, format_name)


def parse_instances(text: str) -> tuple[int, int]:
    """Numbers of prefill and decode servers in, for example, `2P1D`.

    Raises:
        InputError: another form, or a number out of range.
    """
    match = re.fullmatch(r"(\d{1,2})P(\d{1,2})D", text)
    if match is None or 0 in (numbers := (int(match[1]), int(match[2]))):
        raise InputError(f"--instances: {text!r} is not allowed; it must look like 1P1D")
    return numbers


def _reachable(url: str) -> None:
    UrlTarget(url)
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        socket.create_connection((parts.hostname or "", port), timeout=5).close()
    except OSError as error:
        raise InputError(f"--url: nothing answers at {url}: {error}") from error


def _folder(path: Path) -> Path:
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / "report.json"
        probe.open("ab").close()
    except OSError as error:
        raise InputError(f"--out: cannot write to {path}: {error.strerror}") from error
    return path


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="replay",
        description="Replay a request trace against SGLang servers under several schedulers and "
        "report how many requests met their SLOs.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    # fmt: off
    add = parser.add_argument
    add("--trace", required=True, metavar="FILE", help=f"a trace file, or {SYNTHETIC}PRESET")
    add("--trace-format", choices=list(FORMATS), help="(default: recognised by content)")
    add("--load", type=float, default=0.9, metavar="RHO", help="prefill load (default 0.9)")
    add("--duration-s", type=float, metavar="S", help="arrivals for so long (default: all)")
    add("--start-s", type=float, default=0.0, metavar="S", help="where in the trace to begin")
    add("--slo", choices=SLO_SETS, default="L3", help="SLO set (default L3)")
    add("--tpot-ms", type=float, default=DEFAULT_TPOT_MS, metavar="MS",
        help="TPOT objective; tiers have their own (default 30)")
    add("--arms", default="fcfs,kairos", metavar="A,B", help=f"of {', '.join(ARMS)}")
    add("--url", help="servers that run already, instead of --arms; they get the SLOs")
    add("--instances", default="1P1D", metavar="xPyD", help="servers (default 1P1D)")
    add("--router", action="store_true", help="send through upstream's mini_lb, not to both legs")
    add("--profile", default=DEFAULT_PROFILE, metavar="NAME|FILE",
        help="latency profile of load, SLOs, predictions, emulation (default %(default)s)")
    add("--seed", type=int, default=0, help="of prompts, classes and generated traces (default 0)")
    add("--timeout-s", type=float, default=600.0, metavar="S", help="of a request (default 600)")
    add("--budget-s", type=float, metavar="S",
        help=f"of an arm; what is left then is cut (default: arrivals + {_DRAIN_S:g})")
    add("--out", type=Path, required=True, metavar="DIR", help="where the report goes")
    # fmt: on
    return parser
