"""The figures of scores: accuracy against cost, in time, and by wavenumber.

Lines are means over the repetitions that ended, bands reach from the smallest to the largest of
them. A figure of which the results hold nothing is not drawn.
"""

import numpy as np
from matplotlib.axes import Axes

from ..plotting.style import new_figure
from .axes import Drawing, burn_in, ends, legend, numbers, place_labels, units, wide
from .results import Results
from .statistics import COSTS, SCORES, estimate, over_repetitions, thinned
from .svg import INK, colour, inline, line, look, mark, marker, plain

TITLES = {score.name: score.title for score in (*SCORES, *COSTS)}


def cost(results: Results) -> list[Drawing]:
    """Accuracy against wall time, one point for each method."""

    score = results.score
    errors, seconds = results.values(score), results.values("seconds")
    if errors is None or seconds is None:
        return []
    title = TITLES.get(score, score)
    points = []
    for method in results.methods:
        y, x = (estimate(values[method.index]) for values in (errors, seconds))
        if y.n and x.n and x.mean > 0:
            points.append((method, x, y))
    if not points:
        return []
    with look():
        figure = new_figure(4.4, 3.4)
        axes = figure.subplots()
        for method, x, y in points:
            whole = not results.diverged[method.index].any()
            bars = axes.errorbar(
                x.mean,
                y.mean,
                xerr=[[x.mean - x.low], [x.high - x.mean]],
                yerr=[[y.mean - y.low], [y.high - y.mean]],
                fmt=marker(method),
                ms=6,
                color=colour(method),
                mfc=colour(method) if whole else "none",
                elinewidth=0.9,
            )
            mark(method, *bars.get_children())
        axes.set_xscale("log")
        numbers(axes.xaxis)
        if wide([y.low for _, _, y in points] + [y.high for _, _, y in points]):
            axes.set_yscale("log")
            numbers(axes.yaxis)
        axes.set(xlabel="wall time of a run [s]", ylabel=title)
        axes.margins(0.12)
        place_labels(figure, axes, [(m, x.mean, y.mean) for m, x, y in points])
        words = "; ".join(f"{m.label}: {y.mean:.4g} in {x.mean:.3g} s" for m, x, y in points)
        svg = inline(figure, "cost", f"{title} against wall time", words)
    lost = [m.label for m in results.methods if m.index not in {p[0].index for p in points}]
    caption = (
        f"{title} against the wall time of one run. Bars reach from the smallest to the largest "
        f"of the repetitions."
    )
    if results.diverged.any():
        caption += " Hollow: some runs diverged, and the point is of the others."
    if lost:
        caption += f" Not shown, for want of a finished run or of its time: {', '.join(lost)}."

    return [Drawing(svg, "Accuracy against cost", caption)]


def in_time(results: Results) -> list[Drawing]:
    """RMSE and spread in time: all methods together."""

    return [drawing for name in ("rmse_time", "spread_time") for drawing in course(results, name)]


def course(results: Results, name: str) -> list[Drawing]:
    """A score of all methods in time."""

    if (values := results.values(name)) is None:
        return []
    title = TITLES[name.removesuffix("_time")]
    time, blocks, width = thinned(results.coordinate("time"), values)
    means, lows, highs = over_repetitions(blocks)
    shown = [m for m in results.methods if np.isfinite(means[m.index]).any()]
    with look():
        figure = new_figure(4.4, 2.7 + 0.15 * ((len(shown) + 1) // 2))
        axes = figure.subplots()
        # Only the bulk decides whether the axis is logarithmic: a first error may be far off.
        if wide(np.nanquantile(means[[m.index for m in shown]], [0.02, 0.98])):
            axes.set_yscale("log")
            numbers(axes.yaxis)
        for method in shown:
            i = method.index
            band = axes.fill_between(
                time, lows[i], highs[i], color=colour(method), alpha=0.15, lw=0
            )
            (mean,) = axes.plot(time, means[i], label=plain(method.label), lw=1.1, **line(method))
            mark(method, band, mean)
        axes.set_xlim(*ends(time))
        crosses(axes, results)
        marked = burn_in(axes, results)
        axes.set(xlabel=units(results, "time"), ylabel=title)
        legend(figure, axes)
        words = "; ".join(f"{m.label}: {np.nanmean(means[m.index]):.3g} on average" for m in shown)
        svg = inline(figure, name, f"{title} in time", words)
    caption = (
        f"{title} in time"
        + (f", averaged over {width} analyses in a row" if width > 1 else "")
        + ". Lines: mean over the repetitions that ended; bands: smallest to largest."
        + (" Dashed: the end of burn-in." if marked else "")
        + (" Crosses on the axis: a run diverged." if results.diverged.any() else "")
    )

    return [Drawing(svg, f"{title} in time", caption)]


def crosses(axes: Axes, results: Results) -> None:
    """Marks the times at which runs diverged, on the upper edge."""

    low, high = axes.get_xlim()
    for method in results.methods:
        times = results.diverged_time[method.index][results.diverged[method.index]]
        times = times[(times >= low) & (times <= high)]
        (cross,) = axes.plot(
            times,
            np.ones(len(times)),
            "x",
            color=colour(method),
            ms=6,
            mew=1.6,
            clip_on=False,
            transform=axes.get_xaxis_transform(),
        )
        cross.set_in_layout(False)
        mark(method, cross)


def spectra(results: Results) -> list[Drawing]:
    """Spectra of the methods and of the truth, and their ratio below."""

    values = results.values("spectrum")
    if values is None or "truth_spectrum" not in results.dataset:
        return []
    k = results.coordinate("wavenumber")
    truth = np.asarray(
        results.dataset["truth_spectrum"].transpose(..., "wavenumber").values, dtype=np.float64
    )
    truth = np.atleast_2d(truth)
    used = (k > 0) & (np.nanmean(truth, axis=0) > 0)
    k, truth, values = k[used], truth[:, used], values[..., used]
    means, _, _ = over_repetitions(values)
    ratios, lows, highs = over_repetitions(values / truth)
    shown = [m for m in results.methods if np.isfinite(means[m.index]).any()]
    if not shown or len(k) < 2:
        return []
    with look():
        figure = new_figure(4.4, 3.9 + 0.15 * ((len(shown) + 2) // 2))
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[2, 1.2])
        upper.loglog(k, np.nanmean(truth, axis=0), color=INK, lw=1.6, label="truth")
        lower.axhline(1, color=INK, lw=1)
        for method in shown:
            i = method.index
            (curve,) = upper.loglog(k, means[i], label=plain(method.label), **line(method))
            band = lower.fill_between(k, lows[i], highs[i], color=colour(method), alpha=0.15, lw=0)
            (ratio,) = lower.semilogx(k, ratios[i], **line(method))
            mark(method, curve, band, ratio)
        numbers(upper.xaxis)
        numbers(upper.yaxis)
        lower.set_ylim(0, float(np.clip(1.1 * np.nanmax(highs), 1.5, 4)))
        lower.set(xlabel="wavenumber", ylabel="ratio to truth", xlim=ends(k))
        upper.set_ylabel("E(k)")
        legend(figure, upper)
        words = "; ".join(
            f"{m.label}: {ratios[m.index][0]:.2f} to {ratios[m.index][-1]:.2f}" for m in shown
        )
        words = f"Ratio to the truth at the smallest and the largest wavenumber: {words}"
        svg = inline(figure, "spectra", "Power spectra", words)
    caption = (
        "Power spectra of the members and of the truth, and their ratio: below 1, a method lacks "
        "energy at that scale. Lines: mean over the repetitions; bands: smallest to largest."
    )

    return [Drawing(svg, "Power spectra", caption)]
