"""Toy ocean: what an altimeter and drifting floats know of eddies in two layers.

    python scripts/tutorials/toy_ocean.py --out runs/tutorials/toy_ocean
    python scripts/tutorials/toy_ocean.py --prior toy-ocean --out runs/tutorials/toy_ocean
    python scripts/tutorials/toy_ocean.py --small              # a smaller sea, within a minute

The altimeter sees the surface along its tracks, the floats profiles of both layers where the lower
one has carried them. An ensemble given both tells of the lower layer everywhere, and of where the
floats will be. The prior is Gaussian and fitted here, or with `--prior` one that was trained, such
as the shipped `toy-ocean`. The cells run one after the other in an editor that knows `# %%`.
"""

# %% What is asked for
import argparse
from pathlib import Path

import xarray as xr
import yaml

import sda
from sda import plotting
from sda.config import build_system, folder
from sda.observing import Altimeter, Floats
from sda.verification.positions import carried, position_scores

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--small", action="store_true", help="a coarse sea and few members")
parser.add_argument("--prior", default="gaussian", help="gaussian, or a trained prior")
parser.add_argument("--out", default="runs/tutorials/toy_ocean", help="the folder of the figures")
options = parser.parse_args()
out = Path(options.out)
out.mkdir(parents=True, exist_ok=True)

# %% The sea: streamfunctions of two quasi-geostrophic layers, a state a day
arguments = yaml.safe_load((folder() / "system" / "toy_ocean.yaml").read_text(encoding="utf-8"))
if options.small:
    system = build_system({**arguments, "size": 16, "resolution": 32})
    members, length, lead, train = 8, 9, 4, (16, 40)
else:
    system = build_system(arguments)
    members, length, lead, train = 32, 21, 20, (32, 200)
whole = system.simulate(1, length + lead, spinup=300, seed=1, progress=False).isel(member=0)
truth = whole.isel(time=slice(length))

# %% Observations: a table of sea surface heights, and of profiles at the floats' own places
altimeter, floats = Altimeter(), Floats(std={"psi1": 1000.0, "psi2": 300.0})
observations = altimeter.observe(truth, seed=2) + floats.observe(truth, seed=3)
table = observations.to_table()
print(f"observed: {table['variable'].value_counts().to_dict()}")

# %% A prior of trajectories
if options.prior == "gaussian":
    archive = system.simulate(train[0], train[1], spinup=300, seed=4, progress=False)
    prior = sda.GaussianPrior.fit(archive, window=9)
    settings = {"guidance": "static", "langevin": None}  # exact for a Gaussian prior
else:
    prior, settings = sda.Prior.load(options.prior), {}

# %% The ensembles, given the altimeter alone and given both
given = {"altimeter": altimeter.observe(truth, seed=2), "altimeter and floats": observations}
posteriors = {
    name: sda.assimilate(
        prior, seen, members, seed=5, time=truth["time"], progress=False, **settings
    ).load()
    for name, seen in given.items()
}

# %% Scores of each layer: the lower one, which no satellite sees
climate = truth.std()
for name, posterior in posteriors.items():
    scores = sda.verify(posterior, truth)
    rmse = [scores["rmse_by_variable"].sel(variable=v).item() for v in ("psi1", "psi2")]
    share = [error / climate[v].item() for error, v in zip(rmse, ("psi1", "psi2"), strict=True)]
    print(f"{name}: RMSE over the truth's standard deviation {share[0]:.2f} above, "
          f"{share[1]:.2f} below")  # fmt: skip
posterior = posteriors["altimeter and floats"]
scores = sda.verify(posterior, truth, observations, system, stepped=4)
print(sda.summary(scores))

# %% Where the floats will be: each member carries them on
_, tracks = floats.tracks(whole, system.layout)
future = whole["time"].values[length - 1 :]
forecast = sda.forecast_by_model(system, posterior, lead, seed=6)
names = list(system.layout.variables)
flow = xr.concat(
    [p[names].transpose("member", "time", ...) for p in (posterior.isel(time=[-1]), forecast)],
    "time", coords="minimal", compat="override", join="override",
)  # fmt: skip
positions = carried(flow, tracks[length - 1], floats.drift, floats.current, system.layout)
found = position_scores(positions, tracks[length - 1 :], system.layout, future - future[0])
for step in (lead // 2, lead):
    at = found.isel(time=step)
    print(
        f"{at['time'].item() / 24:g} days ahead, members' floats are "
        f"{at['distance'].item():.1f} km from the truth's and "
        f"{at['dispersion'].item():.1f} km from each other"
    )

# %% Maps of both layers, and spectra
for variable in names:
    figure = plotting.plot_maps(posterior, truth, observations, variable=variable)
    plotting.save(figure, out / f"maps_{variable}.png", overwrite=True)
plotting.save(
    plotting.plot_spaghetti(posterior, truth, variable="psi2"),
    out / "spaghetti.png",
    overwrite=True,
)
plotting.save(plotting.plot_spectra(scores), out / "spectra.png", overwrite=True)
plotting.animate(posterior, truth, observations, out=out / "posterior.gif", overwrite=True)
print(f"figures in {out}")
