"""Truths on the sphere and on a plane."""

import pytest
import xarray as xr
from observing_cases import globe, ocean, truth_on


@pytest.fixture(scope="session")
def weather() -> xr.Dataset:
    return truth_on(globe())


@pytest.fixture(scope="session")
def sea() -> xr.Dataset:
    return truth_on(ocean(), 41, 1e3)
