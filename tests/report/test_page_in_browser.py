"""report.html in a real browser, as a user opens it: from the disk, in Chromium without a window."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mlm_jax.report.page import page
from mlm_jax.report.state import read_sweep
from tests.report.sweeps import LOSSES, write_plan, write_sweep

pytestmark = pytest.mark.browser

# Each would break the page, or run, if it were put into it as it is.
HOSTILE = "</script><script>alert('hostile')</script><b>{{data}}"


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    chromedriver = shutil.which("chromedriver")
    if browser is None or chromedriver is None:
        pytest.skip("no chromium with its chromedriver: apt-get install chromium chromium-driver")
    webdriver = pytest.importorskip("selenium.webdriver", reason="no selenium: pip install -e '.[browser]'")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1280,1000"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(executable_path=chromedriver))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def sweep_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    losses = LOSSES | {"failing": {0: 2.3, 1: None}}
    return write_sweep(tmp_path_factory.mktemp("sweep"), losses, description=f"About {HOSTILE}")


@pytest.fixture
def opened(chromium: Any, sweep_folder: Path) -> Iterator[Any]:
    """The driver with the page open; after the test, nothing was wrong and nothing was fetched."""
    file = sweep_folder / "report.html"
    file.write_text(page(read_sweep(sweep_folder)))
    chromium.get_log("performance")
    chromium.get(file.as_uri())
    yield chromium
    assert chromium.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in chromium.get_log("performance")]
    sent = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    # The icon is data within the page.
    assert {url for url in sent if not url.startswith("data:")} == {file.as_uri()}


def find(driver: Any, selector: str) -> list[Any]:
    return driver.find_elements("css selector", selector)


def names(driver: Any) -> list[str]:
    """The trials in the order of the results table."""
    return [cell.text for cell in find(driver, "[aria-label=Results] tbody th")]


def curves(driver: Any, kind: str = "evaluation") -> set[str]:
    return {path.get_attribute("data-trial") for path in find(driver, f"g.{kind} path")}


def choose(driver: Any, select: str, value: str) -> None:
    find(driver, f"#{select} option[value='{value}']")[0].click()


def numbers(text: str) -> list[float]:
    return [float(number.replace(",", "")) for number in re.findall(r"[\d,]*\.?\d+", text)]


def test_the_page_shows_the_sweep(opened: Any) -> None:
    assert opened.title == "mask_rate: sweep report"
    assert find(opened, "h1")[0].text == "mask_rate"
    assert HOSTILE in find(opened, ".description")[0].text
    assert names(opened) == ["rate_15", "rate_30", "rate_50", "failing"]
    verdicts = [cell.text for cell in find(opened, "td.verdict")]
    assert verdicts[:2] == ["baseline", "0.050 nats lower"]
    assert [cell.get_attribute("class") for cell in find(opened, "td.verdict")][1] == "verdict lower"
    assert "failing/seed_1: failed: step 500: 20 steps in a row | had a <loss> of NaN" in [
        item.text for item in find(opened, "#left-out ~ ul li")
    ]
    assert curves(opened) == curves(opened, "training") == {"rate_15", "rate_30", "rate_50", "failing"}


def test_a_header_sorts_by_number_and_the_other_way(opened: Any) -> None:
    (header,) = [
        cell for cell in find(opened, "[aria-label=Results] th") if cell.text.startswith("evaluation loss")
    ]
    button = header.find_element("css selector", "button")
    assert header.get_attribute("aria-sort") == "none"
    button.click()
    assert header.get_attribute("aria-sort") == "ascending"
    assert names(opened) == ["rate_30", "rate_50", "rate_15", "failing"]
    button.send_keys("\ue007")  # Enter: the keyboard does what the mouse does
    assert header.get_attribute("aria-sort") == "descending"
    assert names(opened) == ["failing", "rate_15", "rate_50", "rate_30"]


def test_what_has_no_value_is_last_whichever_way(opened: Any) -> None:
    (button,) = [b for b in find(opened, "[aria-label=Results] th button") if b.text == "pairs"]
    for _ in range(2):
        button.click()
        assert names(opened)[-1] == "rate_15"


def test_a_curve_is_hidden_and_shown(opened: Any) -> None:
    (box,) = find(opened, "#legend input[value=rate_30]")
    box.click()
    assert curves(opened) == curves(opened, "training") == {"rate_15", "rate_50", "failing"}
    box.click()
    assert "rate_30" in curves(opened)
    find(opened, "#none")[0].click()
    assert curves(opened) == set()
    find(opened, "#all")[0].click()
    assert len(curves(opened)) == 4


def test_single_seeds_are_hidden(opened: Any) -> None:
    # Three seeds of three trials, and of `failing` the run that failed: its other one stands for the trial.
    assert len(find(opened, "g.evaluation path.seed")) == 10
    assert len(find(opened, "g.evaluation path.mean")) == 4
    find(opened, "#seeds")[0].click()
    assert not find(opened, "path.seed")
    assert len(find(opened, "g.evaluation path.mean")) == 4


@pytest.mark.parametrize("axis", ["steps", "tokens"])
def test_hovering_tells_the_value(opened: Any, sweep_folder: Path, axis: str) -> None:
    from selenium.webdriver import ActionChains

    choose(opened, "axis", axis)
    find(opened, "#none")[0].click()
    find(opened, "#legend input[value=rate_50]")[0].click()
    find(opened, "#seeds")[0].click()
    (chart,) = find(opened, "svg[data-kind=evaluation]")
    opened.execute_script("arguments[0].scrollIntoView({block: 'center'})", chart)
    # The middle of the plot: steps 0 to 1000 are between the margins of 52 and 30.
    width, height = chart.size["width"], chart.size["height"]
    path = find(opened, "g.evaluation path.mean")[0].get_attribute("d")
    points = [tuple(map(float, point.split())) for point in path.lstrip("M").split("L")]
    x, y = points[4]
    assert x == pytest.approx(52 + (width - 82) / 2, abs=1)
    ActionChains(opened).move_to_element_with_offset(chart, x - width / 2 + 3, y - height / 2 - 3).perform()
    (told,) = [output.text for output in find(opened, ".chart output") if output.text]
    expected = []
    for seed in range(3):
        lines = (sweep_folder / "rate_50" / f"seed_{seed}" / "eval.jsonl").read_text().splitlines()
        expected += [record["mlm_loss"] for record in map(json.loads, lines) if record["step"] == 500]
    title, value, place = told.splitlines()
    assert title == "rate_50, mean of 3 seeds"
    assert numbers(value) == [pytest.approx(sum(expected) / 3, abs=6e-5)]
    assert place == "step 500, 115 k tokens"


def test_the_end_is_shown_closer(opened: Any) -> None:
    def lowest_label() -> float:
        labels = [text.text for text in find(opened, "svg[data-kind=evaluation] text")]
        return max(
            float(label) for label in labels if re.fullmatch(r"\d+\.?\d*", label) and float(label) < 10
        )

    assert lowest_label() >= 6
    choose(opened, "part", "0.25")
    assert lowest_label() < 2.6


def test_arrow_keys_go_from_point_to_point(opened: Any) -> None:
    (chart,) = find(opened, "svg[data-kind=evaluation]")
    told = []
    for key in ("\ue014", "\ue012", "\ue013"):  # right, left, up
        chart.send_keys(key)
        told.append(find(opened, ".chart output")[0].text.splitlines())
    assert told[0] == ["failing, seed 0", "2.3000 nats", "step 1,000, 230 k tokens"]
    assert told[1][2] == "step 900, 207 k tokens"
    assert told[2][0] == "failing, seed 1 (failed)"


def test_configs_open(opened: Any) -> None:
    details = find(opened, "details")
    assert len(details) == 12
    details[4].find_element("css selector", "summary").click()
    assert details[4].text.startswith("rate_30/seed_1 (finished)")
    settings = json.loads(details[4].find_element("css selector", "pre").text)
    assert settings["masking"]["mask_selection_rate"] == 0.3
    assert settings["seed"] == 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_in_light_and_dark(opened: Any, scheme: str) -> None:
    feature = {"name": "prefers-color-scheme", "value": scheme}
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    script = "const s = getComputedStyle(document.body); return [s.color, s.backgroundColor]"
    text, background = (numbers(colour)[0] for colour in opened.execute_script(script))
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    assert (text < 60 and background > 240) if scheme == "light" else (text > 200 and background < 40)


def test_a_narrow_window_scrolls_tables_and_not_the_page(opened: Any) -> None:
    metrics = {"width": 400, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    opened.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        assert opened.execute_script("return document.documentElement.scrollWidth") == 400
        (box,) = find(opened, "[aria-label=Results]")
        assert opened.execute_script("return arguments[0].scrollWidth > arguments[0].clientWidth", box)
    finally:
        opened.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_the_page_fits_on_paper(opened: Any) -> None:
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print", "features": []})
    metrics = {"width": 720, "height": 1000, "deviceScaleFactor": 1, "mobile": False}
    opened.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        script = "const page = document.documentElement; return [page.scrollWidth, page.clientWidth]"
        needed, there = opened.execute_script(script)
        assert needed == there
        assert not find(opened, ".choices")[0].is_displayed()
    finally:
        opened.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": []})


def test_hostile_names_stay_text(chromium: Any, tmp_path: Path) -> None:
    write_plan(tmp_path, ["plain", HOSTILE], [0], name=HOSTILE)
    (tmp_path / "report.html").write_text(page(read_sweep(tmp_path)))
    chromium.get((tmp_path / "report.html").as_uri())
    assert names(chromium) == ["plain", HOSTILE]
    assert [label.text for label in find(chromium, "#legend label")] == ["plain (baseline)", HOSTILE]
    assert chromium.get_log("browser") == []
