"""Scores as a table."""

import numpy as np
import xarray as xr


def summary(scores: xr.Dataset) -> str:
    """A table of the main scores for a terminal.

    Arguments:
        scores: What `verify` returns.
    """

    names = [str(n) for n in scores["variable"].values]
    rows: list[tuple[str, list[str], str]] = []

    def row(label: str, key: str, target: str = "") -> None:
        if f"{key}_by_variable" in scores:
            cells = [f"{v:.4g}" for v in scores[f"{key}_by_variable"].values]
            cells.append(
                f"{scores[f'overall_{key}'].item():.4g}" if f"overall_{key}" in scores else "–"
            )
            rows.append((label, cells, target))

    def whole(label: str, key: str, target: str = "") -> None:
        if key in scores:
            rows.append((label, [""] * len(names) + [f"{scores[key].item():.4g}"], target))

    def calibrated(key: str) -> str:
        if f"{key}_low" not in scores:
            return ""
        return f"calibrated: {scores[f'{key}_low'].item():.3g} … {scores[f'{key}_high'].item():.3g}"

    row("RMSE of the mean", "rmse")
    row("bias", "bias")
    row("spread", "spread")
    row("spread–skill", "spread_skill", calibrated("overall_spread_skill"))
    row("CRPS (fair)", "crps")
    row("rank reliability", "rank_reliability", calibrated("overall_rank_reliability"))
    if "coverage" in scores:
        level = float(scores["level"][np.abs(scores["level"].values - 0.9).argmin()])
        at = scores.sel(level=level)
        cells = [f"{v:.3f}" for v in at["coverage"].values]
        rows.append(
            (
                f"coverage of {100 * level:.0f} %",
                [*cells, f"{at['overall_coverage'].item():.3f}"],
                f"calibrated: {at['overall_coverage_low']:.3f} … {at['overall_coverage_high']:.3f}",
            )
        )
    whole("energy score (fair)", "overall_energy_score")
    if "misfit_truth" in scores:
        whole(
            "misfit to observations",
            "overall_misfit",
            f"truth: {scores['misfit_truth'].item():.3g}",
        )
    if "consistency_truth" in scores:
        target = f"truth: {scores['consistency_truth'].item():.3g}"
        whole("consistency, increments", "overall_consistency", target)
    increment = [f"{v:.3g}" for v in scores["increment_ratio"].values]
    rows.append(("increments over truth's", [*increment, ""], ""))

    head = ("", [*names, "all"], "")
    first = max(len(label) for label, _, _ in rows)
    widths = [max(len(cells[i]) for _, cells, _ in [head, *rows]) for i in range(len(names) + 1)]
    lines = [
        "  ".join(
            [label.ljust(first), *(c.rjust(w) for c, w in zip(cells, widths, strict=True)), target]
        ).rstrip()
        for label, cells, target in [head, *rows]
    ]
    left_out = scores.attrs["failed_members"]
    lines.append(
        f"{scores.attrs['members']} member"
        + ("s" if scores.attrs["members"] > 1 else "")
        + (f" ({left_out} more failed and are left out)" if left_out else "")
        + f", {scores.sizes['time']} times"
    )

    return "\n".join(lines)
