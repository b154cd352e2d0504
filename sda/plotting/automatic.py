"""The drawing that fits an ensemble."""

from pathlib import Path
from typing import Any

import xarray as xr

from ..verification.cells import is_spherical
from .animation import animate
from .fields import plot_fields
from .files import checked_path, save
from .maps import plot_maps
from .series import plot_series
from .states import prepare, spatial_dims


def draw(
    posterior: xr.Dataset,
    truth: xr.Dataset | None = None,
    observations: Any = None,
    *,
    out: str | Path,
    overwrite: bool = False,
) -> Path:
    """Draws an ensemble in the way that fits its dimensions, to a file of the kind of its name.

    Arguments:
        posterior: The ensemble, with dimensions `(member, time, *space)`.
        truth: The truth, without members or with one.
        observations: `sda.Observations`, or one of its file forms (a dataset, or a table).
        out: The file: `.png`, `.pdf` or `.svg` for a figure, `.gif` or `.mp4` for an animation.
        overwrite: Whether to replace a file.

    Raises:
        FileExistsError: If the file exists and is not to be replaced.
        ValueError: If the file is of another kind, or the ensemble cannot be drawn.
    """

    out = checked_path(out, (".png", ".pdf", ".svg", ".gif", ".mp4"), overwrite)
    if out.suffix in (".gif", ".mp4"):
        return animate(posterior, truth, observations, out=out, overwrite=overwrite)
    dims = spatial_dims(prepare(posterior, truth)[0])
    chosen = plot_fields if dims else plot_series
    if is_spherical(posterior, dims):
        chosen = plot_maps
    save(chosen(posterior, truth, observations), out, overwrite=overwrite)

    return out
