"""The page in headless Chromium: console, width, letters, contrast and the rest of what axe-core checks."""

import os
import shutil
from pathlib import Path

import pytest
from conftest import lacking
from report import examples

from hvpspec.plots.style import STYLE
from hvpspec.report.html import report_html

pytestmark = pytest.mark.browser
ROOT = Path(__file__).parents[2]
OPTIONS = ["--no-zygote", "--in-process-gpu", "--disable-gpu", "--disable-dev-shm-usage"]
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"]


def program():
    """What scripts/chromium finds or fetches, without fetching."""
    for name in (os.environ.get("HVPSPEC_CHROMIUM"), ROOT / ".cache/chromium/headless"):
        if name and (found := shutil.which(name)):
            return found
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)


@pytest.fixture(scope="module")
def browser():
    if program() is None:
        lacking("there is no Chromium: ./scripts/chromium fetches one where it can, and says why where it cannot")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=program(), args=OPTIONS, chromium_sandbox=False)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(report_html(examples.record()), encoding="utf-8")
    return path.as_uri()


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """A page of 28 groups of parameters with long names."""
    names = [f"layers.{i}.attention.{kind}_projection.weight" for i in range(14) for kind in ("query", "output")]
    figures = {**examples.BLOCKS["blocks"][0], "trace": {**examples.estimate(-8.123, 2.345), "converged": False}}
    blocks = {**examples.BLOCKS, "blocks": [{**figures, "name": name, "parameters": 3_000} for name in names]}
    path = tmp_path_factory.mktemp("full") / "report.html"
    path.write_text(report_html(examples.record(blocks=blocks)), encoding="utf-8")
    return path.as_uri()


@pytest.fixture
def opened(browser, address):
    """Opens the page; `.said` is what went to the console, `.asked` what was requested."""
    pages = []

    def open_page(width=390, scheme="light", media="screen", address=address):
        page = browser.new_page(viewport={"width": width, "height": 844}, color_scheme=scheme)
        page.said, page.asked = [], []
        page.on("console", lambda message: page.said.append(message.text))
        page.on("pageerror", lambda error: page.said.append(str(error)))
        page.on("request", lambda request: page.asked.append(request.url))
        page.emulate_media(media=media, color_scheme=scheme)
        page.goto(address)
        pages.append(page)
        return page

    yield open_page
    for page in pages:
        page.close()


def test_it_renders_silently_and_alone(opened, address):
    page = opened()
    assert page.said == []
    assert page.asked == [address]
    assert page.title() == f"Hessian spectrum of {examples.HOSTILE}"
    assert page.locator("h1").inner_text() == page.title()
    for picture in page.locator("figure svg").all():
        box = picture.bounding_box()
        assert box["width"] > 250
        assert box["height"] > 100


@pytest.mark.parametrize("width", [320, 390, 1100])
def test_nothing_sticks_out_sideways(opened, width):
    page = opened(width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    if width == 390:  # on this phone no table needs scrolling either
        for region in page.locator(".wide").all():
            assert region.evaluate("e => e.scrollWidth <= e.clientWidth"), region.inner_text()


@pytest.mark.parametrize("width", [390, 1200])
def test_many_groups_with_long_names(opened, full, width):
    page = opened(width, address=full)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    table = page.locator("section[aria-label='Table of groups of parameters']")
    assert table.evaluate("e => e.scrollWidth <= e.clientWidth")
    for line in table.locator("tbody tr").first.inner_text().split("\n"):
        assert not line.rstrip().endswith("±")
    # No part of a name between dots or underscores lies in two lines.
    split = table.locator("tbody th").first.evaluate(
        "e => [...e.childNodes].filter(n => n.nodeType === 3 && (r => (r.selectNode(n), r.getClientRects().length))"
        "(document.createRange()) > 1).length"
    )
    assert split == 0
    drawings = [box.bounding_box() for box in page.locator(".across svg").all()]
    assert len(drawings) == 2
    side_by_side = abs(drawings[0]["y"] - drawings[1]["y"]) < 5
    assert side_by_side == (width == 1200)
    frame = page.locator(".across").bounding_box()
    assert sum(box["width"] for box in drawings) > 0.9 * frame["width"]


def test_letters_in_the_pictures_can_be_read_on_a_phone(opened):
    scales = opened(390).evaluate(
        "[...document.querySelectorAll('figure svg')].map(svg => svg.clientWidth / svg.viewBox.baseVal.width)"
    )
    assert len(scales) == 5  # the blocks in two pieces, and the batches
    smallest = min(size for name, size in STYLE.items() if name.endswith("size"))
    assert min(scales) * smallest >= 9  # pixels


def test_on_paper_it_is_dark_on_white_and_whole(opened):
    page = opened(794, "dark", "print")
    colours = page.evaluate("[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]")
    assert colours == ["rgb(0, 0, 0)", "rgb(255, 255, 255)"]
    assert len(page.pdf(format="A4")) > 10_000


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1100])
def test_it_is_accessible(opened, width, scheme):
    """axe-core's rules for WCAG 2.1 A and AA: contrast, names, landmarks, headings, tables."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(opened(width, scheme), options={"runOnly": {"type": "tag", "values": RULES}})
    assert found.response["violations"] == [], found.generate_report()
    passed = {rule["id"] for rule in found.response["passes"]}
    assert {"color-contrast", "html-has-lang", "document-title", "heading-order", "role-img-alt"} <= passed
