"""What was observed, for a panel beside the fields."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from numpy.typing import NDArray

from .states import cell_edges, vorticity
from .style import OBSERVED, limits


class Seen:
    """What was observed of one field: cells, points, or arrows.

    Arguments:
        observations: `sda.Observations`, the gridded form or the table.
        variable: The variable that is drawn.
        state: The states' dataset, for its grid.
    """

    def __init__(self, observations: Any, variable: str, state: xr.Dataset) -> None:
        self.variable, self.state = variable, state
        self.grid, self.table = forms(observations)
        times = np.asarray(state["time"].values, dtype=np.float64)
        self.step = float(np.diff(times).min()) if len(times) > 1 else 0.0
        # Cells of another quantity have a scale of their own, the same at all times.
        self.norm: dict[str, Any] | None = None
        if self.is_cells() and self.variable not in self.state:
            frames = [self.cells(time) for time in self.times]
            vmin, vmax, cmap = limits(*frames)
            self.norm = {"vmin": vmin, "vmax": vmax, "cmap": cmap}

    @property
    def title(self) -> str:
        """The title of the panel."""
        return "observations" if self.norm is None else "observations\n(own colours)"

    @property
    def times(self) -> NDArray:
        """The times of observations."""

        source = self.table if self.grid is None else self.grid
        return np.unique(np.asarray(source["time"], dtype=np.float64))

    def is_cells(self) -> bool:
        """Whether observations are cells: on a grid whose points are not the states'."""

        if self.grid is None:
            return False
        dims = [d for d in ("y", "x") if d in self.grid.dims]

        return any(
            not np.isclose(
                np.subtract.outer(self.grid[d].values, self.state[d].values), 0, atol=1e-6
            )
            .any(axis=1)
            .all()
            for d in dims
        )

    def draw(self, axes: Axes, time: float, norm: dict[str, Any], extent: Sequence[float]) -> bool:
        """Draws what was observed at a time, and says whether there was anything."""

        axes.set_facecolor("#EDEDED")
        axes.set_xlim(*extent[:2])
        axes.set_ylim(*extent[2:])
        near = np.isclose(self.times, time, rtol=0, atol=1e-6 * max(1.0, abs(time)))
        if self.grid is None:
            # Points of a table may have times of their own: those that are nearest to the state's.
            near = np.abs(self.times - time) <= 0.5 * self.step + 1e-9
        if not near.any():
            return False
        cells = None if self.grid is None else self.cells(self.times[near][0])
        if cells is not None:
            edges = (cell_edges(cells[dim].values) for dim in ("x", "y"))
            values = np.ma.masked_invalid(cells.transpose("y", "x").values)
            axes.pcolormesh(*edges, values, **(self.norm or norm))
            return True
        table = self.table[
            np.isin(np.asarray(self.table["time"], dtype=np.float64), self.times[near])
        ]
        values = table[table["variable"] == self.variable]
        flow = table[table["variable"].isin(["u", "v"])]
        if len(values):
            size = np.clip(1500 / len(values), 2, 30)
            axes.scatter(
                values["x"], values["y"], c=values["observation"], s=size, marker="s", **norm
            )
        elif len(flow):
            wide = flow.pivot_table(index=["x", "y"], columns="variable", values="observation")
            wide = wide.reindex(columns=["u", "v"]).fillna(0.0).reset_index()
            axes.quiver(
                wide["x"], wide["y"], wide["u"], wide["v"], color=OBSERVED, pivot="mid", width=0.008
            )
        else:
            axes.plot(table["x"], table["y"], ".", ms=2, color=OBSERVED)

        return True

    def cells(self, time: float) -> xr.DataArray | None:
        """The observed cells at a time, or None if observations are no cells."""

        if self.grid is None or not self.is_cells():
            return None
        frame = self.grid.sel(time=time)
        if self.variable in frame:
            return frame[self.variable]
        if {"u", "v"} <= set(frame.data_vars):
            for dim in ("y", "x"):
                if "period" in self.state[dim].attrs and covers(frame[dim], self.state[dim]):
                    frame[dim].attrs["period"] = self.state[dim].attrs["period"]
            return vorticity(frame).rename("derived")
        names = [n for n in frame.data_vars if {"y", "x"} <= set(frame[n].dims)]

        return frame[names[0]] if names else None


def covers(coarse: xr.DataArray, fine: xr.DataArray) -> bool:
    """Whether a coarse coordinate goes once around the period of a fine one."""

    if len(coarse) < 3:
        return False
    step = float(coarse[1] - coarse[0])

    return bool(np.isclose(len(coarse) * step, float(fine.attrs["period"])))


def forms(observations: Any) -> tuple[xr.Dataset | None, Any]:
    """The gridded form, where there is one, and the table of observations."""

    if isinstance(observations, xr.Dataset):
        names = [n for n in observations.data_vars if not str(n).endswith("_std")]
        grid = observations[names]
        table = grid.to_dataframe().reset_index()
        keys = [c for c in table.columns if c not in names]
        table = table.melt(keys, var_name="variable", value_name="observation").dropna()
        return grid, table
    if hasattr(observations, "to_table"):
        table = observations.to_table()
        try:
            grid = observations.to_dataset()
        except ValueError:  # single points have no grid
            return None, table
        return grid[[n for n in grid.data_vars if not str(n).endswith("_std")]], table

    return None, observations
