"""What it costs to cut a router into shards, each with pairs of its own, against one queue for all;
with --compare, what late binding gains over other rules, in one shard and over the trace as it is.

Simulated: prefill by urgency, decode reduced to memory and one token per 30 ms, Poisson arrivals of
requests drawn from a trace without shared prefixes. A balancer that knows nothing of the requests
("random") or only how many each shard holds ("least") stands in front. `router us` is measured: CPU
time of the dispatchers per request on this machine.
"""

import argparse
import sys
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from kairos.errors import InputError
from kairos.latency import load_profile
from kairos.router.queue.params import Binding, DispatchParams
from kairos.sim.router_shards import BALANCERS, ENGINES, ShardedSimulation, ShardLayout, poisson
from kairos.workload.load import scale_to_load
from kairos.workload.readers import read_trace
from kairos.workload.slo_sets import SLO_SETS, assign_slos
from kairos.workload.trace import Trace

SEEDS = 2
UNBOUNDED = DispatchParams(
    max_requests=1_000_000, max_sequences=1_000_000, tenant_room=float("inf")
)


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--trace", required=True, help="trace file, any format that replay.py reads")
    add("--pairs", type=_numbers, default=[2, 4, 8, 16, 32, 64], help="a list: 2,8,32")
    add("--per-shard", type=_numbers, help="only these sizes of a shard (default: powers of two)")
    add("--load", type=float, default=0.9, help="prefill load")
    add("--compare", action="store_true", help="2P1D and 2P2D at loads 0.7, 0.9 and 1.1")
    add("--first", type=int, default=2_000, help="with --compare: requests of the trace")
    add("--slo", choices=SLO_SETS, default="L3")
    add("--engine", choices=ENGINES, default="urgency", help="order inside prefill instances")
    add("--requests", type=int, default=100, help="per pair, 3000 at least in all")
    add("--profile", default="minimax-m2.5-tp4-h200", help="shipped name or path")
    add("--json", type=Path, help="write the figures here")
    add("--plot", type=Path, help="write a plot here")
    return parser.parse_args()


def measure(args: argparse.Namespace, layout: ShardLayout) -> dict[str, Any]:
    """Means over seeds, and the spread of the attainment between them."""
    profile = load_profile(args.profile)
    trace = read_trace(args.trace)
    pairs = layout.shards * layout.prefill
    count = max(3_000, args.requests * pairs)
    runs = []
    for seed in range(SEEDS):
        requests = poisson(trace.requests, count, args.load, pairs, profile, seed)
        slos = assign_slos(requests, [0] * count, profile, args.slo)
        served = ShardedSimulation(requests, slos, replace(layout, seed=seed), profile).run()
        rate = count / requests[-1].arrival_s
        runs.append({**asdict(served), "router_cores": served.router_us * 1e-6 * rate})
    means = {name: float(np.mean([run[name] for run in runs])) for name in runs[0]}
    attained = [run["ttft_attainment"] for run in runs]
    return {
        "simulated": True,
        "pairs": pairs,
        "shards": layout.shards,
        "pairs_per_shard": layout.prefill,
        "balancer": layout.balancer,
        "load": args.load,
        "engine": layout.engine,
        "requests": count,
        "seeds": SEEDS,
        "spread": max(attained) - min(attained),
        **means,
    }


def layouts(args: argparse.Namespace) -> list[ShardLayout]:
    """Every way to cut so many pairs into equal shards of a power of two."""
    found = []
    for pairs in args.pairs:
        size = 1
        while size <= pairs:
            if pairs % size == 0 and size in (args.per_shard or [size]):
                for balancer in BALANCERS if size < pairs else BALANCERS[:1]:
                    shards = pairs // size
                    found.append(ShardLayout(shards, size, size, balancer, args.engine, UNBOUNDED))
            size *= 2
    return found


def compare(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Rules of binding beside each other, for engines of both orders; prefixes are shared as the
    trace says."""
    profile = load_profile(args.profile)
    whole = read_trace(args.trace)
    trace = Trace(whole.name, whole.sha256, whole.requests[: args.first])
    rows = []
    print("load engine  instances  binding        TTFT %    p50    p99  cached %  router us")
    for load, engine, decode in product((0.7, 0.9, 1.1), ENGINES, (1, 2)):
        requests = scale_to_load(trace, load, profile, instances=2).trace.requests
        slos = assign_slos(requests, [0] * len(requests), profile, args.slo)
        for binding in Binding:
            params = replace(UNBOUNDED, binding=binding)
            layout = ShardLayout(1, 2, decode, engine=engine, params=params)
            served = ShardedSimulation(requests, slos, layout, profile).run()
            row = {"simulated": True, "load": load, "engine": engine, "decode": decode}
            rows.append({**row, "binding": binding.value, **asdict(served)})
            print(
                f"{load:4} {engine:8} 2P{decode}D      {binding.value:12} "
                f"{served.ttft_attainment:8.1f} {served.ttft_p50_s:6.2f} {served.ttft_p99_s:6.1f} "
                f"{served.cached_share:9.1f} {served.router_us:10.0f}",
                flush=True,
            )
    return rows


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Attainment over the size of a shard, and the cores that its router needs."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(12, 4.5))
    for pairs in sorted({row["pairs"] for row in rows}):
        for balancer, style in (("random", "o--"), ("least", "s-")):
            line = [
                row
                for row in rows
                if row["pairs"] == pairs and (row["balancer"] == balancer or row["shards"] == 1)
            ]
            line.sort(key=lambda row: row["pairs_per_shard"])
            sizes = [row["pairs_per_shard"] for row in line]
            label = f"{pairs} pairs, {balancer}"
            axes[0].plot(sizes, [row["ttft_attainment"] for row in line], style, label=label)
    whole = sorted((row for row in rows if row["shards"] == 1), key=lambda row: row["pairs"])
    axes[1].plot([row["pairs"] for row in whole], [row["router_cores"] for row in whole], "o-")
    axes[0].set_ylabel("TTFT attainment, % (simulated)")
    axes[1].set_ylabel("cores for scheduling, one shard (measured)")
    for axis in axes:
        axis.set_xscale("log", base=2)
        axis.set_xlabel("pairs in a shard")
    axes[0].legend(fontsize=6)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> int:
    args = _arguments()
    try:
        rows = compare(args) if args.compare else measured(args)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    if args.json is not None:
        args.json.write_bytes(orjson.dumps(rows, option=orjson.OPT_INDENT_2))
    if args.plot is not None and not args.compare:
        plot(rows, args.plot)
    return 0


def measured(args: argparse.Namespace) -> list[dict[str, Any]]:
    """A row per layout, printed as it comes."""
    rows = []
    print("pairs shards per-shard balancer  TTFT %  spread    p50     p99  router us   cores")
    for layout in layouts(args):
        row = measure(args, layout)
        rows.append(row)
        print(
            f"{row['pairs']:5} {row['shards']:5} {row['pairs_per_shard']:8} "
            f"{row['balancer']:8} {row['ttft_attainment']:7.2f} {row['spread']:7.2f} "
            f"{row['ttft_p50_s']:6.2f} {row['ttft_p99_s']:7.1f} {row['router_us']:10.0f} "
            f"{row['router_cores']:7.3f}",
            flush=True,
        )
    return rows


if __name__ == "__main__":
    sys.exit(main())
