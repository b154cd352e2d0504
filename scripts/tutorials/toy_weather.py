"""Toy weather: what 100 stations and a satellite know of a planet's winds.

    python scripts/tutorials/toy_weather.py --out runs/tutorials/toy_weather
    python scripts/tutorials/toy_weather.py --prior toy-weather --out runs/tutorials/toy_weather
    python scripts/tutorials/toy_weather.py --small            # a coarse planet, within a minute

A truth is simulated and observed, an ensemble is drawn given the observations, scored against the
truth with every square kilometre counting alike, drawn on maps, and forecast. The prior is Gaussian
and fitted here, or with `--prior` one that was trained, such as the shipped `toy-weather`. The
cells run one after the other in an editor that knows `# %%`.
"""

# %% What is asked for
import argparse
from pathlib import Path

import numpy as np

import dynamics
import sda
from sda import plotting
from sda.observing import Stations, Swath

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--small", action="store_true", help="a coarse planet and few members")
parser.add_argument("--prior", default="gaussian", help="gaussian, or a trained prior")
parser.add_argument("--out", default="runs/tutorials/toy_weather", help="the folder of the figures")
options = parser.parse_args()
out = Path(options.out)
out.mkdir(parents=True, exist_ok=True)

# %% The planet: shallow water with two jet streams, states of winds u, v and height h every 6 hours
if options.small:
    system = dynamics.ToyWeather(10, lat=16, lon=32, first=4, last=8, jet_width=14, growth=0.7)
    members, length, lead, spinup, train = 8, 7, 4, 120, (12, 32)
else:
    system = dynamics.ToyWeather()
    members, length, lead, spinup, train = 32, 21, 40, 480, (32, 120)
whole = system.simulate(1, length + lead, spinup=spinup, seed=1, progress=False).isel(member=0)
truth, future = whole.isel(time=slice(length)), whole.isel(time=slice(length, None))
print(f"truth: {dict(truth.sizes)}, wind up to {float(np.hypot(truth.u, truth.v).max()):.0f} m/s")

# %% Observations: stations report all three variables, a satellite sees the height below it
stations = Stations(number=100 if not options.small else 12, std={"u": 1.5, "v": 1.5, "h": 15.0})
satellite = Swath(variables=["h"], std=15.0, spacing=4000.0 if options.small else 650.0)
observations = stations.observe(truth, seed=2) + satellite.observe(truth, seed=3)
print(f"observed: {len(observations.to_table())} values")

# %% A prior of trajectories
if options.prior == "gaussian":
    archive = system.simulate(train[0], train[1], spinup=spinup, seed=4, progress=False)
    prior = sda.GaussianPrior.fit(archive, window=5)
    settings = {"guidance": "static", "langevin": None}  # exact for a Gaussian prior
else:
    prior, settings = sda.Prior.load(options.prior), {}

# %% The ensemble, given the observations
posterior = sda.assimilate(
    prior, observations, members, seed=5, time=truth["time"], progress=False, **settings
).load()

# %% Scores: by area, each variable in its units, with spectra and balance
scores = sda.verify(posterior, truth, observations, system, stepped=4)
print(sda.summary(scores))
top = int(min(system.truncation, 10))
ratio = scores["kinetic_energy_ratio"][1 : top + 1].values
print(f"kinetic energy over the truth's, l = 1 … {top}: {np.round(ratio, 2).tolist()}")

# %% Maps, spaghetti, stamps and spectra
figures = {
    "maps": plotting.plot_maps(posterior, truth, observations),
    "spaghetti": plotting.plot_spaghetti(posterior, truth),
    "stamps": plotting.plot_stamps(posterior, truth, members=6),
    "spectra": plotting.plot_spectra(scores),
}
for name, figure in figures.items():
    plotting.save(figure, out / f"{name}.png", overwrite=True)

# %% A forecast from the analysis by the numerical model, and how the error grows
forecast = sda.forecast_by_model(system, posterior, lead, seed=6)
later = sda.verify(forecast, future)
for step in sorted({0, lead // 4 - 1, lead // 2 - 1, lead - 1}):
    at = later["crps"].isel(time=step)
    cells = ", ".join(f"{name} {at.sel(variable=name).item():.3g}" for name in truth.data_vars)
    print(f"CRPS {(step + 1) * system.layout.dt:g} hours ahead: {cells}")
plotting.animate(forecast, future, out=out / "forecast.gif", overwrite=True)
print(f"figures in {out}")
