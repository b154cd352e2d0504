"""Draws an ensemble and its scores: `python scripts/figures.py POSTERIOR TRUTH [OBSERVATIONS] OUT`.

OUT is a folder. It receives the ensemble (PNG and GIF) and the scores: spread–skill, rank
histogram, coverage, and spectra where a dimension is periodic.
"""

import sys
from pathlib import Path

from sda import Observations, plotting, summary, verify
from sda.store import open_dataset


def main(posterior: str, truth: str, *rest: str) -> None:
    *observed, folder = rest
    out = Path(folder)
    out.mkdir(parents=True, exist_ok=True)
    observations = Observations.load(observed[0]) if observed else None
    ensemble, reference = open_dataset(posterior), open_dataset(truth)
    if reference.sizes.get("member", 1) > 1:
        reference = reference.isel(member=0)

    for name in ("posterior.png", "posterior.gif"):
        plotting.draw(ensemble, reference, observations, out=out / name, overwrite=True)
    scores = verify(ensemble, reference, observations)
    print(summary(scores))
    figures = ["spread_skill", "rank_histogram", "coverage"]
    figures += ["spectra"] if "spectrum" in scores else []
    for name in figures:
        figure = getattr(plotting, f"plot_{name}")(scores)
        plotting.save(figure, out / f"{name}.png", overwrite=True)


if __name__ == "__main__":
    if len(sys.argv) not in (4, 5):
        sys.exit(__doc__)
    main(*sys.argv[1:])
