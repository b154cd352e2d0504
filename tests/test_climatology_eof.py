"""Climatologies in EOFs: homogeneous in longitude only, or with a coastline."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from dynamics.layout import Layout
from sda.climatology import Climatology
from sda.extension import resize
from sda.symmetry import Symmetry

CYLINDER = Layout(
    ("u", "v"),
    0.2,
    {"lat": np.array([-60.0, -10.0, 10.0, 60.0]), "lon": np.arange(6) * 60.0},
    {"lon": 360.0},
)
BASIN = Layout(
    ("a", "b"),
    0.2,
    {"y": np.arange(3.0), "x": np.arange(4.0)},
    mask=np.array([[1, 1, 0, 1], [0, 1, 1, 1], [1, 1, 1, 0]], dtype=bool),
)
LAYOUTS = pytest.mark.parametrize("layout", [CYLINDER, BASIN], ids=["cylinder", "basin"])
ALL: dict[str, Any] = {"stride": 1, "rank": 99, "coupled": 99, "explained": 1.0}


def fields_on(layout: Layout) -> torch.Tensor:
    """Travelling waves and noise, unlike at each latitude; zero on land."""

    shape = (12, 30, *layout.shape)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).double()
    for _ in range(2):
        x = x + 0.7 * x.roll((1, 1), (1, -1)) + 0.3 * x.roll(1, 2)
        x = x + 0.4 * x.cumsum(-2)
    x = 3 * x + torch.arange(float(layout.shape[-2]))[:, None]
    x[:, :, 1] *= 20

    return x if layout.mask is None else x * torch.from_numpy(layout.mask)


def sample_covariance(x: torch.Tensor, window: int) -> np.ndarray:
    """The covariance of all windows of normalised anomalies `(member, time, channel, *space)`."""

    windows = x.unfold(1, window, 1).movedim(-1, 2).flatten(0, 1).flatten(1).numpy()
    return np.cov(windows.T, bias=True)


def rolled(matrix: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A covariance, averaged over all translations along the last dimension."""

    full = matrix.reshape(*shape, *shape)
    axes = (len(shape) - 1, 2 * len(shape) - 1)
    return np.mean([np.roll(full, (s, s), axes) for s in range(shape[-1])], 0).reshape(matrix.shape)


def test_zonal_covariance_with_all_eofs_is_the_homogeneous_part_of_all_windows() -> None:
    """Against numpy, for means, scales and the covariance over time, variable and latitude."""

    x = fields_on(CYLINDER)
    found = Climatology.fit(CYLINDER.to_dataset(x), 3, **ALL)
    assert found.kind == "zonal"
    mean = x.mean((0, 1, 4), keepdim=True)
    torch.testing.assert_close(found.mean, mean[0, 0].expand(CYLINDER.shape).float())
    scale = (x - mean).square().mean((0, 1, 3, 4)).sqrt()
    torch.testing.assert_close(found.scale, scale.float())

    shape = (3, *CYLINDER.shape)
    x = (x - mean) / scale[:, None, None]
    expected = rolled(sample_covariance(x, 3), shape)
    # All but the mean over longitudes has no mean: what a sample has of it is variance.
    eddy = x.unfold(1, 3, 1).movedim(-1, 2).mean((0, 1))
    eddy = (eddy - eddy.mean(-1, keepdim=True)).flatten()
    expected = expected + rolled(torch.outer(eddy, eddy).numpy(), shape)
    np.testing.assert_allclose(
        found.covariance(3, torch.float64).dense().numpy(), expected, rtol=1e-5, atol=2e-6
    )


def test_symmetries_are_averages_of_the_zonal_covariance() -> None:
    """The other hemisphere mirrored, and translations, against images of the whole matrix."""

    data = CYLINDER.to_dataset(fields_on(CYLINDER))
    mirror = Symmetry(flip=("lat",), sign={"v": -1})
    both = (mirror, Symmetry(roll={"lon": 1}))
    found = Climatology.fit(data, 2, symmetries=both, **ALL)
    dense = Climatology.fit(data, 2, symmetries=both, kind="dense", stride=1)

    torch.testing.assert_close(found.mean, dense.mean)
    torch.testing.assert_close(found.scale, dense.scale)
    torch.testing.assert_close(mirror(found.mean, CYLINDER), found.mean)
    torch.testing.assert_close(
        found.covariance(2, torch.float64).dense(),
        dense.covariance(2, torch.float64).dense(),
        rtol=1e-5,
        atol=2e-6,
    )


def test_only_translations_along_the_homogeneous_dimension_are_free() -> None:
    wide = replace(CYLINDER, coords={"lat": np.arange(4.0), "lon": np.arange(20) * 18.0})
    data = wide.to_dataset(fields_on(wide))
    with pytest.raises(ValueError, match="at most 16 combinations of symmetries, got 20"):
        Climatology.fit(data, 2, kind="low_rank", symmetries=[Symmetry(roll={"lon": 1})])
    Climatology.fit(data, 2, symmetries=[Symmetry(roll={"lon": 1})])


@LAYOUTS
def test_few_eofs_keep_the_variance_and_its_autocovariance(layout: Layout) -> None:
    """Of each zonal wavenumber, whatever the ranks; the leading directions have more."""

    data = layout.to_dataset(fields_on(layout))
    full = Climatology.fit(data, 3, **ALL).covariance(3, torch.float64).dense().numpy()
    few = Climatology.fit(data, 3, stride=1, rank=4, coupled=2)
    found = few.covariance(3, torch.float64).dense().numpy()
    n = math.prod(layout.shape)
    for lag in (0, 2):
        ours, theirs = (m[lag * n : (lag + 1) * n, :n] for m in (found, full))
        if layout is CYLINDER:
            shape = (*layout.shape, *layout.shape)
            ours, theirs = (np.einsum("clxcly->xy", m.reshape(shape)) for m in (ours, theirs))
        else:
            ours, theirs = np.trace(ours), np.trace(theirs)
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)
    largest, whole = (np.linalg.eigvalsh(m)[-1] for m in (found, full))
    assert 0.8 * whole < largest < 1.001 * whole


def test_low_rank_with_all_eofs_is_that_of_all_windows_and_nothing_on_land() -> None:
    x = fields_on(BASIN)
    found = Climatology.fit(BASIN.to_dataset(x), 3, **ALL)
    assert found.kind == "low_rank" and BASIN.mask is not None
    sea = torch.from_numpy(BASIN.mask)
    mean = x.mean((0, 1))
    scale = (x - mean).square()[..., sea].mean((0, 1, 3)).sqrt()
    torch.testing.assert_close(found.mean, mean.float())
    torch.testing.assert_close(found.scale, scale.float())

    covariance = found.covariance(3, torch.float64)
    expected = sample_covariance((x - mean) / scale[:, None, None], 3)
    np.testing.assert_allclose(covariance.dense().numpy(), expected, rtol=1e-5, atol=2e-6)
    noise = torch.randn(4, *covariance.shape, generator=torch.Generator().manual_seed(1)).double()
    assert (covariance.sample(noise)[..., ~sea] == 0).all()
    assert (covariance.wiener(noise, 0.5)[..., ~sea] == 0).all()
    assert (found.normalise(x)[..., ~sea] == 0).all()
    # The variance per value is one where there is sea, not the mean over all cells.
    assert float(covariance.wiener_power(1e-9)) == pytest.approx(1, rel=0.02)


@LAYOUTS
@pytest.mark.parametrize("length", [1, 3, 9])
def test_other_lengths_are_those_of_the_whole_matrix(layout: Layout, length: int) -> None:
    """Where all EOFs are coupled, to continue the blocks is to continue the matrix."""

    found = Climatology.fit(layout.to_dataset(fields_on(layout)), 4, **ALL)
    whole = found.covariance(4, torch.float64).dense()
    torch.testing.assert_close(
        found.covariance(length, torch.float64).dense(),
        resize(whole, 4, length),
        rtol=1e-5,
        atol=1e-6,
    )


@LAYOUTS
def test_leading_directions_alone_give_the_same_where_they_suffice(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The EOFs of frames that have too many values for their covariances."""

    data = layout.to_dataset(fields_on(layout))
    exact = Climatology.fit(data, 2, **ALL)
    monkeypatch.setattr("sda.eof.ENTRIES", 1)
    found = Climatology.fit(data, 2, **ALL)
    torch.testing.assert_close(
        found.covariance(2).dense(), exact.covariance(2).dense(), rtol=1e-5, atol=2e-6
    )


def test_whole_windows_of_before_are_still_read() -> None:
    """Files of before hold the leading directions of windows; they cannot be continued."""

    layout = Layout(("a",), 1.0, {"z": np.arange(10.0)})
    q, _ = torch.linalg.qr(torch.randn(30, 4, generator=torch.Generator().manual_seed(0)).double())
    values = torch.tensor([4.0, 3.0, 2.0, 1.0], dtype=torch.float64)
    moments = {"vectors": q, "values": values, "floor": torch.tensor([0.1]).double()}
    content = {"window": 3, "kind": "low_rank", "complex": []}
    tensors = {"mean": torch.zeros(layout.shape), "scale": torch.ones(1), **moments}
    found = Climatology.from_tensors(layout, content, tensors)
    expected = (q * (values - 0.1)) @ q.T + 0.1 * torch.eye(30, dtype=torch.float64)

    torch.testing.assert_close(found.covariance(3, torch.float64).dense(), expected)
    assert found.covariance(2).shape == (2, 1, 10)
    with pytest.raises(ValueError, match="cannot be extended to 4: fit it again"):
        found.covariance(4)


@LAYOUTS
def test_tensors_round_trip(layout: Layout) -> None:
    climatology = Climatology.fit(layout.to_dataset(fields_on(layout)), 3)
    again = Climatology.from_tensors(layout, climatology.to_json(), climatology.tensors())

    for length in (2, 3, 5):
        torch.testing.assert_close(
            again.covariance(length).dense(),
            climatology.covariance(length).dense(),
            rtol=0,
            atol=0,
        )


@pytest.mark.parametrize(
    ("layout", "kind", "message"),
    [
        (CYLINDER, "round", "kind must be one of .'dense', 'low_rank', 'spectral', 'zonal'.*round"),
        (CYLINDER, "spectral", "needs periodic dimensions only"),
        (replace(CYLINDER, period={}), "zonal", "needs one periodic dimension and others that"),
        (BASIN, "dense", "a dense covariance has no place for land: use kind='low_rank'"),
        (BASIN, "zonal", "no place for land"),
    ],
)
def test_kinds_that_do_not_fit_are_refused(layout: Layout, kind: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Climatology.fit(layout.to_dataset(fields_on(layout)), 2, kind=kind)
