"""Tables and plots of simulation results."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

Result = dict[str, Any]

_COLUMNS = (
    ("load", "load", "{:g}"),
    ("prefill_policy", "prefill", "{}"),
    ("decode_policy", "decode", "{}"),
    ("e2e_attainment", "e2e %", "{:.2f}"),
    ("ttft_attainment", "TTFT %", "{:.2f}"),
    ("tpot_attainment", "TPOT %", "{:.2f}"),
    ("longest10_ttft_attainment", "longest 10 %", "{:.1f}"),
    ("ttft_p99_s", "TTFT p99 s", "{:.2f}"),
    ("max_stall_s", "stall s", "{:.1f}"),
    ("tokens_per_s", "tok/s", "{:.0f}"),
    ("goodput_tokens_per_s", "goodput tok/s", "{:.0f}"),
    ("lp_bound_ttft", "bound", "{:.2f}"),
)


def table_of(results: Sequence[Result], title: str) -> Table:
    """One row per run; columns that no run filled are left out.

    Args:
        results: figures of the runs, see `kairos.sim.sweep_point.run`.
        title: text above the table.
    """
    table = Table(title=title)
    shown = [c for c in _COLUMNS if any(_is_known(r.get(c[0])) for r in results)]
    for _, heading, _ in shown:
        table.add_column(heading, justify="right")
    for result in results:
        values = ((result.get(key), form) for key, _, form in shown)
        table.add_row(*(form.format(value) if _is_known(value) else "" for value, form in values))
    return table


def _is_known(value: object) -> bool:
    """Return whether a figure exists. A NaN is the attainment of no request."""
    return value is not None and value == value


def plot_attainment(results: Sequence[Result], path: Path) -> None:
    """Plot end-to-end, TTFT and TPOT attainment over load, one line per pair of policies.

    Args:
        results: figures of the runs.
        path: the image file to write.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(15, 4.5), sharey=True)
    pairs = sorted({(r["prefill_policy"], r["decode_policy"]) for r in results})
    for axis, key in zip(axes, ("e2e", "ttft", "tpot"), strict=True):
        for pair in pairs:
            line = sorted(
                (r["load"], r[f"{key}_attainment"])
                for r in results
                if (r["prefill_policy"], r["decode_policy"]) == pair
            )
            axis.plot(*zip(*line, strict=True), marker="o", label=" + ".join(pair))
        axis.set_title(f"{key} attainment (simulated)")
        axis.set_xlabel("load")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("% of requests")
    axes[0].set_ylim(0, 101)
    axes[-1].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def plot_shards(rows: Sequence[Result], path: Path) -> None:
    """Plot TTFT attainment over the size of a shard, and the cores that one router needs.

    Args:
        rows: figures of the layouts, see `kairos.sim.shard_study.measure`.
        path: the image file to write.
    """
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
    plt.close(figure)
