"""Animations."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from ..verification.cells import is_spherical
from .files import checked_path
from .maps import Map, chosen, observed_near
from .observed import Seen, forms
from .states import at_times, default_variable, domain, pick, prepare, spatial_dims, time_index
from .style import (
    CALIBRATED,
    ENSEMBLE,
    OBSERVED,
    STYLE,
    TRUTH,
    frame_axes,
    label,
    limits,
    new_figure,
)

# A store has one chunk for all frames of a member: reading it frame by frame is slow.
MEMORY = 2**30

Update = Callable[[int], Sequence[Any]]


def animate(
    posterior: xr.Dataset,
    truth: xr.Dataset | None = None,
    observations: Any = None,
    *,
    out: str | Path,
    variable: str | None = None,
    members: int = 2,
    fps: int = 8,
    dpi: int = 100,
    overwrite: bool = False,
) -> Path:
    """Writes an animation of fields: truth, observations, mean, members and spread, side by side.

    Observations stay on show until the next ones. States with one dimension in space are drawn as
    profiles, those with none as paths of the first against the last variable.

    Arguments:
        posterior: The ensemble, with dimensions `(member, time, *space)`.
        truth: The truth, without members or with one.
        observations: `sda.Observations`, or one of its file forms (a dataset, or a table).
        out: The file, `.gif` or `.mp4` (which needs ffmpeg).
        variable: A variable, or "vorticity" (default: as `plot_fields`).
        members: The number of members to draw.
        fps: Frames per second.
        dpi: Dots per inch.
        overwrite: Whether to replace a file.

    Raises:
        FileExistsError: If the file exists and is not to be replaced.
        ValueError: If the file is neither GIF nor MP4, ffmpeg is missing, or states do not fit.
    """

    from matplotlib.animation import FFMpegWriter, FuncAnimation, PillowWriter

    out = checked_path(out, (".gif", ".mp4"), overwrite)
    if out.suffix == ".mp4" and not FFMpegWriter.isAvailable():
        raise ValueError(
            f"an MP4 needs ffmpeg, which was not found: install it or write {out.stem}.gif"
        )
    posterior, truth = prepare(posterior, truth)
    if posterior.nbytes <= MEMORY:
        posterior = posterior.compute()
    dims = spatial_dims(posterior)
    with matplotlib.rc_context(STYLE):
        if is_spherical(posterior, dims):
            figure, update = map_frames(posterior, truth, observations, variable, members)
        elif set(dims) == {"y", "x"}:
            figure, update = field_frames(posterior, truth, observations, variable, members)
        elif len(dims) == 1:
            figure, update = profile_frames(posterior, truth, observations, variable, members)
        elif not dims:
            figure, update = path_frames(posterior, truth, members)
        else:
            raise ValueError(
                f"animations show states over latitude and longitude, (y, x) or fewer dimensions, "
                f"got {dims}"
            )
        figure.canvas.draw()
        # Fixed from here on, else titles of other lengths would make the panels tremble.
        figure.set_layout_engine("none")
        animation = FuncAnimation(figure, update, frames=posterior.sizes["time"], blit=False)
        writer = PillowWriter(fps=fps) if out.suffix == ".gif" else FFMpegWriter(fps=fps)
        partial = out.with_name(f".{out.stem}.partial{out.suffix}")
        try:
            animation.save(partial, writer=writer, dpi=dpi)
            partial.replace(out)
        finally:
            partial.unlink(missing_ok=True)

    return out


def map_frames(
    posterior: xr.Dataset,
    truth: xr.Dataset | None,
    observations: Any,
    variable: str | None,
    members: int,
) -> tuple[Figure, Update]:
    """A figure of maps on the sphere, and the function that shows frame i on it."""

    where = Map(posterior, truth)
    variable = variable or default_variable(posterior)
    times = np.asarray(posterior["time"].values, dtype=np.float64)
    x, y = chosen(posterior, truth, variable, times, where)
    vmin, vmax, cmap = limits(x if y is None else y)
    norm = {"vmin": vmin, "vmax": vmax, "cmap": cmap}
    panels: list[tuple[str, Any, dict[str, Any]]] = [] if y is None else [("truth", y, norm)]
    if x.sizes["member"] > 1:
        panels.append(("ensemble mean", x.values.mean(axis=0), norm))
    panels += [
        (f"member {int(m)}", x.values[k], norm) for k, m in enumerate(x["member"].values[:members])
    ]
    if x.sizes["member"] > 1:
        spread = x.values.std(axis=0, ddof=1)
        top = float(np.nanquantile(spread, 0.998)) or 1.0
        panels.append(("spread", spread, {"vmin": 0.0, "vmax": top, "cmap": "magma"}))
    figure = new_figure(2.6 * len(panels), 2.6 * where.aspect + 0.45)
    grid = where.axes(figure, 1, len(panels))[0]
    images = []
    for axes, (title, values, style) in zip(grid, panels, strict=True):
        images.append(where.mesh(axes, values[0], **style))
        axes.set_title(title)
    heading = figure.suptitle(f"time {times[0]:g}", fontsize=8)
    shown: list[Any] = []

    def update(i: int) -> Sequence[Any]:
        for image, (_, values, _) in zip(images, panels, strict=True):
            image.set_array(np.ma.masked_invalid(values[i]))
        while shown:
            shown.pop().remove()
        if observations is not None:
            seen = observed_near(observations, posterior, float(times[i]), where)
            shown.append(where.points(grid[0], seen, str(variable), norm))
        heading.set_text(f"time {times[i]:.4g}")
        return images

    return figure, update


def field_frames(
    posterior: xr.Dataset,
    truth: xr.Dataset | None,
    observations: Any,
    variable: str | None,
    members: int,
) -> tuple[Figure, Update]:
    """A figure of fields in the plane, and the function that shows frame i on it."""

    variable = variable or default_variable(posterior)
    seen = None if observations is None else Seen(observations, variable, posterior)
    times = np.asarray(posterior["time"].values, dtype=np.float64)
    several = posterior.sizes["member"] > 1
    first = pick(posterior.isel(time=[0, -1]).compute(), variable)
    y = None
    if truth is not None:
        y = pick(truth.isel(time=time_index(truth, times)).compute(), variable)
        y = y.transpose("time", "y", "x")
    vmin, vmax, cmap = limits(first if y is None else y)
    norm = {"vmin": vmin, "vmax": vmax, "cmap": cmap}
    top = float(np.quantile(first.std("member", ddof=1), 0.998)) if several else 1.0

    titles = [] if y is None else ["truth"]
    titles += [] if seen is None else [seen.title]
    titles += ["ensemble mean"] if several else []
    chosen = posterior["member"].values[:members]
    titles += [f"member {m}" for m in chosen]
    titles += ["spread"] if several else []
    extent = domain(posterior)
    aspect = (extent[3] - extent[2]) / (extent[1] - extent[0])
    figure = new_figure(1.5 * len(titles), 1.5 * aspect + 0.38)
    grid = dict(zip(titles, figure.subplots(1, len(titles), squeeze=False)[0], strict=True))
    images = {}
    for title, axes in grid.items():
        frame_axes(axes)
        axes.set_title(title)
        if seen is None or title != seen.title:
            own = {"vmin": 0, "vmax": top, "cmap": "magma"} if title == "spread" else norm
            blank = np.zeros((posterior.sizes["y"], posterior.sizes["x"]))
            images[title] = axes.imshow(blank, origin="lower", extent=extent, **own)
        else:
            axes.set_xlim(*extent[:2])
            axes.set_ylim(*extent[2:])
            axes.set_aspect("equal")
    heading = figure.suptitle(f"time {times[0]:g}", fontsize=8)

    def update(i: int) -> Sequence[Any]:
        x = pick(posterior.isel(time=i).compute(), variable).transpose("member", "y", "x").values
        shown = {f"member {m}": x[k] for k, m in enumerate(chosen)}
        shown["ensemble mean"], shown["spread"] = x.mean(axis=0), x.std(axis=0, ddof=int(several))
        if y is not None:
            shown["truth"] = y[i].values
        for title, image in images.items():
            image.set_data(shown[title])
        if seen is not None and (past := seen.times[seen.times <= times[i] + 1e-9]).size:
            axes = grid[seen.title]
            axes.clear()
            frame_axes(axes)
            axes.set_title(seen.title)
            seen.draw(axes, float(past[-1]), norm, extent)
            axes.set_aspect("equal")
        heading.set_text(f"time {times[i]:.4g}")
        return list(images.values())

    return figure, update


def profile_frames(
    posterior: xr.Dataset,
    truth: xr.Dataset | None,
    observations: Any,
    variable: str | None,
    members: int,
) -> tuple[Figure, Update]:
    """A figure of profiles over one dimension, and the function that shows frame i on it."""

    variable = variable or default_variable(posterior)
    dim = spatial_dims(posterior)[0]
    x = pick(posterior, variable).compute().transpose("member", "time", dim).values
    times = np.asarray(posterior["time"].values, dtype=np.float64)
    space = posterior[dim].values
    table = None if observations is None else forms(observations)[1]
    y = (
        None
        if truth is None
        else at_times(pick(truth, variable), times).transpose("time", dim).values
    )
    low, high = np.quantile(x, [0.001, 0.999])
    figure = new_figure(5.5, 2.4)
    axes = figure.subplots()

    def update(i: int) -> Sequence[Any]:
        axes.clear()
        for p, alpha in ((0.9, 0.18), (0.5, 0.3)):
            band = np.quantile(x[:, i], [(1 - p) / 2, (1 + p) / 2], axis=0)
            axes.fill_between(space, *band, color=ENSEMBLE, alpha=alpha, lw=0, label=f"{p:.0%}")
        axes.plot(space, x[:members, i].T, color=ENSEMBLE, lw=0.5)
        if y is not None:
            axes.plot(space, y[i], color=TRUTH, label="truth")
        if table is not None:
            rows = table[(table["variable"] == variable) & np.isclose(table["time"], times[i])]
            axes.plot(
                rows[dim], rows["observation"], "o", ms=3, color=OBSERVED, label="observations"
            )
        axes.set(xlabel=dim, ylabel=label(posterior[variable], variable), ylim=(low, high))
        axes.set_xlim(space[0], space[-1])
        axes.set_title(f"time {times[i]:.4g}", loc="left")
        axes.legend(loc="lower right", ncols=4, bbox_to_anchor=(1, 1))
        return []

    update(0)

    return figure, update


def path_frames(
    posterior: xr.Dataset, truth: xr.Dataset | None, members: int, tail: int = 12
) -> tuple[Figure, Update]:
    """A figure of paths in the plane of two variables, and the function that shows frame i on it.

    Raises:
        ValueError: If there is one variable only.
    """

    names = [str(n) for n in posterior.data_vars]
    if len(names) < 2:
        raise ValueError(f"a path needs two variables, got {names}: use plot_series")
    a, b = names[0], names[-1]
    times = np.asarray(posterior["time"].values, dtype=np.float64)
    x = np.stack([posterior[n].transpose("member", "time").values for n in (a, b)], axis=-1)
    figure = new_figure(3.4, 3.2)
    axes = figure.subplots()
    y = None
    if truth is not None:
        kept = truth.isel(time=time_index(truth, times))
        y = np.stack([kept[n].values for n in (a, b)], axis=-1)
        axes.plot(*y.T, color=CALIBRATED, lw=0.4)
    (cloud,) = axes.plot([], [], ".", ms=2, alpha=0.5, color=ENSEMBLE, label="members")
    paths = [axes.plot([], [], lw=0.6, color=ENSEMBLE)[0] for _ in range(min(members, len(x)))]
    (trail,) = axes.plot([], [], color=TRUTH)
    (here,) = axes.plot([], [], "o", ms=4, color=TRUTH, label="truth" if y is not None else None)
    low, high = x.min(axis=(0, 1)), x.max(axis=(0, 1))
    axes.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), xlabel=a, ylabel=b)
    axes.legend(loc="upper right")
    axes.set_title(f"time {times[0]:.4g}", loc="left")

    def update(i: int) -> Sequence[Any]:
        start = max(0, i - tail)
        cloud.set_data(*x[:, i].T)
        for k, path in enumerate(paths):
            path.set_data(*x[k, start : i + 1].T)
        if y is not None:
            trail.set_data(*y[start : i + 1].T)
            here.set_data(*y[i : i + 1].T)
        axes.set_title(f"time {times[i]:.4g}", loc="left")
        return [cloud, *paths, trail, here]

    return figure, update
