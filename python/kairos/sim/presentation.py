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
    ("goodput_tokens_per_s", "SMG/s", "{:.0f}"),
    ("lp_bound_ttft", "bound", "{:.2f}"),
)


def table_of(results: Sequence[Result], title: str) -> Table:
    """One row per run; columns that no run filled are left out. SMG: tokens of requests that met
    both objectives."""
    table = Table(title=title)
    shown = [c for c in _COLUMNS if any(r.get(c[0]) is not None for r in results)]
    for _, heading, _ in shown:
        table.add_column(heading, justify="right")
    for result in results:
        values = ((result.get(key), form) for key, _, form in shown)
        table.add_row(*("" if value is None else form.format(value) for value, form in values))
    return table


def plot_attainment(results: Sequence[Result], path: Path) -> None:
    """End-to-end, TTFT and TPOT attainment over load, one line per pair of policies."""
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
