"""The page: sections of tables and figures in one HTML file that needs nothing else.

The page forbids itself the network and every script but its own (a Content-Security-Policy with the
hash of that script), so that nothing which results hold can run, should it ever get past the
escaping.
"""

import base64
import hashlib
import importlib.resources
from collections.abc import Sequence
from string import Template
from typing import Any

import numpy as np
import yaml

from . import calibration, figures, settings, summary
from .axes import Drawing
from .case import Group, case
from .markup import Markup, escape, join, tag
from .numerals import number, percent
from .results import Results, clean
from .statistics import SCORES, best, estimate, relative
from .svg import swatch


def page(results: Results) -> str:
    """The whole page."""

    title = clean(results.attribute("title")) or "Benchmark"
    sections = [
        ("scores", "Scores", scored(results)),
        ("cost", "Cost", costs(results)),
        ("time", "In time", in_time(results)),
        ("calibration", "Calibration", calibrated(results)),
        ("spectra", "Spectra", wide(figures.spectra(results))),
        ("case", "One case", one_case(results)),
        ("parameters", "Parameters", parameters(results)),
        ("notes", "Notes", notes(results)),
        ("provenance", "Commands and versions", provenance(results)),
    ]
    sections = [section for section in sections if section[2]]
    links = [tag("li", tag("a", heading, href=f"#{key}")) for key, heading, _ in sections]
    drawn = {"cost", "time", "calibration", "spectra", "case"}
    parts: list[Markup] = []
    for key, heading, content in sections:
        parts.append(
            tag(
                "section",
                tag("h2", heading),
                content,
                id=key,
                class_="figures" if key in drawn else None,
            )
        )
    first = next((k for k, (key, _, _) in enumerate(sections) if key in drawn), None)
    if first is not None:
        last = max(k for k, (key, _, _) in enumerate(sections) if key in drawn)
        inner = tag("div", legend(results), *parts[first : last + 1])
        parts[first : last + 1] = [inner]
    body = join(
        [
            tag(
                "header",
                tag("h1", title),
                glance(results),
                tag("nav", tag("ul", *links), aria_label="Sections"),
            ),
            tag("main", *parts),
        ],
        "\n",
    )
    script = resource("report.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; "
        f"img-src data:; base-uri 'none'; form-action 'none'"
    )

    return Template(resource("report.html")).substitute(
        title=escape(title),
        policy=escape(policy),
        style=resource("report.css"),
        script=script,
        body=body,
    )


def resource(name: str) -> str:
    """A file that is shipped beside this module."""

    return importlib.resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def glance(results: Results) -> Markup:
    """The findings in a few lines, each of which the tables bear out."""

    items: list[object] = []
    values = results.values(results.score)
    title = figures.TITLES.get(results.score, results.score)
    methods = results.methods
    if values is not None:
        goal = next((s.goal for s in SCORES if s.name == results.score), -np.inf)
        chosen = np.flatnonzero(best(values, goal, summary.eligible(results)))
        known = [estimate(row) for row in values]
        digits = summary.column_digits(known)
        order = sorted(chosen, key=lambda i: known[i].mean)
        names = [f"{methods[i].label} ({number(known[i].mean, digits)})" for i in order]
        if len(names) > 1:
            items.append(f"Best {title}, not to be told apart: {', '.join(names)}.")
        elif names:
            items.append(f"Best {title}: {names[0]}.")
        compared = [
            (method, relative(known[method.index], method.published)[0])
            for method in methods
            if np.isfinite(method.published) and method.published and known[method.index].n
        ]
        if compared:
            near = sum(abs(share) <= 0.1 for _, share in compared)
            worst = max(compared, key=lambda pair: abs(pair[1]))
            items.append(
                f"{near} of {len(compared)} published scores are met within 10 %; the largest "
                f"difference is {percent(worst[1])} ({worst[0].label})."
            )
            experiment = results.attribute("experiment")
            if isinstance(experiment, dict) and experiment.get("source"):
                items.append(f"Published scores: {experiment['source']}.")
    if lost := int(results.diverged.sum()):
        names = [m.label for m in methods if results.diverged[m.index].any()]
        items.append(
            tag(
                "span",
                f"{lost} of {int(results.ran.sum())} runs diverged and enter no mean: "
                f"{', '.join(names)}.",
                class_="lost",
            )
        )
    if missing := int((~results.ran).sum()):
        items.append(f"{missing} runs are still to be made.")
    items.insert(
        0,
        f"{len(methods)} methods, {results.repetitions} "
        f"{'repetition' if results.repetitions == 1 else 'repetitions'}, the same truths and "
        f"observations for all.",
    )

    return tag("ul", *(tag("li", item) for item in items), class_="glance")


def scored(results: Results) -> Markup:
    """The tables of scores and of the runs that diverged."""

    each = summary.by_variable(results)
    parts = [summary.scores(results), summary.divergences(results) or ""]
    if each:
        parts += [tag("h3", "By variable"), each]

    return join(parts)


def costs(results: Results) -> Markup | None:
    """Accuracy against cost, and the table of costs."""

    parts = [part for part in (wide(figures.cost(results)), summary.costs(results)) if part]

    return join(parts) if parts else None


def in_time(results: Results) -> Markup | None:
    """RMSE and spread in time."""

    drawn = wide(figures.in_time(results))
    each = panels(calibration.spread_skill(results))
    parts = [drawn] if drawn else []
    if each:
        words = "RMSE of the ensemble mean and spread; on top of each other if calibrated."
        parts += [tag("h3", "RMSE and spread of each method"), tag("p", words), each]

    return join(parts) if parts else None


def calibrated(results: Results) -> Markup | None:
    """Coverage and ranks."""

    parts = []
    if covered := wide(calibration.coverage(results)):
        parts.append(covered)
    if ranked := panels(calibration.ranks(results)):
        bands = ""
        if results.repetitions > 1:
            bands = (
                " Vertical lines: smallest to largest of the repetitions; grey: where the mean of "
                "a flat histogram would be (95 %), judged by how far repetitions differ."
            )
        words = (
            "Relative frequency of the truth's rank among the members: flat, at the dashed line, "
            "if calibrated; a cup if the ensemble is too narrow, a hill if it is too wide, a slope "
            f"if it is biased.{bands}"
        )
        parts += [tag("h3", "Rank histograms"), tag("p", words), ranked]

    return join(parts) if parts else None


def one_case(results: Results) -> Markup | None:
    """Truth, observations, mean and spread."""

    parts: list[object] = []
    dims: set[str] = set()
    for name, groups in case(results):
        dims = {str(dim) for dim in results.dataset["case_truth"].dims} - {"case_variable"}
        if name:
            parts.append(tag("h3", name))
        parts.append(
            maps(groups)
            if len(dims) > 1
            else panels([d for g in groups for d in g.drawings], "panels large")
        )
    if not parts:
        return None
    when = results.dataset.get("case_time")
    words = "The first repetition"
    if when is not None and when.size == 1 and np.isfinite(float(when)):
        words += f", at time {float(when):g}"
    words += (
        ": the means share the colours of the truth, the spreads have one scale of their own."
        if len(dims) > 1
        else ": truth, observations, and the mean of each method with a band of twice its spread."
    )

    return join([tag("p", words), *parts])


def wide(drawings: Sequence[Drawing]) -> Markup | None:
    """Figures with captions, beside each other where there is room."""

    if not drawings:
        return None
    parts = []
    for drawing in drawings:
        name = drawing.title.lower().replace(" ", "-")
        save = tag("button", "Save SVG", type="button", class_="save", data_name=name)
        caption = tag("figcaption", drawing.caption, " ", save)
        parts.append(tag("figure", tag("h3", drawing.title), drawing.svg, caption))

    return tag("div", *parts, class_="wide")


def panels(drawings: Sequence[Drawing], class_: str = "panels") -> Markup | None:
    """Small figures side by side."""

    if not drawings:
        return None
    parts = [
        tag("figure", tag("h4", d.title), d.svg, data_method=d.method.index if d.method else None)
        for d in drawings
    ]

    return tag("div", *parts, class_=class_)


def maps(groups: Sequence[Group]) -> Markup:
    """Maps, those of a method side by side."""

    parts = []
    for group in groups:
        drawn = [tag("figure", d.svg, tag("figcaption", d.title)) for d in group.drawings]
        method = group.method.index if group.method else None
        parts.append(tag("div", tag("h4", group.title), *drawn, class_="pair", data_method=method))

    return tag("div", *parts, class_="maps")


def legend(results: Results) -> Markup:
    """The legend of all figures: a button for each method, which hides it."""

    buttons = [
        tag(
            "button",
            swatch(method),
            method.label,
            type="button",
            aria_pressed="true",
            data_method=method.index,
        )
        for method in results.methods
    ]

    return tag("div", *buttons, class_="legend", role="group", aria_label="Methods shown")


def notes(results: Results) -> Markup | None:
    """The notes of the experiment."""

    if not (lines := listed(results.attribute("notes"))):
        return None

    return tag("ul", *(tag("li", line) for line in lines))


def parameters(results: Results) -> Markup | None:
    """The parameters of the methods, and how they were tuned."""

    parts = [part for part in (settings.parameters(results), settings.tuning(results)) if part]

    return join(parts) if parts else None


def provenance(results: Results) -> Markup | None:
    """What it takes to make the results again: commands, seeds, machine, versions, experiment."""

    parts: list[Markup] = []
    if commands := listed(results.attribute("commands")):
        parts += [tag("h3", "Commands"), tag("pre", "\n".join(commands))]
    if (seeds := results.attribute("seeds")) is not None:
        parts += [tag("h3", "Seeds"), settings.seeds(seeds)]
    for name, title in (("machine", "Machine"), ("versions", "Versions")):
        value = results.attribute(name)
        if isinstance(value, dict) and value:
            words = f"{title}, as recorded by the runs."
            parts += [tag("h3", title), settings.pairs(name, words, value)]
        elif value:
            parts += [tag("h3", title), tag("p", value)]
    if (experiment := results.attribute("experiment")) is not None:
        # As a configuration has it, so that it can be written into one.
        text = (
            experiment
            if isinstance(experiment, str)
            else yaml.safe_dump(experiment, sort_keys=False, default_flow_style=None, width=96)
        )
        parts += [tag("h3", "Experiment"), tag("pre", text)]

    return join(parts) if parts else None


def listed(value: Any) -> list[str]:
    """A list of texts from a list, or from one text."""

    if value is None or value == "":
        return []

    return [str(item) for item in value] if isinstance(value, list | tuple) else [str(value)]
