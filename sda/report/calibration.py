"""The figures of calibration: spread beside error, ranks, coverage.

Rank histograms and coverage say the same of a method whose truths are independent; the histogram
shows how it errs, the curve what an interval of it is worth.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from ..plotting.style import new_figure
from .axes import Drawing, burn_in, ends, legend, panel, units
from .results import Results
from .statistics import over_repetitions, thinned
from .svg import GREY, INK, colour, inline, line, look, mark, marker, plain

CAPTIONS = {
    "coverage": "Share of the truth inside central intervals, against their level; on the diagonal "
    "if calibrated, below it if the ensemble is too sure. Lines: mean over the repetitions; bands: "
    "smallest to largest.",
    "excess": "The same less the level: 0 if calibrated, negative if the ensemble is too sure.",
}


def spread_skill(results: Results) -> list[Drawing]:
    """RMSE and spread in time, a panel for each method."""

    errors, spreads = results.values("rmse_time"), results.values("spread_time")
    if errors is None or spreads is None:
        return []
    pair = np.stack([errors, spreads])
    time, pair, _ = thinned(results.coordinate("time"), pair, 80)
    errors, spreads = (over_repetitions(values)[0] for values in pair)
    both = [m for m in results.methods if np.isfinite(errors[m.index] + spreads[m.index]).any()]
    drawings = []
    for method in both:
        i = method.index
        with look():
            figure, axes = panel()
            axes.plot(time, errors[i], color=INK, lw=1, label="RMSE")
            axes.plot(time, spreads[i], "--", color=colour(method), lw=1.3, label="spread")
            axes.set_ylim(0, 1.35 * float(np.nanquantile([errors[i], spreads[i]], 0.98)))
            axes.set_xlim(*ends(time))
            burn_in(axes, results)
            axes.set_xlabel(units(results, "time"))
            axes.legend(loc="upper center", ncols=2, borderaxespad=0.1)
            words = (
                f"RMSE {np.nanmean(errors[i]):.3g} and spread {np.nanmean(spreads[i]):.3g} "
                f"on average"
            )
            svg = inline(figure, f"spread-{i}", f"{method.label}: RMSE and spread", words)
        drawings.append(Drawing(svg, method.label, method=method))

    return drawings


def ranks(results: Results) -> list[Drawing]:
    """Rank histograms, a panel for each method that has an ensemble."""

    if (histograms := results.values("rank_histogram")) is None:
        return []
    drawings = []
    for method in results.methods:
        i = method.index
        rows = histograms[i][np.isfinite(histograms[i]).any(axis=1)]
        if not len(rows):
            continue
        rows = rows[:, np.isfinite(rows).all(axis=0)]
        bins = rows.shape[1]
        rows = rows / rows.sum(axis=1, keepdims=True) * bins
        edges = np.linspace(0, 1, bins + 1)
        mean = rows.mean(axis=0)
        with look():
            figure, axes = panel()
            axes.grid(visible=False)
            axes.stairs(mean, edges, fill=True, color=colour(method), alpha=0.55, lw=0)
            axes.stairs(mean, edges, color=colour(method), lw=0.9)
            if len(rows) > 1:
                half = flat_band(rows)
                axes.axhspan(1 - half, 1 + half, color=GREY, alpha=0.4, lw=0)
                centres = (edges[1:] + edges[:-1]) / 2
                width = min(1.2, 24 / bins)
                axes.vlines(centres, rows.min(axis=0), rows.max(axis=0), color=INK, lw=width)
            axes.axhline(1, color=INK, lw=0.6, ls=(0, (3, 2)))
            axes.set_xlim(0, 1)
            axes.set_ylim(0, max(2.0, 1.08 * float(rows.max())))
            axes.set_xlabel("rank of the truth / members")
            words = (
                f"Relative frequency in {bins} bins, 1 if calibrated: {mean[0]:.2f} in the lowest, "
                f"{np.median(mean):.2f} in the median, {mean[-1]:.2f} in the highest"
            )
            svg = inline(figure, f"ranks-{i}", f"{method.label}: rank histogram", words)
        drawings.append(Drawing(svg, method.label, method=method))

    return drawings


def flat_band(rows: NDArray[np.float64]) -> float:
    r"""Half the width of the band that the mean of flat histograms would keep within.

    Ranks next to each other in space and time are not independent, so that counting them tells
    nothing of how far from flat a histogram may be. How far repetitions differ does: with s² the
    variance between the n repetitions, averaged over the b bins, the band of 95 % is
    1 ± t_{b(n-1)} s / √n.

    Arguments:
        rows: Relative frequencies about 1, with shape `(repetition, bin)`, two repetitions or more.
    """

    n, bins = rows.shape
    error = np.sqrt(rows.var(axis=0, ddof=1).mean() / n)

    return float(stdtrit(bins * (n - 1), 0.975) * error)


def coverage(results: Results) -> list[Drawing]:
    """How often the truth is inside central intervals, and how far that is from their level."""

    if (values := results.values("coverage")) is None:
        return []
    level = results.coordinate("level")
    means, lows, highs = over_repetitions(values)
    shown = [m for m in results.methods if np.isfinite(means[m.index]).any()]
    reach = 1.15 * float(np.nanmax(np.abs(np.stack([lows, highs]) - level)))
    drawings = []
    for key, title, offset, limits in (
        ("coverage", "Coverage of central intervals", 0 * level, (0, 1)),
        ("excess", "Coverage minus level", level, (-reach, reach)),
    ):
        with look():
            figure = new_figure(4.4, 3.1 + 0.15 * ((len(shown) + 1) // 2))
            axes = figure.subplots()
            axes.plot([0, 1], [0, 0 if offset.any() else 1], color=INK, lw=0.8)
            for method in shown:
                i = method.index
                band = axes.fill_between(
                    level,
                    lows[i] - offset,
                    highs[i] - offset,
                    color=colour(method),
                    alpha=0.18,
                    lw=0,
                )
                (curve,) = axes.plot(
                    level,
                    means[i] - offset,
                    marker=marker(method),
                    ms=3.5,
                    lw=1.1,
                    label=plain(method.label),
                    **line(method),
                )
                mark(method, band, curve)
            axes.set(xlim=(0, 1), ylim=limits, xlabel="level of the central interval")
            axes.set_ylabel("share inside − level" if offset.any() else "share of the truth inside")
            legend(figure, axes)
            last = int(np.argmax(level))
            words = "; ".join(f"{m.label}: {means[m.index][last]:.2f}" for m in shown)
            words = f"Share of the truth inside the interval of level {level[last]:g}: {words}"
            drawings.append(Drawing(inline(figure, key, title, words), title, CAPTIONS[key]))

    return drawings
