"""The site of docs/: navigation and links; and, where mkdocs is installed, built with warnings as errors."""

import json
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from conftest import REPOSITORY

import lit_sphere.theory

DOCS = REPOSITORY / "docs"
PAGES = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))
# Without an entry in the reference: what other packages are made of.
_INSIDE = {"cli", "configs", "files", "metrics", "observe", "rivals", "switching"}


def _settings() -> dict[str, object]:
    settings: dict[str, object] = yaml.safe_load((REPOSITORY / "mkdocs.yml").read_text(encoding="utf-8"))
    return settings


def _pages(nav: object) -> Iterator[str]:
    if isinstance(nav, str):
        yield nav
    elif isinstance(nav, dict):
        for inner in nav.values():
            yield from _pages(inner)
    elif isinstance(nav, list):
        for inner in nav:
            yield from _pages(inner)


def test_the_navigation_names_every_page_once() -> None:
    named = list(_pages(_settings()["nav"]))
    assert len(named) > 20
    assert sorted(named) == PAGES


def test_the_reference_has_every_public_package() -> None:
    packages = {path.parent.name for path in (REPOSITORY / "lit_sphere").glob("*/__init__.py")} - _INSIDE
    assert {"callbacks", "groups", "theory"} < packages
    assert {f"api/{name}.md" for name in packages} == {page for page in PAGES if page.startswith("api/")} - {
        "api/index.md"
    }
    index = (DOCS / "api/index.md").read_text(encoding="utf-8")
    for name in packages:
        assert f"[lit_sphere.{name}]({name}.md)" in index
        assert f"\n::: lit_sphere.{name}\n" in (DOCS / f"api/{name}.md").read_text(encoding="utf-8")


def test_every_formula_of_the_theory_is_on_its_page() -> None:
    text = (DOCS / "theory.md").read_text(encoding="utf-8")
    functions = [name for name in lit_sphere.theory.__all__ if callable(getattr(lit_sphere.theory, name))]
    assert len(functions) > 20
    records = {"Interval", "Rotation", "SphericalStep"}  # what functions return
    assert not [name for name in functions if f"[lit_sphere.theory.{name}]" not in text and name not in records]


def _anchors(path: Path) -> set[str]:
    """Anchors of the headings, as Markdown's toc makes them."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", text).strip().lower()) for text in headings}


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{page}" for page in PAGES)])
def test_links_lead_somewhere(page: str) -> None:
    path = REPOSITORY / page
    text = re.sub(r"```.*?```|`[^`]*`", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        file, _, anchor = target.partition("#")
        found = path.parent / file if file else path
        assert found.is_file(), target
        if anchor:
            assert anchor in _anchors(found), target


def test_pictures_are_small() -> None:
    pictures = [path for path in DOCS.rglob("*") if path.suffix in {".png", ".svg", ".jpg", ".webp"}]
    assert len(pictures) > 1
    assert max(path.stat().st_size for path in pictures) < 300_000


# --- built -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for name in ("mkdocs", "material", "mkdocstrings", "latex2mathml"):
        pytest.importorskip(name, reason="the extra docs is not installed")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
def test_the_site_has_every_page_and_opens_without_network(site: Path) -> None:
    for page in PAGES:
        html = (site / page).with_suffix(".html").read_text(encoding="utf-8")
        loaded = re.findall(r"<(?:script|img|iframe)[^>]* src=\"?([^\s\">]+)", html)
        loaded += [tag for tag in re.findall(r"<link[^>]*>", html) if "stylesheet" in tag or "preconnect" in tag]
        assert len(loaded) > 1
        assert not [each for each in loaded if re.search(r"(https?:)?//", each)]
        assert "arithmatex" not in html, "a formula was left as TeX"


@pytest.mark.slow
def test_formulas_and_docstrings_are_drawn(site: Path) -> None:
    theory = (site / "theory.html").read_text(encoding="utf-8")
    assert theory.count("<math") > 60
    assert 'href="api/theory.html#lit_sphere.theory.total_elr"' in theory
    groups = (site / "api" / "groups.html").read_text(encoding="utf-8")
    assert 'id="lit_sphere.groups.find_groups"' in groups
    for page in (site / "api").glob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert not re.search(r":(func|class|meth|mod|attr):", text), "a role was left"


def test_the_gallery_shows_pictures_and_what_was_found(tmp_path: Path) -> None:
    pytest.importorskip("latex2mathml", reason="the extra docs is not installed")
    gallery = runpy.run_path(str(DOCS / "hooks.py"))["gallery"]
    assert gallery(tmp_path) == "No picture has been made yet."
    entry = {
        **{"id": "E1", "title": "Three regimes", "source": "TR fig. 1", "must_show": "Three.", "picture": "E1.png"},
        **{"verdict": "does not", "text": "8 runs.", "command": "lit-sphere reproduce E1", "date": "2026-11-28"},
        **{"seconds": 81.4, "hardware": "2 cores", "seeds": [0]},
    }
    (tmp_path / "gallery.json").write_text(json.dumps([entry, {**entry, "id": "E3", "seeds": [0, 1]}]))
    text = gallery(tmp_path)
    assert re.findall(r"^## (\w+):", text, re.MULTILINE) == ["E1", "E3"]
    assert f"![E1: Three regimes]({tmp_path.name}/E1.png)" in text
    assert "**Does not.** 8 runs." in text
    assert "`lit-sphere reproduce E1`, seed 0; 2026-11-28, 81 s of runs on 2 cores" in text
    assert "seeds 0, 1;" in text


def test_the_gallery_has_a_picture_of_each_entry() -> None:
    notes = DOCS / "gallery" / "gallery.json"
    pictures = [entry["picture"] for entry in json.loads(notes.read_text(encoding="utf-8"))]
    assert sorted(pictures) == sorted(path.name for path in notes.parent.glob("*.png"))
    assert pictures


@pytest.mark.slow
def test_the_search_works_from_disk(site: Path) -> None:
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    from selenium.webdriver.support.ui import WebDriverWait

    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (browser and driver):
        pytest.skip("no Chromium")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1400,1000"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    chromium = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try:
        chromium.get((site / "theory.html").as_uri())
        assert chromium.find_element("css selector", "math").size["width"] > 10, "formulas have a size"
        chromium.find_element("css selector", "input.md-search__input").click()
        chromium.switch_to.active_element.send_keys("barrier_height")
        wait = WebDriverWait(chromium, 30)
        found = wait.until(lambda page: page.find_elements("css selector", ".md-search-result__link"))
        assert any("analysis.html" in each.get_attribute("href") for each in found)
        assert chromium.get_log("browser") == []
    finally:
        chromium.quit()
