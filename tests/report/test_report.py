"""The report as numbers and text: what the tables show, who is best, what is left out."""

import base64
import hashlib
import html.parser
import json
import re

import matplotlib
import numpy as np
import pytest
from invented import NAMES, results
from scipy import stats

from sda import report
from sda.report.calibration import flat_band
from sda.report.numerals import count, decimals, number, percent
from sda.report.statistics import HIGH, LOW, best, estimate, thinned


class Page(html.parser.HTMLParser):
    """The tables of a page by key: rows of cells, each with its text and the value it sorts by."""

    def __init__(self, text):
        super().__init__()
        self.tables, self.strong, self.row, self.cell = {}, set(), None, None
        self.text, self.ids, self.tags, self.script, self.inside = [], [], [], "", None
        self.feed(text)

    def handle_starttag(self, name, attributes):
        attributes, self.inside = dict(attributes), name
        self.tags.append((name, attributes))
        self.ids += [attributes["id"]] if "id" in attributes else []
        if name == "table":
            self.key = attributes["aria-labelledby"].removesuffix("-caption")
            self.tables[self.key] = []
        elif name == "tr":
            self.row = []
            self.tables[self.key].append(self.row)
        elif name in ("td", "th"):
            self.cell = {"text": "", "value": attributes.get("data-value"), "bold": False}
            self.row.append(self.cell)
        elif name == "small" and self.cell is not None:
            self.cell["text"] += " | "
        elif name == "strong" and self.cell is not None:
            self.cell["bold"] = True

    def handle_endtag(self, name):
        self.inside = None
        self.cell = None if name in ("td", "th") else self.cell

    def handle_data(self, data):
        self.text.append(data)
        self.script += data if self.inside == "script" else ""
        if self.cell is not None:
            self.cell["text"] += data

    def column(self, key, title):
        head, *rows = self.tables[key]
        k = [cell["text"] for cell in head].index(title)
        return [row[k] for row in rows]


def few(dataset, *names):
    return dataset.sel({"method": list(names)})


def scores_of(dataset, *names):
    """Without what takes time to draw."""
    kept = ["rmse", "diverged", "diverged_time", "finished"]
    return few(dataset, *names)[kept].copy(deep=True)


def page_of(dataset, folder):
    text = report.write(dataset, folder / "report.html", overwrite=True).read_text("utf-8")
    return text, Page(text)


@pytest.fixture(scope="module")
def dataset():
    return few(results(times=120), "3dvar", "etkf_24", "etkf_24_tuned", "pf", "sda")


@pytest.fixture(scope="module")
def written(dataset, tmp_path_factory):
    before = dict(matplotlib.rcParams)
    page = page_of(dataset, tmp_path_factory.mktemp("report"))
    assert dict(matplotlib.rcParams) == before
    return page


def test_scores_are_those_of_the_results(dataset, written):
    kept = dataset.where(dataset["diverged"] == 0)
    columns = {
        "RMSE": "rmse",
        "CRPS": "crps",
        "Spread": "spread",
        "Spread–skill": "spread_skill",
        "Misfit": "misfit",
        "Reliability index": "reliability",
    }
    for title, name in columns.items():
        values = kept[name].values
        for cell, row in zip(written[1].column("scores", title), values, strict=True):
            row = row[np.isfinite(row)]
            if not len(row):
                assert cell["value"] is None and cell["text"] == "–"
                continue
            assert float(cell["value"]) == pytest.approx(row.mean(), rel=1e-12)
            numbers = [float(n) for n in re.findall(r"\d+\.\d+", cell["text"])]
            error = row.std(ddof=1) / np.sqrt(len(row))
            expected = [row.mean(), error, row.min(), row.max()]
            assert numbers == pytest.approx(expected, rel=0.06, abs=6e-4), (title, cell)
    assert "Log-likelihood" not in [cell["text"] for cell in written[1].tables["scores"][0]]


def test_costs_are_those_of_the_results(dataset, written):
    kept = dataset.where(dataset["diverged"] == 0)
    for title, name, scale in (
        ("Wall time [s]", "seconds", 1),
        ("Model steps", "model_steps", 1),
        ("Network evaluations", "evaluations", 1),
        ("Peak memory [MiB]", "memory", 2**20),
    ):
        for cell, row in zip(written[1].column("costs", title), kept[name].values, strict=True):
            expected = np.nanmean(row) / scale if np.isfinite(row).any() else None
            assert (cell["value"] is None) == (expected is None)
            if expected is not None:
                assert float(cell["value"]) == pytest.approx(expected, rel=1e-12)


def test_published_scores_and_the_relative_difference(dataset, written):
    published = written[1].column("scores", "Published")
    difference = written[1].column("scores", "Difference")
    rmse = dataset["rmse"].where(dataset["diverged"] == 0).mean("repetition").values
    for k, (theirs, share) in enumerate(zip(published, difference, strict=True)):
        value = float(dataset["published"][k])
        if np.isnan(value):
            assert (theirs["text"], share["text"], share["value"]) == ("–", "–", None)
        else:
            assert float(theirs["text"]) == value
            assert float(share["value"]) == pytest.approx(rmse[k] / value - 1, rel=1e-9)


def test_diverged_runs_are_named_and_enter_no_mean(written):
    text, page = written
    lost = page.tables["diverged"][1:]
    assert [cell["value"] for cell in lost[0][:1]] == ["Particle filter N=4000"]
    assert (lost[0][1]["text"], lost[0][2]["text"], len(lost)) == ("1", "33.25", 1)
    runs = page.column("scores", "Runs")
    assert [cell["text"] for cell in runs] == ["3", "3", "3", "2 | 1 diverged", "3"]
    assert "†" in page.column("scores", "RMSE")[3]["text"]
    assert "1000000" not in text and "1e+06" not in text
    assert "1 of 15 runs diverged and enter no mean: Particle filter N=4000." in page.text


def test_runs_that_recovered_or_lost_members_are_marked(dataset, tmp_path):
    plain = scores_of(dataset, "etkf_24", "sda", "pf")
    text, page = page_of(plain, tmp_path)
    assert "‡" not in text and "§" not in text
    known = page.column("scores", "RMSE")

    runs = ("method", "repetition")
    lost, failed = np.full((2, 3, 3), np.nan)
    lost[0, 1], lost[2, 0], lost[2, 1] = 12.5, 4.0, 33.25  # the last of them diverged
    failed[0], failed[1], failed[2, 1] = 0, [1, 0, 2], 5
    marked = plain.assign(lost_time=(runs, lost), failed_members=(runs, failed))
    text, page = page_of(marked, tmp_path)
    cells = page.column("scores", "RMSE")
    signs = ["".join(c for c in cell["text"] if c in "†‡§") for cell in cells]
    assert signs == ["‡", "§", "†‡"]
    # A mark is all that changes: the numbers stay, and so does their ranking.
    for key in ("value", "bold"):
        assert [cell[key] for cell in cells] == [cell[key] for cell in known]
    found = [cell["text"] for cell in page.column("scores", "Runs")]
    assert found == [
        "3 | 1 lost and found", "3 | 3 members failed", "2 | 1 diverged | 1 lost and found"
    ]  # fmt: skip
    assert "‡: some runs lost the truth for a while and found it again" in text
    assert "§: some members of a run failed and were left out" in text


def test_a_diverged_method_is_never_best(dataset, tmp_path):
    tempting = scores_of(dataset, "etkf_24", "pf")
    tempting["rmse"].loc[{"method": "pf"}] = 1e-3
    page = page_of(tempting, tmp_path)[1]
    assert [cell["bold"] for cell in page.column("scores", "RMSE")] == [True, False]
    # If all its runs diverged, it has no number at all.
    tempting["diverged"].loc[{"method": "pf"}] = 1
    page = page_of(tempting, tmp_path)[1]
    cell = page.column("scores", "RMSE")[1]
    assert (cell["text"], cell["value"], cell["bold"]) == ("diverged", None, False)
    assert len(page.tables["diverged"]) == 1 + 3
    # And if those of all methods did, the page still says so.
    tempting["diverged"][:] = 1
    cells = page_of(tempting, tmp_path)[1].column("scores", "RMSE")
    assert [cell["text"] for cell in cells] == ["diverged", "diverged"]


def test_bold_in_the_page_is_best(dataset, written):
    kept = dataset.where(dataset["diverged"] == 0)
    able = ~(dataset["diverged"] > 0).any("repetition").values
    for title, name, goal in (("RMSE", "rmse", LOW), ("Spread–skill", "spread_skill", 1.0)):
        flags = [cell["bold"] for cell in written[1].column("scores", title)]
        assert flags == best(kept[name].values, goal, able).tolist()
        assert any(flags) and not all(flags)
    assert not any(cell["bold"] for cell in written[1].column("scores", "Spread"))


def test_best_agrees_with_a_paired_test():
    rng = np.random.default_rng(0)
    everyone = np.ones(4, bool)
    seen = set()
    for _ in range(60):
        n = rng.integers(2, 8)
        values = 1 + 0.3 * rng.standard_normal((4, n)) + rng.standard_normal(n)
        values += np.array([0, 0.1, 0.3, 1])[:, None]
        for goal, sign in ((LOW, 1), (HIGH, -1)):
            first = np.argmin(sign * values.mean(1))
            p = np.array([stats.ttest_rel(row, values[first]).pvalue for row in values])
            p[first] = 1
            flags = best(values, goal, everyone)
            assert flags.tolist() == (p >= 0.05).tolist()
            seen.add(int(flags.sum()))
    assert seen >= {1, 2, 3}


def test_laws_of_best():
    rng = np.random.default_rng(1)
    everyone = np.ones(5, bool)
    for _ in range(50):
        values = rng.standard_normal((5, 4)) * 0.2 + np.arange(5)[:, None] * 0.2
        flags = best(values, LOW, everyone)
        order = rng.permutation(5)
        assert best(values[order], LOW, everyone).tolist() == flags[order].tolist()
        # A hard truth is hard for all: paired differences do not see it, nor the units.
        shifted = 3 * (values + 10 * rng.standard_normal(4))
        assert best(shifted, LOW, everyone).tolist() == flags.tolist()
        assert best(-values, HIGH, everyone).tolist() == flags.tolist()
        far = np.abs(values) + 5
        assert best(far, 0.0, everyone).tolist() == best(far, LOW, everyone).tolist()
        left_out = everyone.copy()
        left_out[np.argmin(values.mean(1))] = False
        assert not best(values, LOW, left_out)[~left_out].any()
    assert best(np.array([[0.2], [0.1], [0.1]]), LOW, np.ones(3, bool)).tolist() == [0, 1, 1]
    assert not best(np.full((2, 3), np.nan), LOW, np.ones(2, bool)).any()


def test_equal_methods_are_tied_as_often_as_the_level_says():
    rng = np.random.default_rng(2)
    both = [best(v, LOW, np.ones(2, bool)).all() for v in rng.standard_normal((3000, 2, 4))]
    # 95 % with a standard error of 0.4 %.
    assert abs(np.mean(both) - 0.95) < 0.016


def test_estimates():
    rows = np.random.default_rng(3).standard_normal((20, 6))
    rows[0, 2:] = np.nan
    for row in rows:
        seen = row[np.isfinite(row)]
        e = estimate(row)
        assert (e.n, e.low, e.high) == (len(seen), seen.min(), seen.max())
        assert e.mean == pytest.approx(seen.mean())
        assert e.error == pytest.approx(stats.sem(seen))
    assert np.isnan(estimate(np.array([0.3])).error)
    assert estimate(np.array([np.nan])).n == 0


def test_the_band_of_flat_histograms_holds_what_it_says():
    rng = np.random.default_rng(4)
    bins, outside = 20, []
    for _ in range(300):
        # Ranks come in runs of 25 that are equal, as those of neighbours are.
        rows = rng.multinomial(400, np.full(bins, 1 / bins), size=3) / 400 * bins
        outside.append(np.abs(rows.mean(0) - 1) > flat_band(rows))
    assert abs(np.mean(outside) - 0.05) < 0.012


def test_thinning_keeps_the_mean():
    rng = np.random.default_rng(5)
    time = np.arange(960.0)
    values = rng.standard_normal((3, 2, 960))
    centres, means, width = thinned(time, values, 160)
    assert (width, means.shape) == (6, (3, 2, 160))
    np.testing.assert_allclose(means.mean(-1), values.mean(-1))
    np.testing.assert_allclose(centres[:2], [2.5, 8.5])
    same = thinned(time[:50], values[..., :50], 160)
    np.testing.assert_array_equal(same[1], values[..., :50])
    _, means, width = thinned(time[:7], np.where(time[:7] < 4, np.nan, 1.0), 3)
    np.testing.assert_array_equal(means, [np.nan, 1, 1])


def test_one_repetition_claims_no_uncertainty(tmp_path):
    single = scores_of(results(repetitions=1, times=30, case=None), "3dvar", "etkf_24")
    text, page = page_of(single, tmp_path)
    assert all("±" not in cell["text"] for cell in page.column("scores", "RMSE"))
    assert "One repetition: its uncertainty is not known." in " ".join(page.text)
    assert sum(cell["bold"] for cell in page.column("scores", "RMSE")) == 1


def test_runs_still_to_be_made_are_counted(dataset, tmp_path):
    partial = scores_of(dataset, "etkf_24", "sda")
    for name, values in partial.data_vars.items():
        if {"method", "repetition"} <= set(values.dims):
            partial[name].loc[{"method": "sda", "repetition": [1, 2]}] = np.nan
    page = page_of(partial, tmp_path)[1]
    assert [cell["text"] for cell in page.column("scores", "Runs")] == ["3", "1 | 2 not run"]
    assert [cell["bold"] for cell in page.column("scores", "RMSE")] == [True, False]
    assert "2 runs are still to be made." in page.text


@pytest.mark.parametrize("case", ["line", "series", None])
def test_cases_of_any_dimension(case, tmp_path):
    data = few(results(times=30, case=case), "etkf_24")
    data = data.drop_vars(
        [n for n in data.data_vars if n not in ("rmse", "seconds") and "case" not in n]
    )
    text, page = page_of(data, tmp_path)
    assert ("One case" in page.text) == (case is not None)
    if case is not None:
        error = data["case_mean"][0] - data["case_truth"]
        assert f"RMSE {float(np.sqrt((error**2).mean())):.3g}" in text


def test_scores_alone_make_a_report(dataset, tmp_path):
    bare = few(dataset, "etkf_24", "sda")[["rmse"]].drop_attrs()
    bare = bare.drop_vars(["label", "kind", "tuned", "published", "parameters"])
    text, page = page_of(bare, tmp_path)
    assert [cell["value"] for cell in page.column("scores", "Method")] == ["etkf_24", "sda"]
    assert "<svg xmlns" not in text
    # What is there but NaN throughout is as good as absent.
    hollow = few(dataset, "etkf_24", "sda").copy(deep=True)
    for name in hollow.data_vars:
        if name not in ("rmse", "diverged", "finished"):
            hollow[name] = hollow[name] * np.nan
    assert page_of(hollow, tmp_path)[1].tables["scores"]


def test_same_results_same_file_and_no_identifier_twice(dataset, written, tmp_path):
    text, page = written
    one = few(dataset, "etkf_24")
    assert page_of(one, tmp_path)[0] == page_of(one, tmp_path)[0]
    assert len(page.ids) == len(set(page.ids))
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', text))
    assert used <= set(page.ids)


def test_the_file_stands_alone(written):
    text, page = written
    namespaces = {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert set(re.findall(r"https?://[^\s\"'<]+", text)) <= namespaces
    for name, attributes in page.tags:
        assert name not in ("iframe", "object", "embed", "base", "form")
        assert not any(key.startswith("on") for key in attributes)
        for key in ("src", "href", "xlink:href"):
            assert attributes.get(key, "#").startswith(("#", "data:")), attributes
    policy = next(a["content"] for n, a in page.tags if a.get("http-equiv"))
    digest = base64.b64encode(hashlib.sha256(page.script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy and "default-src 'none'" in policy


def test_figures_have_text_alternatives_with_their_numbers(dataset, written):
    text, page = written
    figures = [a for n, a in page.tags if n == "svg" and a.get("role") == "img"]
    assert len(figures) > 15
    for figure in figures:
        for part in figure["aria-labelledby"].split():
            assert part in page.ids
    rmse = float(dataset["rmse"].sel({"method": "sda"}).mean())
    assert f"Score-based (sda): {rmse:.4g} in" in text
    width = float(dataset["coverage"].sel({"method": "sda"}).isel(level=-1).mean())
    assert f"Score-based (sda): {width:.2f}" in text


def test_provenance_and_tuning_are_complete(dataset, written):
    text, page = written
    shown = " ".join(page.text)
    for key in ("commands", "notes"):
        for line in json.loads(dataset.attrs[key]):
            assert line in shown
    versions = {row[0]["text"]: row[1]["text"] for row in page.tables["versions"][1:]}
    assert versions == json.loads(dataset.attrs["versions"])
    assert [row[1]["text"] for row in page.tables["seeds"][1:]] == ["11", "12", "13"]
    tuned = [cell["text"] for cell in page.tables["tuning"][1]]
    assert tuned == ["ETKF N=24, tuned", "inflation = 1.01", "0.177", "2", "1", "200", "31.4"]
    parameters = [row[1]["text"] for row in page.tables["parameters-table"][1:]]
    assert parameters[1] == "members = 24 inflation = 1.02 rotation = yes"
    # Variants of one label are told apart, and marked.
    names = [cell["value"] for cell in page.column("scores", "Method")]
    assert names[1:3] == ["ETKF N=24, untuned", "ETKF N=24, tuned"]


def test_a_store_on_disk_is_read(dataset, tmp_path):
    small = scores_of(dataset, "etkf_24")
    for name in ("method", "label", "kind", "parameters"):
        small[name] = small[name].astype(object)
    small.to_zarr(tmp_path / "results.zarr", zarr_format=3, consolidated=False)
    first = report.write(tmp_path / "results.zarr", tmp_path / "a.html").read_text("utf-8")
    assert first == report.write(small, tmp_path / "b.html").read_text("utf-8")


def test_bad_input(dataset, tmp_path):
    out = tmp_path / "report.html"
    with pytest.raises(FileNotFoundError, match="no dataset"):
        report.write(tmp_path / "none.zarr", out)
    with pytest.raises(ValueError, match=r"\(method, repetition\).*run sda benchmark"):
        report.write(dataset[["rmse"]].isel(method=0, drop=True), out)
    with pytest.raises(ValueError, match="nothing to report: 0 methods"):
        report.write(dataset.isel(method=[]), out)
    with pytest.raises(ValueError, match="report.pdf"):
        report.write(dataset, tmp_path / "report.pdf")
    with pytest.raises(FileNotFoundError, match="no folder"):
        report.write(dataset, tmp_path / "none" / "report.html")
    assert not list(tmp_path.iterdir())
    out.write_text("mine")
    with pytest.raises(FileExistsError, match="overwrite"):
        report.write(dataset, out)
    assert out.read_text() == "mine"


def test_numerals():
    thin = "\N{NARROW NO-BREAK SPACE}"
    for value, digits, text in (
        (0.17754, 3, "0.178"),
        (-0.5, 2, "−0.50"),
        (12345.6, 1, f"12{thin}345.6"),
        (0.0, 2, "0.00"),
        (-0.0, 2, "0.00"),
        (0.0004, 2, "0.0004"),
        (-0.0004, 2, "−0.0004"),
        (np.nan, 2, "–"),
        (np.inf, 1, "∞"),
        (-np.inf, 1, "−∞"),
    ):
        assert number(value, digits) == text
    for value, text in (
        (812, "812"),
        (9999, f"9{thin}999"),
        (24_300, f"24.3{thin}k"),
        (4e6, f"4.00{thin}M"),
        (0.4131, "0.413"),
        (0, "0"),
        (np.nan, "–"),
    ):
        assert count(value) == text
    for value, text in ((0.034, "+3.4"), (-0.1, "−10.0"), (1e-6, "0.0"), (-1e-6, "0.0")):
        assert percent(value) == f"{text}{thin}%"
    assert [decimals([v]) for v in (0.18, 3.6, 120.0, 1e-9, 0.0)] == [3, 2, 0, 4, 0]


def test_the_invented_results_are_as_intended():
    assert len(NAMES) == results(times=5).sizes["method"] == 12
