"""Markdown of arms, classes and gains, of which all tables of the evaluation consist."""

from collections.abc import Mapping, Sequence

from kairos.replay.evaluation.columns import ATTAINMENTS, SIMULATED_COLUMNS, Column
from kairos.replay.evaluation.records import EngineArm, EngineLoad
from kairos.replay.evaluation.series import best_upstream

BASELINE = "fcfs"
GAINING = ("kairos", "kairos-hold")
MISSING = "–"
Figures = Mapping[str, Mapping[str, float | None]]


def number(value: float | None, digits: int) -> str:
    """`value` with thousands separated; a dash where it is missing."""
    return MISSING if value is None else f"{value:,.{digits}f}"


def markdown(rows: Sequence[Sequence[str]], text_columns: int = 1) -> str:
    """A table.

    Args:
        rows: cells, the head first.
        text_columns: number of columns that are aligned to the left.
    """
    head, *body = rows
    rule = ["---" if i < text_columns else "---:" for i in range(len(head))]
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, rule, *body))


def arm_table(
    arms: Mapping[str, EngineArm], columns: Sequence[Column], intervals: bool = False
) -> str:
    """A row for each arm; with `intervals`, attainments carry their 95 % interval."""
    rows = [["", *(column.label for column in columns)]]
    for arm, figures in arms.items():
        cells = [arm]
        for name, _, digits in columns:
            text = number(getattr(figures, name), digits)
            if intervals and name in figures.intervals and name.endswith("attainment"):
                low, high = figures.intervals[name]
                text += f" ({low:.1f}–{high:.1f})"
            cells.append(text)
        rows.append(cells)
    return markdown(rows)


def simulated_arm_table(arms: Figures) -> str:
    """A row for each simulated arm."""
    rows = [["", *(column.label for column in SIMULATED_COLUMNS)]]
    for arm, figures in arms.items():
        rows.append([arm, *(number(figures[c.name], c.digits) for c in SIMULATED_COLUMNS)])
    return markdown(rows)


def load_table(loads: Mapping[str, Figures]) -> str:
    """e2e attainment by arm and load."""
    ordered = sorted(loads, key=float)
    rows = [["", *ordered]]
    for arm in loads[ordered[0]]:
        rows.append([arm, *(number(loads[x][arm]["e2e_attainment"], 1) for x in ordered)])
    return markdown(rows)


def class_table(arms: Mapping[str, EngineArm]) -> str:
    """TTFT, TPOT and e2e attainment by arm and SLO class."""
    names = list(next(iter(arms.values())).classes)
    rows = [["", *names]]
    for arm, figures in arms.items():
        shares = (
            [getattr(figures.classes[name], figure) for figure in ATTAINMENTS] for name in names
        )
        rows.append([arm, *(" / ".join(f"{share:.1f}" for share in own) for own in shares)])
    return markdown(rows)


def engine_gain_table(found: EngineLoad, load: str) -> str:
    """Gains at one load of a record; empty without FCFS or an arm to compare with it."""
    if BASELINE not in found.arms or not any(arm in found.arms for arm in GAINING):
        return ""
    names = (*ATTAINMENTS, "decode_tokens_per_busy_s", "goodput_tokens_per_s")
    figures = {arm: {name: getattr(own, name) for name in names} for arm, own in found.arms.items()}
    return gain_table({load: figures}, "decode_tokens_per_busy_s")


def gain_table(loads: Mapping[str, Figures], decode_tokens: str) -> str:
    """Gains of Kairos' arms over FCFS and over the best upstream arm.

    Args:
        loads: figures by load, arm and name.
        decode_tokens: name of the figure that has the tokens per second of decode time.
    """
    rows = [
        ["load", "arm", "against", "TTFT points", "TPOT points", "e2e points", "decode tok/s",
         "good tok/s"]
    ]  # fmt: skip
    for load, figures in loads.items():
        best = best_upstream({arm: own["e2e_attainment"] or 0.0 for arm, own in figures.items()})
        for arm in (arm for arm in GAINING if arm in figures):
            for other in dict.fromkeys((BASELINE, best)):
                own, base = figures[arm], figures[other]
                points = [f"{(own[x] or 0.0) - (base[x] or 0.0):+.1f}" for x in ATTAINMENTS]
                rates = [
                    _relative(own[name], base[name])
                    for name in (decode_tokens, "goodput_tokens_per_s")
                ]
                rows.append([load, arm, other, *points, *rates])
    return markdown(rows, text_columns=3)


def _relative(own: float | None, base: float | None) -> str:
    return f"{100 * (own / base - 1):+.0f} %" if base and own is not None else MISSING
