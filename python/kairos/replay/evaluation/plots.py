"""Plots of the evaluation as SVG, each a function of the records.

The bytes depend on the records and on the version of matplotlib alone: ids are hashed with a fixed
salt, no date is written, and the font that measures the layout ships with matplotlib. Text stays
text, which is smaller. Backgrounds are transparent, and text and axes are in a grey that reads on
white and on dark pages.
"""

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from kairos.replay.evaluation.columns import ATTAINMENTS
from kairos.replay.evaluation.records import Records
from kairos.replay.evaluation.series import SWEEP, best_upstream, fidelity, sweep

_GREY = "#7b7b7b"
# Okabe and Ito's palette, less what is too light for white or too dark for a dark page. Markers
# tell the arms apart without colour.
_ARMS = {
    "kairos": ("#0a84d6", "o"),
    "kairos-hold": ("#7d6fd9", "D"),
    "sjf": ("#d55e00", "s"),
    "lpm": ("#b8860b", "v"),
    "hrrn": ("#009e73", "^"),
    "fcfs": (_GREY, "X"),
}
_FIGURES = {"ttft_attainment": "TTFT", "tpot_attainment": "TPOT", "e2e_attainment": "e2e"}
_STYLE: Any = {
    "svg.hashsalt": "kairos",
    "svg.fonttype": "none",
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "grid.color": _GREY,
    "grid.alpha": 0.25,
    "axes.edgecolor": _GREY,
    "axes.labelcolor": _GREY,
    "axes.titlecolor": _GREY,
    "xtick.color": _GREY,
    "ytick.color": _GREY,
    "text.color": _GREY,
    "legend.frameon": False,
    "savefig.transparent": True,
}
_LABEL_DISTANCE = 6.0  # between labels at line ends, percent of the axis
_DODGE = 0.12  # between markers of a row, so that equal values stay visible; rows are 1 apart


class GoodputScenario(NamedTuple):
    """An emulated workload in the plot of goodput.

    Attributes:
        label: name for readers.
        record: name of the record.
        load: load in a record of several loads.
    """

    label: str
    record: str
    load: str = ""


SCENARIOS = (
    GoodputScenario("Mooncake, prefill-bound, load 0.9", "6-headline"),
    GoodputScenario("Mooncake, prefill-bound, load 1.1", "5-overload"),
    GoodputScenario("Mooncake, decode-bound, load 1.0", "3-decode", "0.1457"),
    GoodputScenario("Reasoning, decode-bound, ten minutes", "14-reasoning-10-minutes"),
    GoodputScenario("Reasoning, short decode memory", "8-memory"),
    GoodputScenario("Azure, decode-bound, slow motion 1.5", "9-azure"),
)


def attainment_by_load(records: Records) -> bytes:
    """e2e attainment against load, a line for each arm."""

    def draw(axes: Any) -> None:
        ends: dict[str, tuple[float, float]] = {}
        for arm, own in sweep(records).items():
            loads = [float(load) for load in own]
            values = [figures.e2e_attainment for figures in own.values()]
            intervals = [figures.intervals["e2e_attainment"] for figures in own.values()]
            colour, marker = _ARMS[arm]
            low, high = ([interval[i] for interval in intervals] for i in (0, 1))
            axes.fill_between(loads, low, high, color=colour, alpha=0.1, linewidth=0)
            axes.plot(loads, values, color=colour, marker=marker, linewidth=2, markersize=5)
            ends[arm] = (loads[-1], values[-1])
        _label_ends(axes, ends)
        axes.set_xticks([float(load) for load, _ in SWEEP], [load for load, _ in SWEEP])
        axes.set(xlim=(0.2, 1.22), ylim=(0, 102))
        axes.set_xlabel("prefill load (1 = capacity of the prefill server)")
        axes.set_ylabel("requests that meet both SLOs, %")
        axes.set_title("Emulated: Mooncake conversation, SLO set L3, TPOT 30 ms, 95 % intervals")

    return _svg((7.2, 3.6), 1, lambda axes: draw(axes[0]))


def goodput(records: Records) -> bytes:
    """Largest load with 90 % e2e, simulated, and tokens per second in time, emulated."""
    found = [_scenario_goodput(records, scenario) for scenario in SCENARIOS]

    def draw(axes: Any) -> None:
        left, right = axes
        labels = [record.label for record in records.simulated.values()]
        _dots(left, labels, [record.goodput for record in records.simulated.values()])
        left.set_xlabel("largest load of the busier stage with 90 % e2e")
        left.set_title("Simulated")
        _dots(right, [scenario.label for scenario in SCENARIOS], found)
        right.set_xlabel("tokens/s of requests that meet both SLOs")
        right.set_title("Emulated")
        left.set_xlim(0, None)
        right.set_xlim(0, None)
        handles, names = left.get_legend_handles_labels()
        left.figure.legend(handles, names, loc="outside lower center", ncols=len(names))

    return _svg((7.2, 4.8), 2, draw)


def ttft_by_length(records: Records) -> bytes:
    """TTFT attainment by prompt length at load 0.9."""
    arms = records.engine_record("6-headline").arms
    shown = [arm for arm in ("kairos", "sjf", "fcfs") if arm in arms]

    def draw(axes: Any) -> None:
        ends: dict[str, tuple[float, float]] = {}
        for arm in shown:
            values = [decile.ttft_attainment for decile in arms[arm].deciles]
            colour, marker = _ARMS[arm]
            axes.plot(values, color=colour, marker=marker, linewidth=2, markersize=5)
            ends[arm] = (len(values) - 1.0, values[-1])
        _label_ends(axes, ends)
        deciles = arms[shown[0]].deciles
        axes.set_xticks(range(len(deciles)), [_thousands(one.longest_tokens) for one in deciles])
        axes.set(xlim=(-0.3, len(deciles)), ylim=(0, 102))
        axes.set_xlabel("longest prompt of each tenth of the requests, tokens")
        axes.set_ylabel("TTFT attainment, %")
        own = arms[shown[0]]
        axes.set_title(f"Emulated: Mooncake conversation, load {own.load:g}, SLO set L3")

    return _svg((7.2, 3.4), 1, lambda axes: draw(axes[0]))


def fidelity_plot(records: Records) -> bytes:
    """Simulator minus engine against the engine's attainment."""
    points = list(fidelity(records))

    def draw(axes: Any) -> None:
        for figure, colour, marker in zip(
            ATTAINMENTS, ("#0a84d6", "#d55e00", "#009e73"), ("o", "s", "^"), strict=True
        ):
            axes.plot(
                [getattr(point.engine, figure) for point in points],
                [point.points[figure] for point in points],
                marker, color=colour, markersize=5, markerfacecolor="none", label=_FIGURES[figure],
            )  # fmt: skip
        worst = min(points, key=lambda point: min(point.points.values()))
        figure = min(worst.points, key=lambda name: worst.points[name])
        axes.annotate(
            f"{worst.arm} at load {worst.load}, {_FIGURES[figure]}",
            (getattr(worst.engine, figure), worst.points[figure]), (-8, 0),
            textcoords="offset points", ha="right", va="center",
        )  # fmt: skip
        axes.axhline(0.0, color=_GREY, linewidth=1)
        axes.set(xlim=(0, 102), ylim=(-10, 10))
        axes.set_xlabel("attainment on the engine (emulated), %")
        axes.set_ylabel("simulator minus engine, points")
        axes.set_title(f"Simulated minus emulated: {len(points)} arms and loads")
        axes.legend(loc="upper left", ncols=3)

    return _svg((7.2, 3.4), 1, lambda axes: draw(axes[0]))


PLOTS: dict[str, Callable[[Records], bytes]] = {
    "attainment-by-load.svg": attainment_by_load,
    "goodput.svg": goodput,
    "ttft-by-length.svg": ttft_by_length,
    "fidelity.svg": fidelity_plot,
}
"""Every plot by file name."""


def _scenario_goodput(records: Records, scenario: GoodputScenario) -> dict[str, float]:
    """Tokens per second in time of FCFS, of the best upstream order and of Kairos."""
    arms = records.engine_record(scenario.record).at(scenario.load).arms
    best = best_upstream({arm: own.e2e_attainment for arm, own in arms.items()})
    shown = dict.fromkeys(arm for arm in ("fcfs", best, "kairos") if arm in _ARMS)
    return {arm: arms[arm].goodput_tokens_per_s for arm in shown}


def _dots(axes: Any, labels: Sequence[str], rows: Sequence[Mapping[str, float]]) -> None:
    """A row of marked values for each label, the first on top."""
    named: set[str] = set()
    for i, row in enumerate(rows):
        axes.plot([min(row.values()), max(row.values())], [i, i], color=_GREY, alpha=0.4)
        for j, (arm, value) in enumerate(row.items()):
            y = i + _DODGE * (j - (len(row) - 1) / 2)
            colour, marker = _ARMS[arm]
            label = None if arm in named else arm
            axes.plot(value, y, marker, color=colour, markersize=7, label=label, linestyle="none")
            named.add(arm)
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")


def _label_ends(axes: Any, ends: Mapping[str, tuple[float, float]]) -> None:
    """Write each arm's name at the end of its line, moved up where two names would overlap."""
    lowest = -_LABEL_DISTANCE
    for arm, (x, y) in sorted(ends.items(), key=lambda item: item[1][1]):
        lowest = max(y, lowest + _LABEL_DISTANCE)
        axes.annotate(
            arm, (x, lowest), (8, 0), textcoords="offset points", va="center",
            color=_ARMS[arm][0], fontweight="bold" if arm == "kairos" else "normal",
        )  # fmt: skip


def _thousands(tokens: int) -> str:
    return f"{tokens / 1000:.0f}k" if tokens >= 10_000 else f"{tokens / 1000:.1f}k"


def _svg(size: tuple[float, float], rows: int, draw: Callable[[Any], None]) -> bytes:
    """A figure of `rows` axes, one above the other, which `draw` fills.

    Args:
        size: width and height, inches.
        rows: number of axes.
        draw: takes the sequence of axes.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    with mpl.rc_context():
        mpl.rcdefaults()  # a matplotlibrc of the machine must not matter
        mpl.rcParams.update(_STYLE)
        figure, axes = plt.subplots(rows, figsize=size, layout="constrained", squeeze=False)
        draw(axes[:, 0])
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
        plt.close(figure)
    return buffer.getvalue()
