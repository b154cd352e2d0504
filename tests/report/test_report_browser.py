"""The report in a real browser: what a reader sees and does.

Skipped where there is no Chromium with its driver; `.ci/run` installs both.
"""

import base64
import io
import json
import re
import shutil

import numpy as np
import pytest
from invented import results
from PIL import Image

from sda import report

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="neither Chromium nor its driver is installed"
)

ATTACKS = (
    "<script>window.hacked=1</script>",
    "\"'><img src=x onerror=window.hacked=1>",
    "--></script><svg onload=window.hacked=1>",
    "]]>$title ${style} $x^2$ &lt;b&gt; {0}",
)
FLAGS = (
    "headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-sync",
    "disable-background-networking", "disable-component-update", "disable-dev-shm-usage",
)  # fmt: skip


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in FLAGS:
        options.add_argument(f"--{flag}")
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('profile')}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.set_page_load_timeout(120)
    driver.set_script_timeout(60)
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A report of five methods, two of whose labels and all of whose texts are hostile."""

    names = ["3dvar", "etkf_24", "etkf_24_tuned", "pf", "sda"]
    data = results(times=60).sel({"method": names})
    labels = [ATTACKS[0], "ETKF N=24", "ETKF N=24", "Particle filter N=4000", ATTACKS[1]]
    data = data.assign_coords(label=("method", labels), kind=("method", [ATTACKS[2]] * 5))
    parameters = [json.dumps({ATTACKS[0]: ATTACKS[1]})] * 4 + [ATTACKS[2]]
    data = data.assign_coords(parameters=("method", parameters))
    data.attrs |= {
        "title": f"Lorenz-96 {ATTACKS[2]}",
        "notes": json.dumps(list(ATTACKS)),
        "commands": json.dumps(list(ATTACKS)),
        "machine": json.dumps({ATTACKS[1]: ATTACKS[0]}),
        "versions": ATTACKS[3],
        "experiment": ATTACKS[2],
    }
    data["case_truth"].attrs["long_name"] = ATTACKS[0]
    return report.write(data, tmp_path_factory.mktemp("report") / "report.html")


@pytest.fixture
def page(browser, path):
    """The report, opened anew on a desktop."""

    size(browser, 1200)
    browser.get(path.as_uri())
    return browser


def size(browser, width, height=800):
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def values(page, table, title):
    """What the cells of a column sort by, as numbers, from top to bottom; None where missing."""

    return page.execute_script(
        """
        const table = document.querySelector(`[aria-labelledby="${arguments[0]}-caption"] table`);
        const heads = [...table.tHead.rows[0].cells];
        const k = heads.findIndex((head) => head.textContent === arguments[1]);
        return [...table.tBodies[0].rows].map((row) => row.cells[k].dataset.value ?? null);
        """,
        table,
        title,
    )


def head(page, table, title):
    return page.find_element(
        "xpath", f'//table[@aria-labelledby="{table}-caption"]//th[.="{title}"]'
    )


def test_renders_without_an_error_or_a_request(page):
    page.get_log("browser"), page.get_log("performance")
    page.refresh()
    assert page.find_element("tag name", "h1").text == f"Lorenz-96 {ATTACKS[2]}"
    assert page.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in page.get_log("performance")]
    requests = [e["params"]["request"]["url"] for e in events if e["method"].endswith("WillBeSent")]
    assert requests
    assert {url.partition(":")[0] for url in requests} <= {"file", "data"}


def test_what_results_hold_is_text(page):
    assert page.execute_script("return typeof window.hacked") == "undefined"
    assert page.execute_script("return document.scripts.length") == 1
    assert page.find_elements("css selector", "main script, main img, main [onload]") == []
    names = values(page, "scores", "Method")
    assert names[0] == ATTACKS[0] and names[4] == ATTACKS[1]
    shown = page.find_element("tag name", "body").text
    for attack in ATTACKS:
        assert attack in shown
    # The page would not run such a script even if one got past the escaping.
    page.execute_script(
        "const s = document.createElement('script'); s.textContent = 'window.hacked = 1';"
        "document.body.append(s);"
    )
    assert page.execute_script("return typeof window.hacked") == "undefined"
    assert "Content Security Policy" in page.get_log("browser")[0]["message"]


@pytest.mark.parametrize("title", ["RMSE", "Published", "Difference", "Spread", "Runs"])
def test_tables_sort_by_number_in_both_directions(page, title):
    before = values(page, "scores", title)
    numbers = sorted(float(v) for v in before if v is not None)
    missing = [v for v in before if v is None]
    # As texts, these would sort otherwise: nothing is shown if all orders agree.
    header = head(page, "scores", title)
    assert header.get_attribute("aria-sort") == "none"
    for state, order in (("ascending", 1), ("descending", -1), ("ascending", 1)):
        header.find_element("tag name", "button").click()
        assert header.get_attribute("aria-sort") == state
        after = values(page, "scores", title)
        assert [float(v) for v in after if v is not None] == numbers[::order]
        # What is missing comes last, whatever the direction.
        assert after[len(numbers) :] == missing
    others = page.find_elements("css selector", "th[aria-sort=ascending], th[aria-sort=descending]")
    assert len(others) == 1


def test_wall_times_sort_as_numbers_not_as_texts(page):
    times = values(page, "costs", "Wall time [s]")
    assert sorted(times) != sorted(times, key=float)
    head(page, "costs", "Wall time [s]").find_element("tag name", "button").click()
    assert values(page, "costs", "Wall time [s]") == sorted(times, key=float)


def test_tables_sort_from_the_keyboard(page):
    button = head(page, "scores", "Method").find_element("tag name", "button")
    before = values(page, "scores", "Method")
    page.execute_script("arguments[0].focus()", button)
    assert page.switch_to.active_element == button
    for key, state in (("\ue007", "ascending"), (" ", "descending")):
        button.send_keys(key)
        assert head(page, "scores", "Method").get_attribute("aria-sort") == state
    after = values(page, "scores", "Method")
    assert sorted(after) == sorted(before) and after != before


@pytest.mark.parametrize("width", [320, 375, 768, 1200])
def test_nothing_is_wider_than_the_screen(page, width):
    size(page, width)
    assert page.execute_script("return document.documentElement.scrollWidth") <= width
    wide = page.execute_script(
        """
        const out = [];
        for (const part of document.querySelectorAll("h1, h2, p, figure, svg[role=img], pre")) {
          const box = part.getBoundingClientRect();
          if (box.right > innerWidth + 1 || box.left < -1) out.push(part.outerHTML.slice(0, 80));
        }
        return out;
        """
    )
    assert wide == []
    if width == 375:
        scroll = (
            "const d = document.querySelector('.scroll'); return [d.scrollWidth, d.clientWidth]"
        )
        inner, outer = page.execute_script(scroll)
        assert inner > outer, "a wide table scrolls by itself"


def test_figures_are_there_and_not_empty(page):
    found = page.execute_script(
        """
        return [...document.querySelectorAll("svg[role=img]")].map((svg) => {
          const box = svg.getBoundingClientRect();
          const drawn = [...svg.querySelectorAll("path, image, use")].filter((part) => {
            const b = part.getBoundingClientRect();
            return b.width + b.height > 0;
          });
          return [svg.querySelector("title").textContent, box.width, box.height, drawn.length];
        });
        """
    )
    assert len(found) > 20
    for title, width, height, parts in found:
        assert width > 100 and height > 20 and parts > 1, title
    # Maps are pictures inside: they decode, and have the size of the field.
    sizes = page.execute_async_script(
        """
        const done = arguments[arguments.length - 1];
        const links = [...document.querySelectorAll(".maps svg image")].map(
          (image) => image.getAttribute("xlink:href") ?? image.getAttribute("href"));
        Promise.all(links.map(async (link) => {
          const image = new Image();
          image.src = link;
          await image.decode();
          return [image.naturalWidth, image.naturalHeight];
        })).then(done, (error) => done(String(error)));
        """
    )
    # Truth, observations, five means and four spreads, beside two colour bars.
    assert sizes.count([32, 32]) == 2 + 5 + 4, sizes


def test_figures_show_colours(page):
    seen = []
    for figure in page.find_elements("css selector", "#cost svg[role=img], #case svg[role=img]"):
        image = Image.open(io.BytesIO(figure.screenshot_as_png)).convert("RGB")
        seen.append(len(np.unique(np.asarray(image).reshape(-1, 3), axis=0)))
    assert min(seen) > 20, seen


def test_the_legend_hides_a_method_everywhere(page):
    def shown():
        return page.execute_script(
            'return [...document.querySelectorAll(\'.figures .wide [data-method="3"],'
            '.figures .panels [data-method="3"], .figures .maps [data-method="3"]\')]'
            ".filter((part) => getComputedStyle(part).display !== 'none').length"
        )

    button = page.find_element("css selector", '.legend button[data-method="3"]')
    before = shown()
    assert before > 10
    page.execute_script("arguments[0].click()", button)
    assert (shown(), button.get_attribute("aria-pressed")) == (0, "false")
    page.execute_script("arguments[0].click()", button)
    assert (shown(), button.get_attribute("aria-pressed")) == (before, "true")


def test_a_saved_figure_is_whole(page):
    text = page.execute_async_script(
        """
        const done = arguments[0];
        URL.createObjectURL = (blob) => { blob.text().then(done); return "#"; };
        document.querySelector("#cost button.save").click();
        """
    )
    errors = page.execute_script(
        "return new DOMParser().parseFromString(arguments[0], 'image/svg+xml')"
        ".querySelectorAll('parsererror').length",
        text,
    )
    assert errors == 0 and 'color="black"' in text and "<path" in text


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_and_figures_stand_out(page, scheme):
    feature = {"name": "prefers-color-scheme", "value": scheme}
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    colours = page.execute_script(
        """
        const of = (query, key) => getComputedStyle(document.querySelector(query))[key];
        const ink = document.querySelector('svg [style*="currentColor"]');
        return [of("body", "backgroundColor"), of("body", "color"), of(".caption", "color"),
                of("a", "color"), of(".lost", "color"),
                getComputedStyle(ink).stroke.startsWith("rgb") ? getComputedStyle(ink).stroke
                                                               : getComputedStyle(ink).fill];
        """
    )
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    paper, *inks = (luminance(colour) for colour in colours)
    assert (paper > 0.5) == (scheme == "light")
    for ink in inks:
        light, dark = max(paper, ink), min(paper, ink)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, colours


def luminance(colour):
    """The relative luminance of WCAG."""

    c = np.array([float(v) for v in re.findall(r"[\d.]+", colour)[:3]]) / 255
    linear = np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def test_prints(page):
    answer = page.execute_cdp_cmd("Page.printToPDF", {"paperWidth": 8.27, "paperHeight": 11.69})
    pdf = base64.b64decode(answer["data"])
    assert pdf.startswith(b"%PDF")
    pages = len(re.findall(rb"/Type\s*/Page\b", pdf))
    assert 3 <= pages <= 15
    # On paper there is nothing to click.
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    hidden = page.execute_script(
        "return [...document.querySelectorAll('nav, .legend, .save')]"
        ".every((part) => getComputedStyle(part).display === 'none')"
    )
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    assert hidden
