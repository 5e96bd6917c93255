"""The page of real runs in a real browser: Chromium without a window."""

import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import LitSphere
from matplotlib.image import imread

webdriver = pytest.importorskip("selenium.webdriver")
By = pytest.importorskip("selenium.webdriver.common.by").By

pytestmark = pytest.mark.slow

_CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
_DRIVER = shutil.which("chromedriver")
_FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--hide-scrollbars", "--window-size=1400,1000"),
)
_DARK = [{"name": "prefers-color-scheme", "value": "dark"}]


@pytest.fixture
def page(empty_folder: Path, lit_sphere: LitSphere) -> Path:
    """The page of three real runs, one in each regime."""
    for elr in ("1e-2", "3e-2", "1"):
        done = lit_sphere(
            *("fit", "--config", "elr.yaml", "--model.elr", elr, "--trainer.max_epochs", "20"),
            *("--wandb", "disabled", "--run", f"runs/{elr}"),
        )
        assert done.status == 0, done.err
    done = lit_sphere("report", "runs", "--out", "out", "--formats")
    assert done.status == 0, done.err
    return empty_folder / "out" / "report.html"


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Any]:
    if _CHROMIUM is None or _DRIVER is None:
        pytest.skip("there is no Chromium with its chromedriver here (Debian: apt install chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = _CHROMIUM
    for flag in (*_FLAGS, f"--user-data-dir={tmp_path / 'profile'}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(_DRIVER))
    try:
        yield driver
    finally:
        driver.quit()


def _until(what: Callable[[], Any], seconds: float = 60.0) -> Any:
    """Wait: a busy machine takes its time to draw."""
    end = time.monotonic() + seconds
    while not (found := what()) and time.monotonic() < end:
        time.sleep(0.1)
    assert found
    return found


def _addresses(browser: Any) -> list[str]:
    """What the page asked for since the last call."""
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [each["params"]["request"]["url"] for each in messages if each["method"] == "Network.requestWillBeSent"]
    return [address for address in sent if not address.startswith(("data:", "blob:", "chrome"))]


def _column(browser: Any, number: int) -> list[str]:
    cells = browser.find_elements(By.CSS_SELECTOR, f"table.sortable tbody td:nth-child({number})")
    return [cell.text for cell in cells]


def _heading(browser: Any, name: str) -> tuple[int, Any]:
    heads = browser.find_elements(By.CSS_SELECTOR, "table.sortable thead th")
    number = next(i for i, head in enumerate(heads, 1) if head.text.split(" ")[0] == name)
    return number, heads[number - 1].find_element(By.TAG_NAME, "button")


def test_the_page_works(page: Path, browser: Any) -> None:
    browser.get("about:blank")
    _addresses(browser)
    browser.get(page.as_uri())
    _until(lambda: browser.find_elements(By.CSS_SELECTOR, ".plot .trace"))
    _the_picture_is_not_empty(browser, page.with_suffix(".png"))
    _the_table_sorts(browser)
    _a_legend_hides_a_curve(browser)
    _all_is_drawn_in_the_dark_and_on_paper(browser)
    assert set(_addresses(browser)) == {page.as_uri()}
    assert [entry["message"] for entry in browser.get_log("browser")] == []


def _the_picture_is_not_empty(browser: Any, path: Path) -> None:
    browser.save_screenshot(str(path))
    pixels = imread(path)[..., :3].reshape(-1, 3)[::50]
    assert len(set(map(tuple, pixels.round(2).tolist()))) > 20  # more colours than text has


def _the_table_sorts(browser: Any) -> None:
    number, button = _heading(browser, "ELR")
    assert _column(browser, number) == ["0.01", "0.03", "1"]
    button.click()
    button.click()
    assert _column(browser, number) == ["1", "0.03", "0.01"]
    button.send_keys("\ue007")  # Enter
    assert _column(browser, number) == ["0.01", "0.03", "1"]
    number, button = _heading(browser, "train")  # numbers as numbers: 0.0006 before 7
    button.click()
    losses = [float(text) for text in _column(browser, number)]
    assert losses == sorted(losses)


def _a_legend_hides_a_curve(browser: Any) -> None:
    plot = browser.find_element(By.CSS_SELECTOR, '.plot[aria-label="train loss"]')
    browser.execute_script("arguments[0].scrollIntoView()", plot)
    lines = _until(lambda: plot.find_elements(By.CSS_SELECTOR, ".scatterlayer .trace"))
    legend = plot.find_element(By.XPATH, "./ancestor::figure").find_element(By.CSS_SELECTOR, ".legend button")
    legend.click()
    assert legend.get_attribute("aria-pressed") == "false"
    _until(lambda: len(plot.find_elements(By.CSS_SELECTOR, ".scatterlayer .trace")) == len(lines) - 1)
    legend.click()
    _until(lambda: len(plot.find_elements(By.CSS_SELECTOR, ".scatterlayer .trace")) == len(lines))


def _all_is_drawn_in_the_dark_and_on_paper(browser: Any) -> None:
    colour = "return getComputedStyle(document.querySelector('.plot .xtick text')).fill"
    light = browser.execute_script(colour)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": _DARK})
    _until(lambda: browser.execute_script(colour) != light)
    # On paper a dark page is light, and figures that were never scrolled to are there.
    browser.execute_script("dispatchEvent(new Event('beforeprint'))")
    _until(lambda: browser.execute_script(colour) == light)
    plots = len(browser.find_elements(By.CSS_SELECTOR, ".plot"))
    _until(lambda: len(browser.find_elements(By.CSS_SELECTOR, ".plot.js-plotly-plot")) == plots)
    browser.execute_script("dispatchEvent(new Event('afterprint'))")
    _until(lambda: browser.execute_script(colour) != light)
    printed = browser.execute_cdp_cmd("Page.printToPDF", {})
    assert len(printed["data"]) > 10_000
