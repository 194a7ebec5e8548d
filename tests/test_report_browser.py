"""The report in a real Chromium: drawn, sortable, quiet, offline, and fit for a phone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from quantlab.report import write, write_several, write_versus
from quantlab.versus import versus
from tests.report_runs import bare, demo, gpu, hostile
from tests.versus_runs import items, run, sweep

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        not (BROWSER and DRIVER),
        reason="no Chromium with chromedriver on this machine (Debian: apt-get install chromium chromium-driver)",
    ),
]

FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-dev-shm-usage", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--disable-default-apps", "--window-size=1280,900",
)  # fmt: skip


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("report")
    runs = {"demo": demo, "gpu": gpu, "hostile": hostile, "bare": bare}
    made = {name: write(make(), folder, name)["html"] for name, make in runs.items()}
    made["sweep"] = write(sweep(), folder, "sweep")["html"]
    worse = versus(run(30, 200.0), run(90, 150.0), {"fp8": {"facts": items(30)}}, {"fp8": {"facts": items(90)}})
    made["versus"] = write_versus(worse, folder, "versus")["html"]
    made["versus_hostile"] = write_versus(versus(demo(), hostile(), {}, {}), folder, "versus_hostile")["html"]
    several = [("one", demo()), ("two", gpu()), ("three", hostile())]
    made["several"] = write_several(several, folder / "several")["html"]
    return {name: path.as_uri() for name, path in made.items()}


@pytest.fixture(scope="module")
def chrome(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    selenium = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    options = selenium.ChromeOptions()
    options.binary_location = BROWSER
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chrome')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    driver = selenium.Chrome(options=options, service=selenium.ChromeService(DRIVER))
    driver.get("data:,")  # away from Chromium's own first page, whose requests are not the report's
    driver.get_log("performance")
    yield driver
    driver.quit()


@pytest.fixture
def show(chrome: Any, pages: dict[str, str]) -> Iterator[Any]:
    """Open a page at a width and scheme; afterwards the console was silent and nothing was asked of any network."""
    seen: list[str] = []

    def open_page(name: str, width: int = 1280, scheme: str = "light") -> Any:
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        chrome.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        chrome.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "screen", "features": features})
        chrome.get(pages[name])
        seen.append(pages[name])
        return chrome

    yield open_page
    assert chrome.get_log("browser") == []
    asked = [json.loads(entry["message"])["message"] for entry in chrome.get_log("performance")]
    urls = {each["params"]["request"]["url"] for each in asked if each["method"] == "Network.requestWillBeSent"}
    assert urls
    assert {url for url in urls if not url.startswith("data:")} <= set(seen)


EVERY = ["demo", "gpu", "hostile", "bare", "sweep", "versus", "versus_hostile", "several"]


@pytest.mark.parametrize("name", EVERY)
def test_the_page_never_scrolls_sideways(show: Any, name: str) -> None:
    page = show(name, 360)
    page.execute_script("document.querySelectorAll('details').forEach((each) => { each.open = true; });")
    for width in (360, 390, 768, 1280):
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        inner, client, scroll = page.execute_script(
            "const root = document.documentElement; return [innerWidth, root.clientWidth, root.scrollWidth]"
        )
        assert inner == width
        assert scroll == client


def test_the_charts_are_drawn(show: Any) -> None:
    page = show("gpu")
    visible = ".filter((mark) => mark.getBoundingClientRect().width > 4).length"
    assert (
        page.execute_script(f"return [...document.querySelectorAll('#tradeoff .point .mark')]{visible}") == 6
    )  # three recipes against size and, one cell at a time, against speed
    inside = """return [...document.querySelectorAll('.point .mark')].every((mark) => {
        const box = mark.getBoundingClientRect(), panel = mark.closest('svg.panel').getBoundingClientRect();
        const across = box.left >= panel.left - 8 && box.right <= panel.right + 8;
        return box.width === 0 || (across && box.top >= panel.top - 8);
    })"""
    assert page.execute_script(inside)
    assert page.execute_script("return document.querySelectorAll('.forest .track .mark').length") > 10


def test_the_speed_chart_changes_its_cell(show: Any) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.select import Select

    page = show("gpu")
    shown = ".filter((title) => title.getClientRects().length).map((title) => title.textContent)"
    titles = f"return [...document.querySelectorAll('.switch .title')]{shown}"
    assert page.execute_script(titles) == ["tokens/s, 512 in, 32 out, batch 4"]
    Select(page.find_element(By.CSS_SELECTOR, "[data-switch]")).select_by_index(0)
    assert page.execute_script(titles) == ["tokens/s, 128 in, 32 out, batch 1"]


def test_hover_and_focus_show_the_numbers(show: Any) -> None:
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    page = show("demo")
    tip = page.find_element(By.ID, "tip")
    assert not tip.is_displayed()
    mark = page.find_element(By.CSS_SELECTOR, ".point.s2 .mark")
    page.execute_script("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", mark)
    ActionChains(page).move_to_element(mark).perform()
    assert tip.is_displayed()
    for words in ("int4_awq (emulated)", "verdict: regression", "-5.3 [-6.9, -3.7] points", "113 MB"):
        assert words in tip.text.replace("−", "-")
    box = page.execute_script("const b = arguments[0].getBoundingClientRect(); return [b.left, b.right, b.top]", tip)
    assert box[0] >= 0
    assert box[1] <= 1280
    ActionChains(page).move_to_element(page.find_element(By.ID, "tradeoff-h")).perform()
    assert not tip.is_displayed()
    page.execute_script("document.querySelector('.point.s1').focus({preventScroll: true})")
    assert "fp8" in tip.text
    ActionChains(page).send_keys(Keys.ESCAPE).perform()
    assert not tip.is_displayed()


def test_tables_sort_by_value_with_the_keyboard(show: Any) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    page = show("demo")
    header = page.find_element(By.XPATH, "//table[@id='task-table']//th[contains(., 'difference')]")
    column = page.execute_script("return arguments[0].cellIndex", header)
    read = f"return [...document.querySelectorAll('#task-table tbody tr')].map((r) => r.cells[{column}].dataset.sort)"
    for wanted in ("descending", "ascending"):
        header.find_element(By.TAG_NAME, "button").send_keys(Keys.ENTER)
        assert header.get_attribute("aria-sort") == wanted
        shown = page.execute_script(read)
        values = [float(value) for value in shown if value]
        assert values == sorted(values, reverse=wanted == "descending")
        assert shown[-1] == ""  # what is not comparable stays last
        assert len(values) == len(shown) - 1


def test_flips_are_searched_and_filtered(show: Any) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.select import Select

    page = show("demo")
    box = page.find_element(By.CSS_SELECTOR, "#flips .browser")
    visible = """return [...arguments[0].querySelectorAll('li')]
        .filter((li) => li.checkVisibility()).map((li) => li.textContent)"""
    said = box.find_element(By.TAG_NAME, "output")
    assert len(page.execute_script(visible, box)) == 18
    Select(box.find_element(By.CSS_SELECTOR, "[data-choose=task]")).select_by_visible_text("facts")
    Select(box.find_element(By.CSS_SELECTOR, "[data-choose=direction]")).select_by_visible_text("worse")
    left = page.execute_script(visible, box)
    assert 0 < len(left) < 5
    assert all("facts" in text and "worse" in text for text in left)
    assert said.text == f"{len(left)} of 18"
    Select(box.find_element(By.CSS_SELECTOR, "[data-choose=task]")).select_by_index(0)
    Select(box.find_element(By.CSS_SELECTOR, "[data-choose=direction]")).select_by_index(0)
    assert said.text == ""
    box.find_element(By.CSS_SELECTOR, "[data-search]").send_keys("TUNGSTEN ti")
    left = page.execute_script(visible, box)
    assert 0 < len(left) < 18
    assert all("tungsten" in text and "Ti" in text for text in left)


def test_flips_are_walked_with_the_keyboard(show: Any) -> None:
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.keys import Keys

    page = show("demo")
    keys = lambda *pressed: ActionChains(page).send_keys(*pressed).perform()  # noqa: E731
    active = "return [...document.querySelectorAll('.browser[open] li')].indexOf(document.activeElement.closest('li'))"
    opened = "return document.activeElement.closest('details').open"
    keys("/")
    assert page.execute_script("return document.activeElement.type") == "search"
    keys("agreement", Keys.ARROW_DOWN)
    first = page.execute_script(active)
    assert first >= 0
    assert page.execute_script("return getComputedStyle(document.activeElement).outlineStyle") == "solid"
    keys(Keys.ARROW_DOWN)
    assert page.execute_script(active) > first + 1  # items that the search hides are stepped over
    assert not page.execute_script(opened)
    keys(Keys.ENTER)
    assert page.execute_script(opened)
    keys(Keys.HOME)
    assert page.execute_script(active) == first
    keys("/", Keys.ESCAPE)
    assert page.execute_script("return document.activeElement.value") == ""


def test_categories_say_which_are_sure(show: Any) -> None:
    page = show("demo")
    rows = "return [...document.querySelectorAll('#categories-h ~ details tbody tr')].map((row) => row.innerText)"
    found = page.execute_script(rows)
    assert len(found) == 3
    assert "geography" in found[0]
    assert "yes" in found[0]
    assert all("no" in row.split() for row in found[1:])


def test_load_and_crossover_are_drawn_with_their_numbers(show: Any) -> None:
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.by import By

    page = show("sweep")
    figures = page.find_elements(By.CSS_SELECTOR, ".answer-charts figure")
    assert len(figures) == 2
    marks = [len(each.find_elements(By.CSS_SELECTOR, ".point")) for each in figures]
    assert marks == [8, 8]  # three recipes at three batches, one cell of which is invalid
    assert "fp8, batch 4: two sequences fell apart" in figures[0].text
    assert "bf16 is ahead" not in figures[1].text
    assert "int4_awq is ahead at batch 4, fp8 at batch 64" not in figures[1].text  # not neighbours that both have
    assert "int4_awq is ahead at batch 1, fp8 at batch 64" in figures[1].text
    point = figures[0].find_element(By.CSS_SELECTOR, ".point.s2 .mark")
    page.execute_script("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", point)
    ActionChains(page).move_to_element(point).perform()
    assert "int4_awq, batch 1" in page.find_element(By.ID, "tip").text
    inside = """return [...document.querySelectorAll('.answer-charts .point .mark')].every((mark) => {
        const box = mark.getBoundingClientRect(), panel = mark.closest('svg.panel').getBoundingClientRect();
        return box.width > 4 && box.left >= panel.left && box.right <= panel.right && box.top >= panel.top;
    })"""
    assert page.execute_script(inside)


def test_run_against_run_says_what_got_worse(show: Any) -> None:
    page = show("versus", 390)
    card = page.execute_script("return document.querySelector('.card.regression').innerText")
    assert "fp8" in card
    assert "10.0 points" in card.replace("−", "-")
    slower = "return [...document.querySelectorAll('#speed .slower')].filter((each) => each.checkVisibility()).length"
    assert page.execute_script(slower) > 0


def test_several_runs_are_filtered_and_lead_to_their_pages(show: Any, chrome: Any) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.select import Select

    page = show("several")
    rows = "return [...document.querySelectorAll('#run-table tbody tr')].filter((row) => !row.hidden).length"
    assert page.execute_script(rows) == 15
    Select(page.find_element(By.CSS_SELECTOR, "[data-filter=recipe]")).select_by_visible_text("fp8")
    assert page.execute_script(rows) == 2
    assert page.find_element(By.CSS_SELECTOR, ".filterable output").text == "2 of 15"
    links = page.execute_script("return [...document.querySelectorAll('#run-table a')].map((a) => a.href)")
    assert all(Path(link.removeprefix("file://")).is_file() for link in links)
    assert {Path(link).name for link in links} == {"one.html", "two.html", "three.html"}


@pytest.mark.parametrize("name", ["hostile", "versus_hostile", "several"])
def test_hostile_markup_runs_nowhere(show: Any, name: str) -> None:
    page = show(name)
    assert page.execute_script("return window.pwned") is None
    assert page.execute_script("return document.querySelectorAll('img, main script').length") == 0


def test_hostile_markup_is_inert(show: Any) -> None:
    page = show("hostile")
    assert page.execute_script("return window.pwned") is None
    assert page.execute_script("return document.querySelectorAll('img, main script').length") == 0
    assert "<script>window.pwned=1</script>" in page.execute_script("return document.querySelector('h1').textContent")


def test_the_policy_stops_what_would_slip_through(chrome: Any, pages: dict[str, str], tmp_path: Path) -> None:
    source = Path(pages["demo"].removeprefix("file://")).read_text("utf-8")
    attack = "<script>window.pwned=1</script><img src='https://example.invalid/x.png' onerror='window.pwned=2'>"
    (tmp_path / "attacked.html").write_text(source.replace("<main>", "<main>" + attack), "utf-8")
    chrome.get((tmp_path / "attacked.html").as_uri())
    assert chrome.execute_script("return window.pwned") is None
    assert chrome.execute_script("return document.documentElement.className") == "js"  # the page's own script still ran
    refused = [entry["message"] for entry in chrome.get_log("browser")]
    assert len(refused) >= 2
    assert all("Content Security Policy" in message for message in refused)
    chrome.get_log("performance")


CONTRAST = """
const linear = (x) => x <= 0.04045 * 255 ? x / 255 / 12.92 : ((x / 255 + 0.055) / 1.055) ** 2.4;
const luminance = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
const parse = (text) => (text.match(/[\\d.]+/g) || []).map(Number);
const behind = (start) => {
  for (let each = start; each; each = each.parentElement) {
    const colour = parse(getComputedStyle(each).backgroundColor);
    if (colour.length === 3 || colour[3] === 1) return colour;
  }
  return [255, 255, 255];
};
const low = [];
for (const each of document.querySelectorAll("body *")) {
  const texts = [...each.childNodes].filter((node) => node.nodeType === 3);
  const words = texts.map((node) => node.textContent.trim()).join("");
  if (!words || !each.getClientRects().length) continue;
  const drawn = each instanceof SVGElement, style = getComputedStyle(each);
  const a = luminance(parse(drawn ? style.fill : style.color));
  const b = luminance(behind(drawn ? each.closest("figure") : each));
  const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  if (ratio < 4.5) low.push(`${each.tagName} ${ratio.toFixed(2)} ${words.slice(0, 30)}`);
}
return low;
"""


@pytest.mark.parametrize("name", ["demo", "sweep", "versus", "several"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast_is_aa(show: Any, scheme: str, name: str) -> None:
    page = show(name, scheme=scheme)
    page.execute_script("document.querySelectorAll('details').forEach((each) => { each.open = true; });")
    dark = page.execute_script("return getComputedStyle(document.body).backgroundColor") == "rgb(18, 21, 26)"
    assert dark == (scheme == "dark")
    assert page.execute_script(CONTRAST) == []


def test_focus_is_visible_and_everything_is_reachable(show: Any) -> None:
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.keys import Keys

    page = show("demo")
    ActionChains(page).send_keys(Keys.TAB).perform()
    assert page.execute_script("return document.activeElement.className") == "skip"
    outline = "return getComputedStyle(document.activeElement).outlineStyle"
    assert page.execute_script(outline) == "solid"
    ActionChains(page).send_keys(*[Keys.TAB] * 14).perform()
    assert page.execute_script("return document.activeElement.className") == "sort"
    assert page.execute_script(outline) == "solid"


def test_printing_opens_what_is_closed(show: Any) -> None:
    page = show("demo")
    page.execute_cdp_cmd("Page.printToPDF", {})
    shut = "return document.querySelectorAll('details:not([open])').length"
    assert page.execute_script(shut) > 0  # closed again afterwards
    page.execute_script("dispatchEvent(new Event('beforeprint'))")
    assert page.execute_script(shut) == 0


def test_the_command_is_copied_or_selected(show: Any) -> None:
    from selenium.webdriver.common.by import By

    page = show("demo")
    button = page.find_element(By.CSS_SELECTOR, "[data-copy]")
    page.execute_script("arguments[0].scrollIntoView({behavior: 'instant'}); arguments[0].click()", button)
    said = page.execute_async_script(
        "const done = arguments[0]; setTimeout(() => done(document.querySelector('[data-copy]').textContent), 300)"
    )
    assert said == "Copied" or page.execute_script("return String(getSelection())").startswith("quantlab run")
