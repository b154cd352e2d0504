"""Scores as a table."""

import numpy as np
import xarray as xr


class Table:
    """Rows of a label, one cell for each variable, one for all, and what to compare it with."""

    def __init__(self, scores: xr.Dataset) -> None:
        self.scores = scores
        self.names = [str(n) for n in scores["variable"].values]
        self.rows: list[tuple[str, list[str], str]] = []

    def value(self, name: str) -> float:
        """A score that is one number."""
        return float(self.scores[name].item())

    def variables(self, label: str, key: str, target: str = "") -> None:
        """A row with the score of each variable, and the overall one if there is one."""

        if f"{key}_by_variable" in self.scores:
            cells = [f"{v:.4g}" for v in self.scores[f"{key}_by_variable"].values]
            known = f"overall_{key}" in self.scores
            cells.append(f"{self.value(f'overall_{key}'):.4g}" if known else "–")
            self.rows.append((label, cells, target))

    def whole(self, label: str, key: str, target: str = "") -> None:
        """A row with an overall score alone."""

        if key in self.scores:
            cells = [""] * len(self.names) + [f"{self.value(key):.4g}"]
            self.rows.append((label, cells, target))

    def beside_truth(self, label: str, key: str) -> None:
        """A row with an overall score and the truth's own."""

        if f"{key}_truth" in self.scores:
            self.whole(label, f"overall_{key}", f"truth: {self.value(f'{key}_truth'):.4g}")

    def calibrated(self, key: str) -> str:
        """The band of calibrated ensembles."""

        if f"{key}_low" not in self.scores:
            return ""
        low, high = self.value(f"{key}_low"), self.value(f"{key}_high")

        return f"calibrated: {low:.3g} … {high:.3g}"

    def render(self) -> list[str]:
        """The lines."""

        head = ("", [*self.names, "all"], "")
        first = max(len(label) for label, _, _ in self.rows)
        count = len(self.names) + 1
        widths = [max(len(cells[i]) for _, cells, _ in [head, *self.rows]) for i in range(count)]

        return [
            "  ".join(
                [
                    label.ljust(first),
                    *(c.rjust(w) for c, w in zip(cells, widths, strict=True)),
                    target,
                ]
            ).rstrip()
            for label, cells, target in [head, *self.rows]
        ]


def summary(scores: xr.Dataset) -> str:
    """A table of the main scores for a terminal.

    Arguments:
        scores: What `verify` returns.

    Raises:
        ValueError: If these are no scores of `verify`.
    """

    if missing := [n for n in ("variable", "increment_ratio") if n not in scores.variables]:
        raise ValueError(f"expected what sda.verify returns, but {missing} are missing")
    table = Table(scores)
    table.variables("RMSE of the mean", "rmse")
    table.whole("RMSE at each time, mean", "overall_rmse_time")
    table.variables("bias", "bias")
    table.variables("spread", "spread")
    table.variables("spread–skill", "spread_skill", table.calibrated("overall_spread_skill"))
    table.variables("CRPS (fair)", "crps")
    if "crps" not in scores:
        table.variables("mean absolute error", "crps_plain")
    table.variables(
        "rank reliability", "rank_reliability", table.calibrated("overall_rank_reliability")
    )
    if "coverage" in scores:
        add_coverage(table)
    table.whole("energy score (fair)", "overall_energy_score")
    table.whole("variogram score (fair)", "overall_variogram_score")
    table.beside_truth("misfit to observations", "misfit")
    table.beside_truth("log p(y | x)", "log_likelihood")
    table.beside_truth("consistency, increments", "consistency")
    table.beside_truth("log p(x), transitions", "log_dynamics")
    table.beside_truth("ageostrophic wind", "ageostrophic")
    table.whole("innovation mean", "overall_innovation_mean", "consistent: 0")
    table.whole("innovation variance", "overall_innovation_variance", "consistent: 1")
    table.whole("innovation chi-square", "overall_innovation_chi_square", "consistent: 1")
    for name in "RBA":
        table.whole(f"Desroziers {name}", f"overall_desroziers_{name}", "consistent: 1")
    table.whole("W1 from the reference", "w1")
    if "mmd" in scores:
        p = table.value("mmd_p_value")
        table.whole("MMD² from the reference", "mmd", f"p-value if equal: {p:.3g}")
    increment = [f"{v:.3g}" for v in scores["increment_ratio"].values]
    if np.isfinite(scores["increment_ratio"]).any():
        table.rows.append(("increments over truth's", [*increment, ""], ""))

    return "\n".join([*table.render(), footer(scores)])


def add_coverage(table: Table) -> None:
    """The coverage of the level nearest to 90 %, of values and of states as a whole."""

    scores = table.scores
    level = float(scores["level"][np.abs(scores["level"].values - 0.9).argmin()])
    at = scores.sel(level=level)
    values = [f"{v:.3f}" for v in at["coverage"].values]
    joint = [""] * len(table.names)
    for label, cells, key in (
        (f"coverage of {100 * level:.0f} %", values, "overall_coverage"),
        (f"joint coverage of {100 * level:.0f} %", joint, "joint_coverage"),
    ):
        target = f"calibrated: {at[f'{key}_low'].item():.3f} … {at[f'{key}_high'].item():.3f}"
        table.rows.append((label, [*cells, f"{at[key].item():.3f}"], target))


def footer(scores: xr.Dataset) -> str:
    """How many members and times were scored, and what failed."""

    members, left_out = scores.attrs["members"], scores.attrs["failed_members"]
    frames, times = scores.attrs.get("frames", scores.sizes["time"]), scores.sizes["time"]
    line = f"{members} member" + ("s" if members > 1 else "")
    if left_out:
        line += f" ({left_out} more failed and are left out)"
    line += f", {times}" if frames == times else f", {frames} of {times}"
    line += " time" + ("s" if times > 1 else "")
    if scores.attrs.get("diverged"):
        line += f"\nThe run diverged at time {scores.attrs['diverged_time']:g}."

    return line
