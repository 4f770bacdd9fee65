"""Measure the cost of Kairos in a pass of a decode server's event loop, on emulated devices.

    python scripts/bench_decode_passes.py

Prints the scheduler's CPU time per decode step with 8, 64 and 256 running requests, upstream's and
Kairos': a whole pass of the event loop without the launch, and the part of it in Kairos' hooks.
Whole passes of two servers differ by more than that part. All requests have time to spare, so none
is skipped; bench_decode.py measures the cost of skipping. Run it on a quiet machine.
"""

import argparse
import asyncio
import json
import secrets
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import aiohttp

from kairos.cluster import Cluster, ClusterError, ClusterSpec
from kairos.errors import InputError
from kairos_emulation.cluster import platform_model, with_platform

ARMS = ("upstream", "kairos")
PROFILE = "minimax-m2.5-tp4-h200"
PROBE = Path(__file__).parent / "probes" / "scheduler_pass"
PROMPT = 100
LOOSE_SLO = {"kairos": {"ttft_ms": 60_000, "tpot_ms": 1_000}}


@dataclass(frozen=True)
class Cost:
    """CPU time of the scheduler in passes that launched a decode step.

    Attributes:
        arm: "upstream" or "kairos".
        running: requests that ran.
        passes: measured passes.
        median_ms: median of whole passes.
        p99_ms: 99th percentile of whole passes.
        hooks_mean_us: mean of the part in hooks.
        hooks_median_us: median of the part in hooks.
        hooks_p99_us: 99th percentile of the part in hooks.
    """

    arm: str
    running: int
    passes: int
    median_ms: float
    p99_ms: float
    hooks_mean_us: float
    hooks_median_us: float
    hooks_p99_us: float


def started(arm: str, folder: str, log: Path) -> Cluster:
    """Return the cluster of one arm; its decode server writes passes to `log`."""
    spec = ClusterSpec(
        model=platform_model("emulated", Path(folder) / "models"),
        router=None,
        kairos=arm == "kairos",
        env={
            "PYTHONPATH": str(PROBE),
            "KAIROS_PROBE_FILE": str(log),
            "KAIROS_PROBE_ROLE": "decode",
        },
        args=(
            *(("--kairos-profile", PROFILE) if arm == "kairos" else ()),
            *("--max-running-requests", "512"),
        ),
    )
    return Cluster(with_platform(spec, "emulated", PROFILE), Path(folder) / f"run-{arm}")


async def run(cluster: Cluster, running: int, steps: int) -> None:
    """Let `running` requests decode together for about `steps` steps."""
    timeout = aiohttp.ClientTimeout(total=600)
    endpoints = [cluster.prefill[0].url, cluster.decode[0].url]

    async with aiohttp.ClientSession(
        timeout=timeout, connector=aiohttp.TCPConnector(limit=0, force_close=True)
    ) as session:

        async def post(url: str, body: dict[str, object]) -> None:
            async with session.post(f"{url}/generate", json=body) as response:
                answer = await response.text()
                if response.status != 200:
                    raise InputError(f"{url}: status {response.status}: {answer[:200]}")

        async def one() -> None:
            body: dict[str, object] = {
                "input_ids": [20 + secrets.randbelow(60) for _ in range(PROMPT)],
                "sampling_params": {
                    "max_new_tokens": steps,
                    "ignore_eos": True,
                    "custom_params": LOOSE_SLO,
                },
                "bootstrap_host": "127.0.0.1",
                "bootstrap_port": cluster.prefill[0].bootstrap_port,
                "bootstrap_room": secrets.randbits(62),
            }
            await asyncio.gather(*(post(url, body) for url in endpoints))

        await asyncio.gather(*(one() for _ in range(running)))


def cost(arm: str, running: int, rows: Sequence[tuple[int, float, float]]) -> Cost:
    """Return the cost of passes with `running` requests.

    Args:
        rows: (requests, milliseconds, milliseconds in hooks) of each pass.

    Raises:
        InputError: too few such passes.
    """
    found = [(ms, 1e3 * hooks_ms) for requests, ms, hooks_ms in rows if requests == running]
    if len(found) < 100:
        raise InputError(
            f"{arm}, {running} running: only {len(found)} passes, 100 are needed; raise --steps"
        )
    whole, hooks = zip(*found, strict=True)
    (median, p99), (hooks_median, hooks_p99) = (
        statistics.quantiles(column, n=100)[49:99:49] for column in (whole, hooks)
    )
    figures = round(median, 3), round(p99, 3)
    parts = (round(us, 1) for us in (statistics.fmean(hooks), hooks_median, hooks_p99))
    return Cost(arm, running, len(found), *figures, *parts)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--running",
        type=int,
        nargs="+",
        default=[8, 64, 256],
        help="running requests (%(default)s)",
    )
    parser.add_argument(
        "--arms",
        nargs="+",
        choices=ARMS,
        default=list(ARMS),
        help="servers to measure (%(default)s)",
    )
    parser.add_argument(
        "--steps", type=int, default=600, help="decode steps of each arm (%(default)s)"
    )
    parser.add_argument("--json", metavar="FILE", help="also write the figures here")
    args = parser.parse_args()
    figures: list[Cost] = []
    with tempfile.TemporaryDirectory() as folder:
        for arm in args.arms:
            log = Path(folder) / f"passes-{arm}.jsonl"
            with started(arm, folder, log) as cluster:
                for running in args.running:
                    log.write_text("")
                    asyncio.run(run(cluster, running, args.steps))
                    rows = [tuple(json.loads(line)) for line in log.read_text().splitlines()]
                    figures.append(cost(arm, running, rows))
                    print(figures[-1], flush=True)
    if args.json:
        Path(args.json).write_text(json.dumps([asdict(figure) for figure in figures], indent=2))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (InputError, ClusterError) as error:
        sys.exit(f"bench_decode_passes: error: {error}")
