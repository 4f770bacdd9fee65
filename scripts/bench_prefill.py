"""Measure a prefill server under upstream's scheduling and under Kairos', on emulated devices.

    python scripts/bench_prefill.py head-of-line
    python scripts/bench_prefill.py cost

`head-of-line`: time to first token of one short request behind ten cancelled prompts of 60,000
tokens, and behind one running prompt of 100,000 tokens.

`cost`: scheduler CPU time per prefill batch with 10, 100 and 1,000 requests queued, median and 99th
percentile. One figure is a whole pass of the event loop without the launch of its batch, the other
the part of it in Kairos' hooks. Whole passes of the two arms are hard to compare: upstream's part
grows with the requests of a batch, and the batches differ.

Run it on a quiet machine: the device is emulated, so only the scheduler's own time is real.
"""

import argparse
import asyncio
import json
import secrets
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import aiohttp

from kairos.cluster import Cluster, ClusterError, ClusterSpec
from kairos.errors import InputError
from kairos_emulation.cluster import platform_model, with_platform

ARMS = ("upstream", "kairos")
PROFILE = "minimax-m2.5-tp4-h200"
SHORT = 200
IN_TRANSIT = 16  # requests on their way to the queue or from it
PROBE = Path(__file__).parent / "probes" / "scheduler_pass"


@dataclass(frozen=True)
class FirstTokenWait:
    """The time to first token of one short request.

    Attributes:
        arm: `upstream` or `kairos`.
        behind: the prompts before it.
        ttft_s: seconds.
    """

    arm: str
    behind: str
    ttft_s: float


@dataclass(frozen=True)
class PassCost:
    """Scheduler CPU time of passes that formed a batch, milliseconds.

    Attributes:
        arm: `upstream` or `kairos`.
        queued: about how many requests waited.
        batches: number of passes.
        median_ms: whole passes.
        p99_ms: whole passes.
        hooks_median_ms: the part in Kairos' hooks.
        hooks_p99_ms: the part in Kairos' hooks.
    """

    arm: str
    queued: int
    batches: int
    median_ms: float
    p99_ms: float
    hooks_median_ms: float
    hooks_p99_ms: float


def make_cluster(arm: str, folder: str, env: dict[str, str] | None = None) -> Cluster:
    """Return a pair of servers, which are started by entering it.

    Args:
        arm: `upstream` or `kairos`.
        folder: of models and logs.
        env: further variables of the servers.
    """
    spec = ClusterSpec(
        model=platform_model("emulated", Path(folder) / "models"),
        router=None,
        kairos=arm == "kairos",
        env=env or {},
        args=(
            *(("--kairos-profile", PROFILE) if arm == "kairos" else ()),
            *("--max-running-requests", "2048", "--context-length", "131072"),
            # The queue to be measured is that of the prefill server: no wait for decode memory.
            *("--disaggregation-decode-allocation-policy", "prefill_complete"),
        ),
    )
    return Cluster(with_platform(spec, "emulated", PROFILE), Path(folder) / f"run-{arm}")


class PairClient:
    """Sends requests to both servers of a pair, as a router does."""

    def __init__(self, cluster: Cluster, session: aiohttp.ClientSession) -> None:
        """Send to the first prefill and the first decode server of a running cluster."""
        self._urls = [cluster.prefill[0].url, cluster.decode[0].url]
        self._bootstrap_port = cluster.prefill[0].bootstrap_port
        self._session = session

    async def first_token(self, tokens: int, ttft_ms: float, rid: str | None = None) -> float:
        """Return the seconds until the decode server streams the first token of one request.

        Cancelling the call closes both connections.

        Args:
            tokens: length of the prompt.
            ttft_ms: its objective.
            rid: its id; a random one by default.

        Raises:
            InputError: a server answers with an error or an abort.
        """
        body: dict[str, object] = {
            "input_ids": [*(20 + secrets.randbelow(60) for _ in range(8)), *[20] * (tokens - 8)],
            "sampling_params": {
                "max_new_tokens": 2,
                "ignore_eos": True,
                "custom_params": {"kairos": {"ttft_ms": ttft_ms}},
            },
            "stream": True,
            "rid": rid or f"{secrets.randbits(127):032x}",
            "bootstrap_host": "127.0.0.1",
            "bootstrap_port": self._bootstrap_port,
            "bootstrap_room": secrets.randbits(62),
        }
        begin = time.monotonic()

        async def answered(url: str) -> float:
            async with self._session.post(f"{url}/generate", json=body) as response:
                line = await response.content.readline()
                seconds = time.monotonic() - begin
                # An error or an abort is no first token, however fast it comes.
                is_token = line.startswith(b"data: {") and b'"error"' not in line
                if response.status != 200 or not is_token or b'"type":"abort"' in line:
                    raise InputError(f"{url}: status {response.status}, no token: {line[:200]!r}")
                return seconds

        tasks = [asyncio.create_task(answered(url)) for url in self._urls]
        try:
            return (await asyncio.gather(*tasks))[1]
        finally:
            for task in tasks:
                task.cancel()

    async def abort(self, rid: str) -> None:
        """Abort a request on both servers."""
        for url in reversed(self._urls):
            async with self._session.post(f"{url}/abort_request", json={"rid": rid}):
                pass


async def head_of_line(cluster: Cluster, arm: str) -> list[FirstTokenWait]:
    """Measure a short request behind cancelled prompts, and behind a running one."""
    timeout = aiohttp.ClientTimeout(total=600)
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
        client = PairClient(cluster, session)
        await client.first_token(SHORT, 2000)  # the first request after a start is slower

        rids = [f"{secrets.randbits(127):032x}" for _ in range(10)]
        long = [asyncio.create_task(client.first_token(60_000, 2000, rid)) for rid in rids]
        await asyncio.sleep(1.0)
        for task, rid in zip(long, rids, strict=True):
            await client.abort(rid)
            task.cancel()
        cancelled = await client.first_token(SHORT, 2000)
        await asyncio.gather(*long, return_exceptions=True)
        await asyncio.sleep(5.0)

        running = asyncio.create_task(client.first_token(100_000, 30_000))
        await asyncio.sleep(0.5)
        behind = await client.first_token(SHORT, 2000)
        await running
    return [
        FirstTokenWait(arm, "10 cancelled prompts of 60,000 tokens", round(cancelled, 3)),
        FirstTokenWait(arm, "1 running prompt of 100,000 tokens", round(behind, 3)),
    ]


async def pass_cost(cluster: Cluster, arm: str, queued: int, log: Path) -> PassCost:
    """Keep requests waiting until 150 batches were formed beside them.

    Args:
        cluster: a running pair.
        arm: for the result.
        queued: about how many requests wait.
        log: the probe's records, one pass a line.

    Raises:
        InputError: too few batches were formed.
    """
    timeout = aiohttp.ClientTimeout(total=600)
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
        client = PairClient(cluster, session)

        async def again() -> None:
            while True:
                await client.first_token(3000, 2000)

        tasks = [asyncio.create_task(again()) for _ in range(queued + IN_TRANSIT)]
        found: list[tuple[float, float]] = []
        try:
            for _ in range(600):
                await asyncio.sleep(0.5)
                rows = [json.loads(row) for row in log.read_text().splitlines()]
                found = [(ms, own) for n, ms, own in rows if queued / 2 <= n <= 2 * queued]
                if len(found) >= 150:
                    break
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
    if len(found) < 20:
        raise InputError(
            f"{arm}, {queued} queued: {len(found)} batches were formed, at least 20 are needed; "
            "run it on a quieter machine"
        )
    cuts = [statistics.quantiles(column, n=100) for column in zip(*found, strict=True)]
    figures = (round(cut[rank], 3) for cut in cuts for rank in (49, 98))
    return PassCost(arm, queued, len(found), *figures)


def main() -> int:
    """Measure, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("what", choices=["head-of-line", "cost"], help="the measurement")
    parser.add_argument(
        "--queued",
        type=int,
        nargs="+",
        default=[10, 100, 1000],
        metavar="N",
        help="for cost: requests that wait (default: 10 100 1000)",
    )
    parser.add_argument(
        "--arms", nargs="+", choices=ARMS, default=list(ARMS), help="default: both, in this order"
    )
    parser.add_argument("--json", metavar="FILE", help="also write the figures here")
    args = parser.parse_args()
    figures: list[FirstTokenWait | PassCost] = []
    with tempfile.TemporaryDirectory() as folder:
        for arm in args.arms:
            if args.what == "head-of-line":
                with make_cluster(arm, folder) as cluster:
                    found = asyncio.run(head_of_line(cluster, arm))
                print(*found, sep="\n", flush=True)
                figures += found
                continue
            for queued in args.queued:
                log = Path(folder) / f"passes-{arm}-{queued}.jsonl"
                log.touch()
                env = {
                    "PYTHONPATH": str(PROBE),
                    "KAIROS_PROBE_FILE": str(log),
                    "KAIROS_PROBE_ROLE": "prefill",
                }
                with make_cluster(arm, folder, env) as cluster:
                    figures.append(asyncio.run(pass_cost(cluster, arm, queued, log)))
                print(figures[-1], flush=True)
    if args.json:
        Path(args.json).write_text(json.dumps([asdict(figure) for figure in figures], indent=2))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (InputError, ClusterError) as error:
        sys.exit(f"bench_prefill: error: {error}")
