"""Overload a pair of real servers on the emulated accelerator in waves.

    python scripts/soak.py --duration-s 1800

Waves of overload (1.5 times the capacity of the prefill server) alternate with relief (0.4 times).
Some clients disconnect before their first token. The run fails when the memory of a server grows,
when a request is not served within `--bound-s`, when a request fails, or when the servers still
hold requests or tokens at the end.
"""

import argparse
import asyncio
import json
import math
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

import aiohttp
from bench_prefill import PairClient

from kairos.cluster import Cluster, ClusterError, ClusterSpec, Server
from kairos.errors import InputError
from kairos.extras import bench_extra
from kairos.latency import load_profile
from kairos_emulation.cluster import platform_model, with_platform

PROFILE = "tiny-fast"
OVERLOAD, RELIEF = (1.5, 40.0), (0.4, 80.0)  # load, seconds
IMPATIENT_SHARE = 0.05  # of clients, which disconnect early
MAX_GROWTH = 0.1  # of resident memory, from the second quarter to the last


def prompt_tokens(dice: random.Random) -> int:
    """Draw a length: mostly short, and tens of thousands of tokens for one prompt in twenty."""
    if dice.random() < 0.05:
        return dice.randrange(20_000, 80_000)
    return min(int(dice.lognormvariate(6.5, 1.0)) + 16, 20_000)


class Soak:
    """One run.

    Args:
        cluster: a pair of servers.
        duration_s: seconds of arrivals.
        bound_s: largest age of a request; the run ends early at twice this age.
        seed: of arrivals and lengths.

    Attributes:
        oldest_s: largest age of a request, served or not, in seconds.
        outcomes: number of requests by outcome.
        resident: resident bytes of each server, by time.
    """

    def __init__(self, cluster: Cluster, duration_s: float, bound_s: float, seed: int) -> None:
        self._cluster, self._duration_s, self._bound_s = cluster, duration_s, bound_s
        self._dice = random.Random(seed)
        model = load_profile(PROFILE).prefill
        sample = random.Random(seed)
        lengths = [prompt_tokens(sample) for _ in range(4000)]
        self._work_s = statistics.mean(model.remaining_s(0, n, 2048) for n in lengths)
        self._alive: dict[int, float] = {}
        self.oldest_s = 0.0
        self.outcomes: dict[str, int] = {"served": 0, "gave up": 0, "failed": 0}
        self.resident: list[list[float]] = []

    async def run(self) -> None:
        """Send requests for the duration, and return when all have ended.

        Raises:
            ClusterError: a server died.
            InputError: a request is not served for twice the bound.
        """
        timeout = aiohttp.ClientTimeout(total=None)
        connector = aiohttp.TCPConnector(limit=0, force_close=True)
        async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
            client = PairClient(self._cluster, session)
            monitor = asyncio.create_task(self._monitor())
            requests: set[asyncio.Task[None]] = set()
            begin = time.monotonic()
            number = 0
            while (now := time.monotonic() - begin) < self._duration_s and not monitor.done():
                load = OVERLOAD[0] if now % (OVERLOAD[1] + RELIEF[1]) < OVERLOAD[1] else RELIEF[0]
                number += 1
                task = asyncio.create_task(self._request(client, number))
                requests.add(task)
                task.add_done_callback(requests.discard)
                await asyncio.sleep(self._dice.expovariate(load / self._work_s))
            rest: asyncio.Future[list[None]] = asyncio.gather(*requests)
            both: set[asyncio.Future[None] | asyncio.Future[list[None]]] = {monitor, rest}
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            if monitor.done():  # a server died, or a request is not served
                rest.cancel()
                monitor.result()
            monitor.cancel()

    async def _request(self, client: PairClient, number: int) -> None:
        tokens = prompt_tokens(self._dice)
        patience = self._dice.uniform(0.1, 5.0) if self._dice.random() < IMPATIENT_SHARE else None
        self._alive[number] = time.monotonic()
        try:
            async with asyncio.timeout(patience):
                await client.first_token(tokens, 300 + tokens / 10)
            self.outcomes["served"] += 1
        except TimeoutError:
            self.outcomes["gave up"] += 1
        except (aiohttp.ClientError, InputError) as error:
            print(f"request {number} failed: {error}", file=sys.stderr)
            self.outcomes["failed"] += 1
        finally:
            self._note_age(number)
            del self._alive[number]

    def _note_age(self, number: int) -> None:
        self.oldest_s = max(self.oldest_s, time.monotonic() - self._alive[number])

    async def _monitor(self) -> None:
        while True:
            self._cluster.check()
            for number in list(self._alive):
                self._note_age(number)
            if self.oldest_s > 2 * self._bound_s:
                raise InputError(f"a request is {self.oldest_s:.0f} s old and not served")
            self.resident.append([_resident(server.pid) for server in _servers(self._cluster)])
            await asyncio.sleep(max(1.0, self._duration_s / 200))

    def growth(self) -> float:
        """Return the largest growth of a server's resident memory, as a fraction."""
        quarter = len(self.resident) // 4
        if quarter < 3:
            return math.inf  # the run is too short for a result
        by_server: list[tuple[float, ...]] = list(zip(*self.resident, strict=True))
        return max(
            statistics.median(series[-quarter:]) / statistics.median(series[quarter : 2 * quarter])
            - 1.0
            for series in by_server
        )


def _servers(cluster: Cluster) -> list[Server]:
    return [*cluster.prefill, *cluster.decode]


def _resident(pid: int) -> float:
    with bench_extra("soak"):
        import psutil
    family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    return float(sum(process.memory_info().rss for process in family))


async def _held(cluster: Cluster) -> dict[str, int]:
    """Return the requests and tokens that the servers still hold, after at most 30 s."""
    held: dict[str, int] = {}
    async with aiohttp.ClientSession() as session:
        for _ in range(30):
            held = {}
            for server in _servers(cluster):
                async with session.get(f"{server.url}/v1/loads?include=all") as response:
                    load = (await response.json())["loads"][0]
                for name in ("num_running_reqs", "num_waiting_reqs", "num_used_tokens"):
                    if load[name]:
                        held[f"{server.name}.{name}"] = load[name]
            if not held:
                break
            await asyncio.sleep(1)
    return held


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    # fmt: off
    add = parser.add_argument
    add("--duration-s", type=float, default=1800.0, metavar="S",
        help="seconds of arrivals (default 1800)")
    add("--bound-s", type=float, default=120.0, metavar="S",
        help="largest age of a request that passes (default 120)")
    add("--seed", type=int, default=1, metavar="N",
        help="seed of arrivals and lengths (default 1)")
    add("--json", type=Path, metavar="FILE", help="also write the figures to this file")
    # fmt: on
    return parser


def main() -> int:
    """Run the soak. Return 0 if it passed, 1 if it failed."""
    args = _parser().parse_args()
    with tempfile.TemporaryDirectory() as folder:
        spec = ClusterSpec(
            model=platform_model("emulated", Path(folder) / "models"),
            router=None,
            kairos=True,
            args=("--kairos-profile", PROFILE),
        )
        with Cluster(with_platform(spec, "emulated", PROFILE), Path(folder) / "run") as cluster:
            soak = Soak(cluster, args.duration_s, args.bound_s, args.seed)
            asyncio.run(soak.run())
            held = asyncio.run(_held(cluster))
    figures = {
        "outcomes": soak.outcomes,
        "oldest_s": round(soak.oldest_s, 1),
        "memory_growth": round(soak.growth(), 4),
        "held_in_the_end": held,
    }
    print(json.dumps(figures, indent=2))
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2))
    faults = [
        name
        for name, wrong in (
            ("a request failed", soak.outcomes["failed"] > 0),
            ("a request was older than its bound", soak.oldest_s > args.bound_s),
            ("memory grew", soak.growth() > MAX_GROWTH),
            ("the servers still hold requests or tokens", bool(held)),
        )
        if wrong
    ]
    print("soak:", "; ".join(faults) or "passed")
    return 1 if faults else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (InputError, ClusterError) as error:
        sys.exit(f"soak: error: {error}")
