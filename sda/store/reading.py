"""Opening datasets lazily: Zarr stores of any origin, and NetCDF files."""

import warnings
from pathlib import Path

import numpy as np
import xarray as xr

from dynamics.simulation_store import MARK as SIMULATION
from dynamics.simulation_store import SHARDS

from .attributes import KIND
from .checksums import damaged_blocks
from .errors import first_line


def open_dataset(path: str | Path) -> xr.Dataset:
    """Opens a dataset lazily: a Zarr store (any version) or a NetCDF file.

    Times stay numbers in the units of their `units` attribute, as the layouts have them. A
    posterior of which finished members are missing opens with a warning that names them, and says
    so in its attribute `status`.

    Raises:
        FileNotFoundError: If there is nothing at `path`.
        ValueError: If it is no Zarr store and no NetCDF file.
    """

    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no dataset at {str(path)!r}")
    try:
        if path.is_dir():
            from ..analyses import is_analyses, open_analyses

            if is_analyses(path):
                return ordered(open_analyses(path))
            # The full path: workers of a cluster, to which a lazy dataset goes, run elsewhere.
            dataset = xr.open_zarr(
                path.absolute(), consolidated=False, decode_times=False, chunks={}
            )
            return warned(ordered(dataset), path)
        return xr.open_dataset(path.absolute(), decode_times=False, chunks={})
    except Exception as error:
        raise ValueError(
            f"{str(path)!r} is neither a Zarr store nor a NetCDF file: {first_line(error)}"
        ) from error


def ordered(dataset: xr.Dataset) -> xr.Dataset:
    """The dataset with its variables in the order of its attribute `variables`, if it has one.

    A Zarr group lists its variables as the file system does, in any order. Those that the attribute
    does not name come last, sorted by name, so that the order is the same everywhere.
    """

    names = sorted(map(str, dataset.data_vars))
    given = [str(name) for name in np.atleast_1d(dataset.attrs.get("variables", []))]
    first = [name for name in given if name in names]
    return dataset[first + [name for name in names if name not in first]]


def warned(dataset: xr.Dataset, path: Path) -> xr.Dataset:
    """The dataset; if shards of it are damaged, its status says so, and a warning."""

    damaged = damaged_blocks(path, dataset.attrs)
    posterior = dataset.attrs.get("kind") == KIND
    if posterior or SIMULATION in dataset.attrs:
        dataset.attrs.pop(SHARDS, None)
    if not damaged:
        return dataset
    text = "; ".join(damaged.values())
    what, does = ("assimilation", "samples") if posterior else (SIMULATION, "simulates")
    warnings.warn(
        f"{str(path)!r} is damaged: {text}. Run the {what} again with resume=true, which "
        f"{does} these members again",
        RuntimeWarning,
        stacklevel=3,
    )
    return dataset.assign_attrs({"status" if posterior else SIMULATION: f"damaged: {text}"})
