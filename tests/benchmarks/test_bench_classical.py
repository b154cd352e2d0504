"""The timings of classical filters: what is run is what they say, whatever it takes."""

import pytest

from sda.benchmarks import classical


def test_timings_are_of_the_published_set_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classical, "BURN_IN", 5.0)
    found = classical.measure("LETKF", 2, cycles=150, tries=1)

    assert (found.name, found.repetitions, found.cycles) == ("LETKF", 2, 150)
    # The published error is 0.22; a filter that does nothing has 3.6.
    assert 0.15 < found.rmse < 0.35 and found.diverged == 0


def test_an_analysis_of_a_field_is_better_than_its_background() -> None:
    found = classical.field_analysis(size=16, members=20, every={"x": 2}, radius=2.0, tries=1)

    assert found["values"] == 256
    assert found["analysis"] < 0.6 * found["background"]
