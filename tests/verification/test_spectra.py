"""Spectra: Parseval, single waves, and any shape of grid."""

import numpy as np
import pytest

from sda.verification import coherence, spectrum


def test_spectra_sum_to_half_the_mean_square():
    for shape in ((9,), (16,), (8, 8), (6, 9), (4, 6, 5)):
        x = np.random.default_rng(0).standard_normal((3, *shape))
        axes = range(1, x.ndim)
        np.testing.assert_allclose(
            spectrum(x, axes).sum(axis=-1), (x**2).mean(axis=tuple(axes)) / 2, rtol=1e-12
        )


def test_a_wave_is_in_its_shell():
    y, x = np.meshgrid(
        np.arange(32) * 2 * np.pi / 32, np.arange(32) * 2 * np.pi / 32, indexing="ij"
    )
    for ky, kx in ((3, 0), (0, 5), (3, 4), (-6, 8), (2, 2)):
        energy = spectrum(np.sin(ky * y + kx * x), (0, 1), (2 * np.pi, 2 * np.pi))
        shell = int(np.floor(np.hypot(kx, ky) + 0.5))
        assert energy[shell] == pytest.approx(0.25)
        assert energy.sum() == pytest.approx(0.25)


def test_wavenumbers_are_physical_on_a_rectangle():
    # One wave along the short side is as short as four along the long one.
    y = np.arange(16) / 16
    field = np.sin(2 * np.pi * y)[:, None] + np.zeros(64)
    assert np.argmax(spectrum(field, (0, 1), (1.0, 4.0))) == 4
    assert np.argmax(spectrum(field.T, (1, 0), (1.0, 4.0))) == 4


def test_other_axes_are_kept():
    x = np.random.default_rng(0).standard_normal((2, 8, 3, 8))
    got = spectrum(x, (1, 3))
    assert got.shape[:2] == (2, 3)
    np.testing.assert_allclose(got[1, 2], spectrum(x[1, :, 2], (0, 1)))
    with pytest.raises(ValueError, match="at least one periodic axis"):
        spectrum(x, ())


def test_two_dimensional_spectra_are_those_of_the_dynamics():
    torch = pytest.importorskip("torch")
    from dynamics.spectral import energy_spectrum

    x = np.random.default_rng(0).standard_normal((2, 16, 16))
    expected = energy_spectrum(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(spectrum(x, (1, 2)).sum(axis=0)[:9], expected, rtol=1e-9)


def test_coherence_of_a_noisy_copy_has_its_closed_form():
    rng = np.random.default_rng(0)
    x, noise = rng.standard_normal((2, 400, 16, 16))
    assert np.allclose(coherence(x, x, (1, 2)), 1)
    assert np.allclose(coherence(x, -2 * x, (1, 2)), -1)
    got = coherence(x, 0.5 * x + 1.2 * noise, (1, 2))
    np.testing.assert_allclose(got[1:9], 0.5 / 1.3, atol=0.05)
    assert np.abs(coherence(x, noise, (1, 2))[1:9]).max() < 0.05


def test_coherence_of_a_shifted_wave_is_the_cosine_of_its_phase():
    site = np.arange(32) * 2 * np.pi / 32
    for k, phase in ((1, 0.3), (5, 2.0)):
        x, y = np.sin(k * site), 3 * np.sin(k * site + phase) + np.cos(7 * site)
        assert coherence(x, y, (0,))[k] == pytest.approx(np.cos(phase))
    # What has no power but rounding errors is coherent with nothing.
    assert np.isnan(coherence(x.astype(np.float32), y, (0,))[[0, 3, 12]]).all()
    with pytest.raises(ValueError, match="one shape"):
        coherence(x, y[:-1], (0,))
    with pytest.raises(ValueError, match="at least one periodic axis"):
        coherence(x, y, ())
