"""Two measurements of a prefill server, upstream's scheduling against Kairos', on the emulated
accelerator.

    python scripts/bench_prefill.py head-of-line
    python scripts/bench_prefill.py cost

`head-of-line`: time to first token of one short request behind ten cancelled 60k-token prompts,
and behind one running 100k-token prompt. `cost`: scheduler CPU per prefill batch with 10, 100 and
1,000 requests queued: a whole pass of the event loop without the launch of its batch, and the part
of it that is in Kairos' hooks, median and 99th percentile. Whole passes compare less than they seem
to: what upstream does in one grows with the requests of the batch, and these differ.

Run on a quiet machine. The device is emulated, so only the scheduler's own time is real.
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
from typing import Any

import aiohttp

from kairos.cluster import Cluster, ClusterError, ClusterSpec
from kairos.errors import InputError
from kairos_emulation.cluster import platform_model, with_platform

ARMS = ("upstream", "kairos")
PROFILE = "minimax-m2.5-tp4-h200"
SHORT = 200
ON_THEIR_WAY = 16
PROBE = Path(__file__).parent / "probes" / "scheduler_pass"


@dataclass(frozen=True)
class Waited:
    """Seconds to the first token of one short request."""

    arm: str
    behind: str
    ttft_s: float


@dataclass(frozen=True)
class Cost:
    """Scheduler time of passes that formed a batch, milliseconds."""

    arm: str
    queued: int
    batches: int
    median_ms: float
    p99_ms: float
    hooks_median_ms: float
    hooks_p99_ms: float


def started(arm: str, folder: str, env: dict[str, str] | None = None) -> Cluster:
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


class Client:
    """Sends requests to both legs of a pair."""

    def __init__(self, cluster: Cluster, session: aiohttp.ClientSession) -> None:
        self._legs = [cluster.prefill[0].url, cluster.decode[0].url]
        self._bootstrap_port = cluster.prefill[0].bootstrap_port
        self._session = session

    async def first_token(self, tokens: int, ttft_ms: float, rid: str | None = None) -> float:
        """Seconds until the decode leg streams; cancelling it closes both connections."""
        body: dict[str, Any] = {
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

        async def leg(url: str) -> float:
            async with self._session.post(f"{url}/generate", json=body) as response:
                line = await response.content.readline()
                seconds = time.monotonic() - begin
                # An error or an abort is no first token, however fast it comes.
                told = line.startswith(b"data: {") and b'"error"' not in line
                if response.status != 200 or not told or b'"type":"abort"' in line:
                    raise InputError(f"{url}: status {response.status}, no token: {line[:200]!r}")
                return seconds

        tasks = [asyncio.create_task(leg(url)) for url in self._legs]
        try:
            return (await asyncio.gather(*tasks))[1]
        finally:
            for task in tasks:
                task.cancel()

    async def abort(self, rid: str) -> None:
        for url in reversed(self._legs):
            async with self._session.post(f"{url}/abort_request", json={"rid": rid}):
                pass


async def head_of_line(cluster: Cluster, arm: str) -> list[Waited]:
    timeout = aiohttp.ClientTimeout(total=600)
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
        client = Client(cluster, session)
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
        Waited(arm, "10 cancelled prompts of 60,000 tokens", round(cancelled, 3)),
        Waited(arm, "1 running prompt of 100,000 tokens", round(behind, 3)),
    ]


async def passes(cluster: Cluster, arm: str, queued: int, log: Path) -> Cost:
    """Keep about `queued` requests waiting until 150 batches were formed beside them."""
    timeout = aiohttp.ClientTimeout(total=600)
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
        client = Client(cluster, session)

        async def again() -> None:
            while True:
                await client.first_token(3000, 2000)

        # Some are always on their way to the queue, or from it.
        tasks = [asyncio.create_task(again()) for _ in range(queued + ON_THEIR_WAY)]
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
        raise InputError(f"{arm}, {queued} queued: only {len(found)} batches; raise the limits")
    cuts = [statistics.quantiles(column, n=100) for column in zip(*found, strict=True)]
    figures = (round(cut[rank], 3) for cut in cuts for rank in (49, 98))
    return Cost(arm, queued, len(found), *figures)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("what", choices=["head-of-line", "cost"])
    parser.add_argument("--queued", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--json", metavar="FILE", help="also write the figures here")
    args = parser.parse_args()
    figures: list[Waited | Cost] = []
    with tempfile.TemporaryDirectory() as folder:
        for arm in args.arms:
            if args.what == "head-of-line":
                with started(arm, folder) as cluster:
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
                with started(arm, folder, env) as cluster:
                    figures.append(asyncio.run(passes(cluster, arm, queued, log)))
                print(figures[-1], flush=True)
    if args.json:
        Path(args.json).write_text(json.dumps([asdict(figure) for figure in figures], indent=2))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (InputError, ClusterError) as error:
        sys.exit(f"bench_prefill: error: {error}")
