"""The documentation in a real browser without a network. Needs [docs], playwright and chromium: -m site."""

import subprocess
import sys

import pytest
from helpers import ROOT, chromium

import fastadam
from fastadam import schedules

pytestmark = pytest.mark.site

FLAGS = "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--host-resolver-rules=MAP * ~NOTFOUND"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    subprocess.run([sys.executable, "-P", "-m", "sphinx", "-q", "-W", "-n", ROOT / "docs", folder], check=True)
    return folder


@pytest.fixture(scope="module")
def page(site):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=FLAGS)
        page = browser.new_page(viewport={"width": 1400, "height": 900})
        page.set_default_timeout(60_000)
        page.asked = []
        page.on("request", lambda request: page.asked.append(request.url))
        yield page
        browser.close()


def test_the_api_of_every_public_name_is_there_with_its_formula(site, page):
    page.goto((site / "api.html").as_uri())
    page.wait_for_selector("mjx-container")
    names = [f"fastadam.{name}" for name in fastadam.__all__ if name not in ("reference", "schedules")]
    names += [f"fastadam.schedules.{name}" for name in schedules.__all__]
    names += [f"fastadam.Optimizer.{name}" for name in ("step", "step_one", "state_dict", "swap_ema", "save")]
    names += ["fastadam.reference.adam_update", "fastadam.reference.grad_norm"]
    missing = page.evaluate("names => names.filter(name => !document.getElementById(name))", names)
    assert missing == []
    # Formulas have been drawn, none is left as TeX, and none is an error.
    assert page.locator("mjx-container").count() > 10 and page.locator("mjx-merror").count() == 0
    assert "\\frac" not in page.inner_text("article")


def test_search_finds_pages(site, page):
    page.goto((site / "search.html").as_uri() + "?q=swap_ema")
    page.wait_for_selector("#search-results a[href*='averages']")


@pytest.mark.parametrize("example", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.name)
def test_examples_are_there(site, page, example):
    page.goto((site / "examples.html").as_uri())
    line = next(line for line in example.read_text().splitlines() if line.startswith(("def ", "opt = ")))
    assert line in page.inner_text("article")


@pytest.mark.parametrize("width", [390, 1400])
def test_no_page_is_wider_than_the_window_or_asks_the_network(site, page, width):
    page.set_viewport_size({"width": width, "height": 900})
    for html in sorted(site.glob("*.html")):
        page.goto(html.as_uri())
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), html.name
        assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth)"), html.name
    assert all(url.startswith(("file:", "data:")) for url in page.asked)
