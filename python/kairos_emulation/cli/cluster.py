"""`kairos cluster`: start real SGLang servers on this machine and keep them until Ctrl-C."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from kairos.cluster import Cluster, ClusterError, ClusterSpec, DpAttention
from kairos.command_line import CommandParser
from kairos.errors import InputError
from kairos_emulation.cli.output import output_folder
from kairos_emulation.cluster import platform_model, with_platform
from kairos_emulation.launch import DEFAULT_PROFILE

DESCRIPTION = """\
Start a prefill/decode cluster of real SGLang servers on this machine, without a GPU.

The URLs are printed once every prefill-decode pair has served a request. Then the command waits;
Ctrl-C stops every process.
"""
EXAMPLES = """\
examples:
  # One prefill and one decode server in upstream's order, their time modelled after 4 H200:
  kairos cluster

  # The same servers under Kairos, with the SLO of requests that bring none:
  kairos cluster --kairos -- --kairos-ttft-slo-ms 1000 --kairos-tpot-slo-ms 30

  # Two prefill and two decode servers with a small fast profile, on a port of your choice:
  kairos cluster --prefill 2 --decode 2 --profile tiny-fast --port 30000

  # A small random model that is computed, instead of modelled time:
  kairos cluster --platform cpu

  # Two data-parallel attention ranks in the prefill server and four in the decode server:
  kairos cluster --dp-attention 2,4

  # One server without disaggregation:
  kairos cluster --prefill 0 --decode 0

Then, from another terminal, with the URL that was printed:
  curl URL/generate -H 'Content-Type: application/json' \\
    -d '{"text": "hello", "sampling_params": {"max_new_tokens": 8}}'

Flags after -- go to every server; `python -m sglang.launch_server --help` lists them. Starting
takes half a minute to two minutes on two cores, nearly all of it imports. A server takes about
1.6 GB of memory.

exit code: 0; 1 a server failed, 2 bad input, 130 interrupted.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Start a cluster and wait until it is interrupted or a process ends.

    Args:
        argv: arguments without the program's name; None takes the process's own.

    Returns:
        Exit code; see `--help`.
    """
    try:
        options, server_flags = parse(sys.argv[1:] if argv is None else argv)
        if options.profile and options.platform != "emulated":
            raise InputError("--profile: allowed with --platform emulated only")
        spec = ClusterSpec(
            model=platform_model(options.platform, output_folder() / "models"),
            prefill=options.prefill,
            decode=options.decode,
            dp_attention=DpAttention.parse(options.dp_attention),
            args=tuple(server_flags),
            kairos=options.kairos,
            port=options.port,
        )
        spec = with_platform(spec, options.platform, options.profile)
        with Cluster(spec, options.log_dir) as cluster:
            _show(cluster)
            cluster.wait()
    except (InputError, ClusterError) as error:
        print(f"cluster: {error}", file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1
    except KeyboardInterrupt:
        return 130
    return 0


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Return the command's own options and the server flags behind `--`."""
    own, server_flags = list(argv), list[str]()
    if "--" in own:
        at = own.index("--")
        own, server_flags = own[:at], own[at + 1 :]
    return _parser().parse_args(own), server_flags


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="kairos cluster",
        usage="kairos cluster [options] [-- SERVER FLAG ...]",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    # fmt: off
    add = parser.add_argument_group("servers").add_argument
    add("--prefill", type=int, default=1, metavar="N",
        help="number of prefill servers (default %(default)s)")
    add("--decode", type=int, default=1, metavar="N",
        help="number of decode servers (default %(default)s)")
    add("--dp-attention", default="1", metavar="N|P,D",
        help="data-parallel attention ranks of every server, or of a prefill and of a decode "
        "server (default %(default)s: none)")
    add("--kairos", action="store_true",
        help="schedule by SLO (default: upstream's order of arrival)")
    add = parser.add_argument_group("platform").add_argument
    add("--platform", choices=["emulated", "cpu"], default="emulated",
        help="emulated: a step takes the time that the profile gives, and tokens are made up. "
        "cpu: a small random model is computed (default %(default)s)")
    add("--profile", metavar="NAME|FILE",
        help="latency profile to emulate: a shipped name such as tiny-fast, or a file "
        f"(default {DEFAULT_PROFILE})")
    add = parser.add_argument_group("addresses and files").add_argument
    add("--port", type=int, default=0, metavar="PORT",
        help="port of the URL that takes requests (default: any free one)")
    add("--log-dir", type=Path, default=output_folder() / "cluster", metavar="DIR",
        help="one log file per server is written there (default: `cluster` in the output folder, "
        "which is `out` in the checkout or, without a checkout, `out` in the current directory)")
    # fmt: on
    return parser


def _show(cluster: Cluster) -> None:
    """Print the address, process and cost of every server."""
    stats = cluster.stats()
    for server, cost in zip(cluster.servers, stats.servers, strict=True):
        # A router in front of the cluster is told this port beside the URL.
        bootstrap = f"  bootstrap port {server.bootstrap_port}" if server.bootstrap_port else ""
        print(
            f"{server.name:<10} {server.url}{bootstrap}  pid {server.pid}  "
            f"up after {cost.start_s:.0f} s  "
            f"{cost.pss_bytes / 1e9:.2f} GB  {server.log}"
        )
    print(
        f"ready after {stats.ready_s:.0f} s: {cluster.url}   (Ctrl-C stops everything)", flush=True
    )
