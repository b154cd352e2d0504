"""The scores of `sda.verify`."""

import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ..verification.spectra import ROUNDING
from .style import CALIBRATED, ENSEMBLE, TRUTH, VARIABLES, label, new_figure, styled


def variables_of(scores: xr.Dataset, *needed: str) -> list[str]:
    """The variables of scores.

    Raises:
        ValueError: If these are no scores of `sda.verify`, or lack what is to be drawn.
    """

    if missing := [name for name in ("variable", *needed) if name not in scores.variables]:
        raise ValueError(
            f"the scores lack {missing}: they are those of sda.verify with two members or more"
            f"{' and periodic dimensions' if 'spectrum' in missing else ''}"
        )

    return [str(name) for name in scores["variable"].values]


def panels_of(count: int, width: float = 2.6, height: float = 2.1) -> tuple[Figure, NDArray]:
    """A row of panels."""

    figure = new_figure(max(3.0, width * count + 0.3), height)

    return figure, figure.subplots(1, count, squeeze=False)[0]


@styled
def plot_spread_skill(scores: xr.Dataset) -> Figure:
    """Draws the RMSE of the ensemble mean over time, and what the spread makes of it.

    Arguments:
        scores: What `sda.verify` returns.

    Raises:
        ValueError: If there is no spread.
    """

    names = variables_of(scores, "spread", "spread_skill")
    m = scores.attrs["members"]
    figure, grid = panels_of(len(names))
    for axes, name in zip(grid, names, strict=True):
        at = scores.sel(variable=name)
        axes.plot(at["time"], at["rmse"], color=TRUTH, label="RMSE of the mean")
        spread = np.sqrt((m + 1) / m) * at["spread"]
        axes.plot(at["time"], spread, "--", color=ENSEMBLE, label="expected from the spread")
        ratio = at["spread_skill_by_variable"].item()
        low, high = (at[f"spread_skill_by_variable_{end}"].item() for end in ("low", "high"))
        axes.set_title(f"{name}: ratio {ratio:.2f} (calibrated: {low:.2f} to {high:.2f})")
        axes.set_ylim(bottom=0)
        axes.set_xlabel(label(scores["time"], "time"))
    grid[0].set_ylabel(label(scores["rmse"], "error"))
    figure.legend(*grid[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)

    return figure


@styled
def plot_rank_histogram(scores: xr.Dataset) -> Figure:
    """Draws how often the truth has each rank, with the band of 90 % of calibrated ensembles.

    Arguments:
        scores: What `sda.verify` returns.

    Raises:
        ValueError: If there are no ranks.
    """

    names = variables_of(scores, "pit_histogram")
    figure, grid = panels_of(len(names), width=2.2)
    bins = scores.sizes["bin"]
    edges = np.linspace(0, 1, bins + 1)
    for axes, name in zip(grid, names, strict=True):
        at = scores.sel(variable=name)
        axes.bar(
            scores["bin"], bins * at["pit_histogram"], 0.92 / bins, color=ENSEMBLE, label="truth"
        )
        low, high = (bins * at[f"pit_histogram_{end}"].values for end in ("low", "high"))
        # Outlined above the bars and filled below them, so that the bars keep one colour.
        axes.stairs(high, edges, baseline=low, fill=True, color=CALIBRATED, alpha=0.55, zorder=0)
        outline = {"baseline": None, "color": TRUTH, "lw": 0.8, "ls": ":", "zorder": 3}
        axes.stairs(low, edges, **outline, label="calibrated, 90 %")
        axes.stairs(high, edges, **outline)
        axes.axhline(1, color=TRUTH, lw=0.6)
        axes.set_xlim(0, 1)
        index = at["rank_reliability_by_variable"].item()
        axes.set_title(f"{name}: reliability index {index:.3f}")
        axes.set_xlabel("rank of the truth / members")
    grid[0].set_ylabel("relative frequency")
    figure.legend(*grid[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)

    return figure


@styled
def plot_coverage(scores: xr.Dataset) -> Figure:
    """Draws how often the truth is inside central intervals, against their level.

    Arguments:
        scores: What `sda.verify` returns.

    Raises:
        ValueError: If there is no coverage.
    """

    names = variables_of(scores, "coverage")
    figure = new_figure(2.8, 2.6)
    axes = figure.subplots()
    level = np.concatenate([[0], scores["level"], [1]])

    def ends(values: xr.DataArray) -> NDArray:
        return np.concatenate([[0], values, [1]])

    axes.fill_between(
        level,
        ends(scores["overall_coverage_low"]),
        ends(scores["overall_coverage_high"]),
        color=CALIBRATED,
        alpha=0.45,
        lw=0,
        label="calibrated, 90 %, all variables",
    )
    axes.plot([0, 1], [0, 1], color=TRUTH, lw=0.6)
    if len(names) > 1:
        axes.plot(level, ends(scores["overall_coverage"]), color=TRUTH, lw=1.6, label="all")
    for k, name in enumerate(names):
        axes.plot(
            level,
            ends(scores["coverage"].sel(variable=name)),
            marker=("o", "s", "^", "D", "v", "P")[k % 6],
            ms=3,
            lw=1,
            color=VARIABLES[k % len(VARIABLES)],
            label=name,
        )
    axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    axes.set_xlabel("level of the central interval")
    axes.set_ylabel("share of the truth inside")
    axes.legend(loc="upper left")

    return figure


@styled
def plot_spectra(scores: xr.Dataset) -> Figure:
    """Draws the spectra of members and truth, and their ratio below.

    Arguments:
        scores: What `sda.verify` returns.

    Raises:
        ValueError: If there are no spectra: no dimension of the states is periodic.
    """

    names = variables_of(scores, "spectrum")
    last = int(scores["wavenumber"].attrs.get("complete_up_to", scores["wavenumber"][-1]))
    scores = scores.sel(wavenumber=slice(1, last))
    k = scores["wavenumber"].values
    total = "energy_ratio" in scores
    groups = [("all variables", names)] if total else [(name, [name]) for name in names]
    kinetic = "kinetic_energy" in scores
    groups += [("kinetic energy", [])] if kinetic else []
    figure = new_figure(max(3.0, 2.7 * len(groups)), 3.1)
    grid = figure.subplots(
        2, len(groups), sharex=True, squeeze=False, gridspec_kw={"height_ratios": [2.2, 1]}
    )
    for (upper, lower), (title, group) in zip(grid.T, groups, strict=True):
        if group:
            spectra = scores["spectrum"].sel(variable=group).sum("variable", skipna=False)
            truth = scores["spectrum_truth"].sel(variable=group).sum("variable").values
        else:
            spectra, truth = scores["kinetic_energy"], scores["kinetic_energy_truth"].values
        # Beyond the last wave of a band-limited model there are but rounding errors.
        truth = np.where(truth > ROUNDING * np.nansum(truth), truth, np.nan)
        members = spectra.dropna("member", how="all").transpose("member", "wavenumber").values
        low, high = np.quantile(members, [0.05, 0.95], axis=0)
        upper.fill_between(k, low, high, color=ENSEMBLE, alpha=0.25, lw=0, label="members, 90 %")
        upper.loglog(k, members.mean(axis=0), color=ENSEMBLE, label="members, mean")
        upper.loglog(k, truth, "--", color=TRUTH, label="truth")
        upper.set_title("spectrum" if total and group else title)
        lower.axhspan(0.9, 1.1, color=CALIBRATED, alpha=0.35, lw=0)
        lower.axhline(1, color=TRUTH, lw=0.6)
        lower.fill_between(k, low / truth, high / truth, color=ENSEMBLE, alpha=0.25, lw=0)
        lower.semilogx(k, members.mean(axis=0) / truth, color=ENSEMBLE)
        lower.set_ylim(0, 2)
        lower.set_xlabel(scores["wavenumber"].attrs.get("long_name", "wavenumber"))
        lower.set_xlim(k[0], k[-1])
    grid[0, 0].set_ylabel("E(k)")
    grid[1, 0].set_ylabel("members / truth")
    grid[0, 0].legend(loc="lower left")

    return figure
