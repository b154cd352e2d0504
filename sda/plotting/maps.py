"""Maps: fields on the sphere or in the plane, as panels, spaghetti and stamps.

On the sphere maps have a projection where cartopy is installed, and are plain in latitude and
longitude otherwise. Coastlines are those of the states themselves, their mask and their orography:
nothing is loaded from elsewhere.
"""

import importlib.util
from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from numpy.typing import NDArray

from dynamics.layout import MASK

from ..verification.cells import is_spherical
from .observed import forms
from .states import cell_edges, default_variable, pick, prepare, spatial_dims, time_index
from .style import CALIBRATED, ENSEMBLE, OBSERVED, TRUTH, label, limits, new_figure, styled

PROJECTIONS = ("auto", "plain", "robinson", "mollweide", "platecarree")
# Metres of orography, and sea against land.
HEIGHTS, COAST = (500.0, 1500.0), (0.5,)


class Map:
    """Where fields are drawn: their grid, its projection and the outlines of land.

    Arguments:
        dataset: The states, with two spatial dimensions: rows and columns of the map.
        truth: The truth, which may hold outlines that the states do not.
        projection: "auto" (Robinson's for the whole sphere if cartopy is installed), "plain",
            "robinson", "mollweide" or "platecarree".

    Raises:
        ImportError: If a projection is asked for and cartopy is not installed.
        ValueError: If the projection is unknown or the states have no map.
    """

    def __init__(
        self, dataset: xr.Dataset, truth: xr.Dataset | None = None, projection: str = "auto"
    ) -> None:
        if projection not in PROJECTIONS:
            raise ValueError(f"projection must be one of {PROJECTIONS}, got {projection!r}")
        dims = spatial_dims(dataset)
        self.spherical = is_spherical(dataset, dims)
        if not self.spherical and set(dims) != {"y", "x"}:
            raise ValueError(
                f"a map needs states over latitude and longitude, by their units degrees_north and "
                f"degrees_east, or over (y, x), got {dims}: select the other dimensions"
            )
        if len(dims) != 2:
            raise ValueError(f"a map has two dimensions, got {dims}: select the others first")
        self.rows, self.columns = dims if self.spherical else ("y", "x")
        self.sources = [dataset] if truth is None else [dataset, truth]
        y, x = (np.asarray(dataset[d].values, dtype=np.float64) for d in (self.rows, self.columns))
        self.y, self.x, self.edges = y, x, (cell_edges(x), cell_edges(y))
        if self.spherical:
            self.edges = (self.edges[0], np.clip(self.edges[1], -90, 90))
        whole = self.spherical and np.ptp(self.edges[0]) > 359
        installed = importlib.util.find_spec("cartopy") is not None
        if projection == "auto":
            projection = "robinson" if whole and installed else "plain"
        if projection != "plain" and not self.spherical:
            raise ValueError(f"projection={projection} is for the sphere: give projection=plain")
        if projection != "plain" and not installed:
            raise ImportError(
                f"projection={projection} needs the package cartopy: pip install "
                f"'sda-torch[maps]', or give projection=plain"
            )
        self.projection = projection

    @property
    def aspect(self) -> float:
        """Height over width."""
        return float(np.ptp(self.edges[1]) / np.ptp(self.edges[0]))

    def axes(self, figure: Figure, rows: int, columns: int) -> NDArray:
        """A grid of axes for maps."""

        keywords: dict[str, Any] = {}
        if self.projection != "plain":
            import cartopy.crs as ccrs

            kind = {"robinson": ccrs.Robinson, "mollweide": ccrs.Mollweide}
            # The sphere is cut where the grid begins: cells across the cut would be cut themselves.
            middle = float(self.edges[0][[0, -1]].mean())
            made = kind.get(self.projection, ccrs.PlateCarree)(central_longitude=middle)
            keywords["subplot_kw"] = {"projection": made}
        grid = figure.subplots(rows, columns, squeeze=False, **keywords)
        for each in grid.flat:
            self.frame(each)

        return np.asarray(grid)

    def frame(self, axes: Any) -> None:
        """The extent of a map and the outlines of land."""

        if self.projection == "plain":
            axes.set_xlim(self.edges[0][0], self.edges[0][-1])
            axes.set_ylim(self.edges[1][0], self.edges[1][-1])
            axes.set_aspect("equal")
            axes.set_xticks([])
            axes.set_yticks([])
            for spine in axes.spines.values():
                spine.set_visible(True)
                spine.set_linewidth(0.4)
        else:
            axes.set_global()
            axes.spines["geo"].set_linewidth(0.4)
        for name, levels in ((MASK, COAST), ("orography", HEIGHTS)):
            if (land := self.outline(name)) is not None:
                inside = [level for level in levels if land.min() < level < land.max()]
                if inside:
                    self.contour(axes, land, inside, colors="0.35", linewidths=0.5)

    def outline(self, name: str) -> NDArray | None:
        """A constant field on the grid of the map, of the states or of the truth."""

        for source in self.sources:
            if name in source.coords and {*source[name].dims} == {self.rows, self.columns}:
                return source[name].transpose(self.rows, self.columns).values.astype(float)

        return None

    def keywords(self) -> dict[str, Any]:
        """What says to a projection that coordinates are degrees."""

        if self.projection == "plain":
            return {}
        import cartopy.crs as ccrs

        return {"transform": ccrs.PlateCarree()}

    def mesh(self, axes: Any, values: NDArray, **style: Any) -> Any:
        """Draws cells, blank on land."""
        shown = np.ma.masked_invalid(values)
        x, y = self.edges
        if self.projection != "plain":
            # On the cut itself a projection may take the one end of the map for the other.
            x = np.clip(x, x[0] + 1e-6, x[-1] - 1e-6)
        return axes.pcolormesh(x, y, shown, rasterized=True, **style, **self.keywords())

    def contour(self, axes: Any, values: NDArray, levels: Sequence[float], **style: Any) -> Any:
        """Draws lines of equal values, closed around the sphere."""

        x = self.x
        if self.spherical and np.ptp(self.edges[0]) > 359:
            x, values = np.append(x, x[0] + 360), np.concatenate([values, values[:, :1]], axis=1)
        return axes.contour(x, self.y, values, levels, **style, **self.keywords())

    def points(self, axes: Any, table: Any, variable: str, norm: dict[str, Any]) -> Any:
        """Draws observations: in the colours of the field if they are of it, else as dots."""

        own = table[table["variable"] == variable] if len(table) else table
        x = np.asarray((own if len(own) else table)[self.columns], dtype=float)
        y = np.asarray((own if len(own) else table)[self.rows], dtype=float)
        if self.spherical:
            x = self.edges[0][0] + np.mod(x - self.edges[0][0], 360.0)
        size = float(np.clip(600 / max(1, len(x)), 1.5, 12))
        style = {"s": size, "lw": 0.15, "edgecolors": "k"}
        colour = {"c": own["observation"], **norm} if len(own) else {"c": OBSERVED}
        return axes.scatter(x, y, zorder=3, **style, **colour, **self.keywords())


def observed_near(observations: Any, posterior: xr.Dataset, time: float, where: Map) -> Any:
    """The rows of the observations' table within half a step of a time that have a place."""

    table = forms(observations)[1]
    step = np.diff(posterior["time"].values).min() if posterior.sizes["time"] > 1 else 1.0
    near = np.abs(np.asarray(table["time"], dtype=float) - time) <= 0.5 * float(step) + 1e-9
    table = table[near]
    if missing := [d for d in (where.rows, where.columns) if d not in table]:
        raise ValueError(f"the observations have no coordinates {missing}: they have no place")

    return table.dropna(subset=[where.rows, where.columns])


def default_times(posterior: xr.Dataset, count: int) -> NDArray:
    """Times across the trajectory, the last one included."""

    times = np.asarray(posterior["time"].values, dtype=np.float64)
    return times[np.unique(np.linspace(0, len(times) - 1, count + 1).round().astype(int))[1:]]


def chosen(
    posterior: xr.Dataset, truth: xr.Dataset | None, variable: str, times: NDArray, where: Map
) -> tuple[xr.DataArray, NDArray | None]:
    """The members `(member, time, row, column)` and the truth `(time, row, column)` at times."""

    dims = ("time", where.rows, where.columns)
    part = posterior.isel(time=time_index(posterior, times)).compute()
    x = pick(part, variable).transpose("member", *dims)
    if truth is None:
        return x, None
    y = pick(truth.isel(time=time_index(truth, times)), variable).transpose(*dims)

    return x, np.asarray(y.values)


@styled
def plot_maps(
    posterior: xr.Dataset,
    truth: xr.Dataset | None = None,
    observations: Any = None,
    variable: str | None = None,
    times: Sequence[float] | None = None,
    members: int = 1,
    projection: str = "auto",
) -> Figure:
    """Draws maps, a row for each time: truth with the observations on top, mean, members, spread.

    Observations are those within half a step of the time.

    Arguments:
        posterior: The ensemble, with dimensions `(member, time, latitude, longitude)` by their
            units, or `(member, time, y, x)`.
        truth: The truth, without members or with one.
        observations: `sda.Observations`, or one of its file forms (a dataset, or a table).
        variable: A variable (default: on the sphere the first that is no velocity).
        times: The times (default: two).
        members: The number of members to draw.
        projection: See `Map`.

    Raises:
        ImportError: If a projection needs cartopy, which is not installed.
        ValueError: If there is no such variable or time, or the states have no map.
    """

    posterior, truth = prepare(posterior, truth)
    where = Map(posterior, truth, projection)
    variable = variable or default_variable(posterior)
    at = default_times(posterior, 2) if times is None else np.asarray(times, dtype=np.float64)
    x, y = chosen(posterior, truth, variable, at, where)
    several = x.sizes["member"] > 1
    vmin, vmax, cmap = limits(x if y is None else y)
    norm = {"vmin": vmin, "vmax": vmax, "cmap": cmap}
    panels: list[tuple[str, Any]] = [] if y is None else [("truth", y)]
    panels += [("ensemble mean", x.mean("member").values)] if several else []
    count = min(members, x.sizes["member"])
    panels += [(f"member {int(x['member'][m])}", x.values[m]) for m in range(count)]
    if several:
        panels.append(("spread", x.std("member", ddof=1).values))
        top = float(np.nanquantile(panels[-1][1], 0.998)) or 1.0

    figure = new_figure(2.6 * len(panels), (2.6 * where.aspect + 0.15) * len(at) + 0.75)
    grid = where.axes(figure, len(at), len(panels))
    images: dict[str, Any] = {}
    for i, time in enumerate(at):
        for axes, (title, values) in zip(grid[i], panels, strict=True):
            own = {"vmin": 0.0, "vmax": top, "cmap": "magma"} if title == "spread" else norm
            images["spread" if title == "spread" else "field"] = where.mesh(axes, values[i], **own)
            axes.set_title(f"{title}, time {time:g}" if axes is grid[i, 0] else title)
        if observations is not None:
            seen = observed_near(observations, posterior, float(time), where)
            where.points(grid[i, 0], seen, variable, norm)
            if truth is not None:
                grid[i, 0].set_title(f"truth and observations, time {time:g}")
    fields = grid[:, :-1] if "spread" in images else grid
    style: dict[str, Any] = {"orientation": "horizontal", "shrink": 0.6, "pad": 0.02, "aspect": 40}
    figure.colorbar(images["field"], ax=fields, **style).set_label(label(x))
    if "spread" in images:
        style |= {"shrink": 0.9, "aspect": 25}
        bar = figure.colorbar(images["spread"], ax=grid[:, -1], **style)
        bar.set_label(label(x, "spread"))

    return figure


@styled
def plot_spaghetti(
    posterior: xr.Dataset,
    truth: xr.Dataset | None = None,
    observations: Any = None,
    variable: str | None = None,
    times: Sequence[float] | None = None,
    level: float | None = None,
    projection: str = "auto",
) -> Figure:
    """Draws one line of equal values for each member, the mean's and the truth's, at some times.

    Where the lines lie on each other the ensemble is sure of them.

    Arguments:
        posterior, truth, observations, variable, projection: See `plot_maps`.
        times: The times (default: three).
        level: The value (default: the mean of the truth, or of the members, over space).

    Raises:
        ImportError: If a projection needs cartopy, which is not installed.
        ValueError: If there is no such variable or time, or the states have no map.
    """

    posterior, truth = prepare(posterior, truth)
    where = Map(posterior, truth, projection)
    variable = variable or default_variable(posterior)
    at = default_times(posterior, 3) if times is None else np.asarray(times, dtype=np.float64)
    x, y = chosen(posterior, truth, variable, at, where)
    level = float(np.nanmean(x.values if y is None else y)) if level is None else float(level)
    figure = new_figure(3.4 * len(at), 3.4 * where.aspect + 0.5)
    grid = where.axes(figure, 1, len(at))[0]
    for i, (axes, time) in enumerate(zip(grid, at, strict=True)):
        for member in x.values[:, i]:
            where.contour(axes, member, [level], colors=ENSEMBLE, linewidths=0.35, alpha=0.6)
        if x.sizes["member"] > 1:
            where.contour(axes, x.values[:, i].mean(0), [level], colors=CALIBRATED, linewidths=1)
        if y is not None:
            where.contour(axes, y[i], [level], colors=TRUTH, linewidths=1.1)
        if observations is not None:
            seen = observed_near(observations, posterior, float(time), where)
            where.points(axes, seen, "", {})
        axes.set_title(f"time {time:g}")
    handles = [("members", ENSEMBLE), ("mean", CALIBRATED)]
    handles += [] if y is None else [("truth", TRUTH)]
    lines = [grid[0].plot([], [], color=c, lw=1.2)[0] for _, c in handles]
    names = [name for name, _ in handles]
    figure.legend(
        lines, names, loc="outside lower center", ncols=3, title=f"{label(x)} = {level:g}"
    )

    return figure


@styled
def plot_stamps(
    posterior: xr.Dataset,
    truth: xr.Dataset | None = None,
    observations: Any = None,
    variable: str | None = None,
    time: float | None = None,
    members: int = 14,
    projection: str = "auto",
) -> Figure:
    """Draws small maps of the truth, the mean and members at one time, side by side.

    Arguments:
        posterior, truth, observations, variable, projection: See `plot_maps`.
        time: The time (default: the last).
        members: The number of members to draw at most.

    Raises:
        ImportError: If a projection needs cartopy, which is not installed.
        ValueError: If there is no such variable or time, or the states have no map.
    """

    posterior, truth = prepare(posterior, truth)
    where = Map(posterior, truth, projection)
    variable = variable or default_variable(posterior)
    at = np.array([posterior["time"].values[-1] if time is None else time], dtype=np.float64)
    x, y = chosen(posterior, truth, variable, at, where)
    vmin, vmax, cmap = limits(x if y is None else y)
    norm = {"vmin": vmin, "vmax": vmax, "cmap": cmap}
    stamps: list[tuple[str, NDArray]] = [] if y is None else [("truth", y[0])]
    if x.sizes["member"] > 1:
        stamps.append(("ensemble mean", x.values[:, 0].mean(0)))
    count = min(members, x.sizes["member"])
    stamps += [(f"member {int(x['member'][m])}", x.values[m, 0]) for m in range(count)]
    columns = min(4, len(stamps))
    rows = -(-len(stamps) // columns)
    figure = new_figure(1.9 * columns, (1.9 * where.aspect + 0.2) * rows + 0.6)
    grid = where.axes(figure, rows, columns)
    for axes, (title, values) in zip(grid.flat, stamps):
        image = where.mesh(axes, values, **norm)
        axes.set_title(title)
    for axes in grid.flat[len(stamps) :]:
        axes.set_visible(False)
    if observations is not None and y is not None:
        where.points(
            grid[0, 0], observed_near(observations, posterior, at[0], where), variable, norm
        )
    bar = figure.colorbar(image, ax=grid, orientation="horizontal", shrink=0.6, pad=0.02, aspect=40)
    bar.set_label(f"{label(x)}, time {at[0]:g}")

    return figure
