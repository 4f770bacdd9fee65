"""The picture of a calibration: fit above, residuals below."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

import numpy as np

from kairos.calibrate.measure import DecodeMeasurement, PrefillMeasurement
from kairos.calibrate.result import CalibrationResult
from kairos.latency.first_token import prefill_s, single_request_chunks
from kairos.replay.report.drawing import legend_below, png

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

_LINE_POINTS = 60
S = TypeVar("S", DecodeMeasurement, PrefillMeasurement)


class _Residuals(NamedTuple, Generic[S]):
    """One picture of residuals.

    Attributes:
        groups: samples by the value that chooses their shade.
        x: value of a sample along the x axis.
        error: relative error of a sample.
        label: of the x axis.
        title: of the picture.
    """

    groups: Mapping[int, Sequence[S]]
    x: Callable[[S], float]
    error: Callable[[S], float]
    label: str
    title: str


def picture(found: CalibrationResult, title: str) -> bytes:
    """Return a PNG with decode steps on the left and prefill on the right."""

    def draw(axes: "NDArray[np.object_]") -> None:
        _decode(axes[0, 0], found)
        _prefill(axes[0, 1], found)
        _residuals(
            axes[1, 0],
            _Residuals(
                _groups(found.steps, lambda s: s.batch),
                lambda s: s.total_context,
                lambda s: found.step_s(s) / s.seconds - 1.0,
                "sum of contexts, tokens",
                "Decode: prediction against measurement",
            ),
        )
        _residuals(
            axes[1, 1],
            _Residuals(
                _groups(found.first_tokens, lambda s: s.cached),
                lambda s: s.length - s.cached,
                lambda s: (found.prefill_s(s) + found.path.seconds(s.length)) / s.seconds - 1.0,
                "new tokens",
                "Time to first token: prediction against measurement",
            ),
        )

    return png((2, 2), (14, 9.6), title, draw)


def _decode(axes: "Axes", found: CalibrationResult) -> None:
    groups = _groups(found.steps, lambda s: s.batch)
    for (batch, samples), shade in zip(groups.items(), _shades(len(groups)), strict=True):
        contexts = [s.total_context for s in samples]
        axes.scatter(
            contexts, [1e3 * s.seconds for s in samples], s=28, color=shade, label=f"{batch}"
        )
        line = np.geomspace(min(contexts) / 1.2, max(contexts) * 1.2, _LINE_POINTS)
        model = found.profile.decode
        fitted = [1e3 * model.step_s(batch, context, context / batch) for context in line]
        axes.plot(line, fitted, color=shade, linewidth=1.2)
    _scales(axes, "sum of contexts, tokens", "step, ms")
    axes.set_ylim(bottom=0)
    axes.set_title("Decode steps: measured (points) and fitted (lines), by batch size")
    legend_below(axes, 0.14, 10)


def _prefill(axes: "Axes", found: CalibrationResult) -> None:
    chunk = found.profile.limits.chunk_tokens
    groups = _groups(found.first_tokens, lambda s: s.cached)
    for (cached, samples), shade in zip(groups.items(), _shades(len(groups)), strict=True):
        new = [s.length - s.cached for s in samples]
        measured = [1e3 * found.measured_prefill_s(s) for s in samples]
        axes.scatter(new, measured, s=28, color=shade, label=f"behind {cached:,}")
        line = np.geomspace(min(new) / 1.2, max(new) * 1.2, _LINE_POINTS).astype(int)
        fitted = [
            1e3 * prefill_s(found.profile.prefill, single_request_chunks(cached + n, cached, chunk))
            for n in line
        ]
        axes.plot(line, fitted, color=shade, linewidth=1.2)
    _scales(axes, "new tokens", "prefill, ms")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    path = f"{1e3 * found.path.fixed_s:.1f} ms + {1e6 * found.path.per_token_s:.2f} µs a token"
    axes.set_title(f"Time to first token less {path}")
    legend_below(axes, 0.14, 5)


def _residuals(axes: "Axes", residuals: _Residuals[S]) -> None:
    groups = residuals.groups
    for samples, shade in zip(groups.values(), _shades(len(groups)), strict=True):
        x = [residuals.x(s) for s in samples]
        axes.scatter(x, [100 * residuals.error(s) for s in samples], s=28, color=shade)
    axes.axhline(0.0, color="#111111", linewidth=1)
    reach = max(1.0, *(abs(v) for v in axes.get_ylim()))
    axes.set_ylim(-reach, reach)
    _scales(axes, residuals.label, "predicted / measured - 1, %")
    axes.set_title(residuals.title)


def _scales(axes: "Axes", x: str, y: str) -> None:
    axes.set(xscale="log", xlabel=x, ylabel=y)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")


def _groups(samples: Sequence[S], key: Callable[[S], int]) -> dict[int, list[S]]:
    found: dict[int, list[S]] = {}
    for sample in sorted(samples, key=key):
        found.setdefault(key(sample), []).append(sample)
    return found


def _shades(n: int) -> list[tuple[float, float, float, float]]:
    from matplotlib import colormaps

    return [colormaps["viridis_r"](0.1 + 0.85 * i / max(1, n - 1)) for i in range(n)]
