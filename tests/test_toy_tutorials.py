"""The tutorials of the toy weather and the toy ocean run at reduced size and draw their figures."""

import re
import runpy
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "scripts" / "tutorials"
FIGURES = {
    "toy_weather": ("maps.png", "spaghetti.png", "stamps.png", "spectra.png", "forecast.gif"),
    "toy_ocean": ("maps_psi1.png", "maps_psi2.png", "spaghetti.png", "posterior.gif"),
}


@pytest.mark.parametrize("name", FIGURES)
def test_a_tutorial_runs_at_reduced_size(name, tmp_path, monkeypatch, capsys) -> None:
    script = str(FOLDER / f"{name}.py")
    monkeypatch.setattr(sys, "argv", [script, "--small", "--out", str(tmp_path)])
    runpy.run_path(script, run_name="__main__")
    printed = capsys.readouterr().out
    for figure in FIGURES[name]:
        assert (tmp_path / figure).stat().st_size > 5000
    # The prior is exact enough for its members to fit what was seen as the truth does.
    misfit, truth = map(float, re.search(r"misfit.*?([\d.]+)\s+truth: ([\d.]+)", printed).groups())
    assert misfit == pytest.approx(truth, rel=0.15)
    if name == "toy_ocean":
        below = [float(v) for v in re.findall(r"([\d.]+) below", printed)]
        # Floats tell of the lower layer what the altimeter does not, which is not nothing.
        assert below[1] < below[0] < 0.8
