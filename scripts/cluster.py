"""Start a prefill/decode cluster of real SGLang servers on this machine, without a GPU.

Prints the URLs once every prefill-decode pair has served a request, then waits; Ctrl-C stops all.
"""

import argparse
import sys
from pathlib import Path

from kairos.cluster import Cluster, ClusterError, ClusterSpec
from kairos.errors import InputError
from kairos_emulation.cluster import platform_model, with_platform

OUT = Path(__file__).resolve().parents[1] / "out"

EXAMPLES = """\
examples:
  # One prefill and one decode server, time modelled after 4 H200 (emulated), upstream's order:
  python scripts/cluster.py

  # The same under Kairos, with the SLO of requests that bring none:
  python scripts/cluster.py --kairos -- --kairos-ttft-slo-ms 1000 --kairos-tpot-slo-ms 30

  # Two prefill and two decode servers with a small fast profile, on a port of your choice:
  python scripts/cluster.py --prefill 2 --decode 2 --profile tiny-fast --port 30000

  # Real arithmetic with a small random model instead of modelled time:
  python scripts/cluster.py --platform cpu

  # One server without disaggregation:
  python scripts/cluster.py --prefill 0 --decode 0

Then, from another terminal, with the URL that was printed:
  curl URL/generate -H 'Content-Type: application/json' \\
    -d '{"text": "hello", "sampling_params": {"max_new_tokens": 8}}'

Flags after -- go to every server; `python -m sglang.launch_server --help` lists them. Starting
takes about half a minute to two minutes on two cores, nearly all of it imports, and a server about
1.6 GB of memory. A log file per server is under --log-dir.
"""


def parse(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Options, and the flags after `--`."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prefill", type=int, default=1, metavar="N", help="servers (default 1)")
    parser.add_argument("--decode", type=int, default=1, metavar="N", help="servers (default 1)")
    parser.add_argument(
        "--platform",
        choices=["emulated", "cpu"],
        default="emulated",
        help="emulated: steps take the time that the profile says, tokens are made up; "
        "cpu: a small random model is computed (default: emulated)",
    )
    parser.add_argument(
        "--profile",
        metavar="NAME|FILE",
        help="what to emulate: a shipped profile, e.g. tiny-fast, or a file "
        "(default: minimax-m2.5-tp4-h200)",
    )
    parser.add_argument("--kairos", action="store_true", help="schedule by SLO, not by arrival")
    parser.add_argument(
        "--port", type=int, default=0, help="of the URL that takes requests (default: any free)"
    )
    parser.add_argument(
        "--log-dir",
        type=Path,
        default=OUT / "cluster",
        metavar="DIR",
        help="(default: %(default)s)",
    )
    own, server_flags = argv, list[str]()
    if "--" in argv:
        at = argv.index("--")
        own, server_flags = argv[:at], argv[at + 1 :]
    return parser.parse_args(own), server_flags


def main(argv: list[str]) -> int:
    options, server_flags = parse(argv)
    try:
        if options.profile and options.platform != "emulated":
            raise InputError("--profile: allowed with --platform emulated only")
        spec = ClusterSpec(
            model=platform_model(options.platform, OUT / "models"),
            prefill=options.prefill,
            decode=options.decode,
            args=tuple(server_flags),
            kairos=options.kairos,
            port=options.port,
        )
        spec = with_platform(spec, options.platform, options.profile)
        with Cluster(spec, options.log_dir) as cluster:
            show(cluster)
            cluster.wait()
    except (InputError, ClusterError) as error:
        print(f"cluster: {error}", file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1
    except KeyboardInterrupt:
        return 130
    return 0


def show(cluster: Cluster) -> None:
    """Prints who listens where and what it cost to start."""
    stats = cluster.stats()
    for server, cost in zip(cluster.servers, stats.servers, strict=True):
        print(
            f"{server.name:<10} {server.url}  pid {server.pid}  up after {cost.start_s:.0f} s  "
            f"{cost.pss_bytes / 1e9:.2f} GB  {server.log}"
        )
    print(
        f"ready after {stats.ready_s:.0f} s: {cluster.url}   (Ctrl-C stops everything)", flush=True
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
