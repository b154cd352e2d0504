"""Observing systems as filters and streams meet them: one time after the other."""

import numpy as np
import pytest
import torch
from observing_cases import exact, globe, ocean

from sda.observation import Observations, sequence
from sda.observation.recent import split
from sda.observing import Altimeter, Floats, Geostationary, SeaSurface, Stations, Swath

SYSTEMS = [
    (Stations(number=10, std=1.0), "weather"),
    (Swath(spacing=1500.0, width=4000.0), "weather"),
    (Swath(variables=["u", "v"], quantity="speed", spacing=1500.0, footprint=0.0), "weather"),
    (Geostationary(), "weather"),
    (Altimeter(repeat=20.0), "sea"),
    (SeaSurface(interval=4.0), "sea"),
    (Floats(number=5, cycle=8.0), "sea"),
]


@pytest.mark.parametrize(("system", "name"), SYSTEMS)
def test_one_time_after_the_other_sees_the_same(system, name, request):
    truth = request.getfixturevalue(name)
    layout, time = (globe() if name == "weather" else ocean()), truth["time"].values
    observations = system.observe(truth, 1)
    x = torch.from_numpy(layout.to_array(truth))[0]
    found, values = [], []
    for each in sequence(observations, layout, time, torch.float64):
        frames = x[None, each.index + 1 - each.frames : each.index + 1]
        found.append(each.H(frames)[0].numpy())
        values.append(each.y[0].numpy())
    clean = exact(observations, truth).ravel()
    clean = clean[observations.sets[0].seen.ravel()] if clean.size > len(observations) else clean
    order, expected = (
        np.argsort(np.concatenate(values)),
        np.argsort(observations.to_table()["observation"]),
    )
    assert np.concatenate(found)[order] == pytest.approx(clean[expected], abs=1e-8)
    # And in the parts in which a filter keeps them.
    pieces = split(observations, layout, float(time[0]))
    assert sum(len(piece) for piece in pieces) == len(observations)
    both = Observations([piece.values for piece in pieces])
    again = both.likelihood(layout, time, torch.float64).H(x[None])[0].numpy()
    order = np.argsort(both.to_table()["observation"])
    assert again[order] == pytest.approx(clean[expected], abs=1e-8)
