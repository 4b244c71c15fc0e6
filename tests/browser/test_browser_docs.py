"""The documentation's site in a real browser, at the widths of a phone and of a desk: nothing is cut off or illegible.

These tests build the site first, which takes a minute.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import browser, checkout
from support.browser import Browser, Page

pytestmark = [pytest.mark.browser, pytest.mark.skipif(bool(browser.missing()), reason=browser.missing())]

SIZES = ((390, 844), (1280, 900))
LEAST = 9.0
"""The least height of a letter, in pixels, that can still be read."""
PAGES = (
    *("index", "quick-start", "day-2/index", "look", "declaration", "links", "faults", "performance", "fleet"),
    *("isolation", "reference/netspace.modules.netspace", "reference/index", "adr/index"),
)
# Elements that reach beyond the screen, and lie in nothing that can be scrolled.
CUT_OFF = """[...document.querySelectorAll('article *')].filter(one => {
  const box = one.getBoundingClientRect();
  if (box.right <= innerWidth + 1 || box.width === 0) return false;
  for (let around = one.parentElement; around; around = around.parentElement)
    if (['auto', 'scroll', 'hidden'].includes(getComputedStyle(around).overflowX)) return false;
  return true;
}).map(one => one.tagName + ' ' + one.textContent.slice(0, 60))"""
# The height of the letters of a picture, as shown: its texts have 10 pt in a drawing of so many points.
LETTERS = """[...document.querySelectorAll('article img[src$=".svg"]')].map(one =>
  13.3 * one.getBoundingClientRect().width / one.naturalWidth)"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "-b", "html", "-d", str(folder / "trees")]
    subprocess.run([*command, "docs", str(folder / "html")], cwd=checkout.ROOT, check=True, timeout=1800)
    return folder / "html"


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser.running(tmp_path_factory.mktemp("browser")) as running:
        yield running


@pytest.mark.parametrize("size", SIZES, ids=["phone", "desk"])
def test_page_is_neither_cut_off_nor_broken(chromium: Browser, site: Path, size: tuple[int, int]) -> None:
    for name in PAGES:
        page = Page(chromium, site / f"{name}.html", size, "light", "")
        assert page.value("document.documentElement.scrollWidth") <= size[0], name
        assert page.value(CUT_OFF) == [], name
        assert page.value("[...document.images].filter(one => !one.naturalWidth).length") == 0, name
        assert page.errors() == [], name
        assert all(each.startswith(("file:", "data:")) for each in page.requests()), "a page asks the network"
        page.close()


@pytest.mark.parametrize("size", SIZES, ids=["phone", "desk"])
def test_letters_of_pictures_can_be_read(chromium: Browser, site: Path, size: tuple[int, int]) -> None:
    page = Page(chromium, site / "index.html", size, "light", "")
    heights = page.value(LETTERS)
    assert len(heights) == 3 and min(heights) >= LEAST, heights
    page.close()


def test_search_finds_a_function_and_a_fault(chromium: Browser, site: Path) -> None:
    for word, wanted in (("paths_to", "reachability"), ("teardown", "netspace.modules.netspace")):
        page = Page(chromium, site / "search.html", SIZES[0], "light", f"?q={word}")
        # Results come one after another.
        page.until(f"[...document.querySelectorAll('#search-results li a')].some(one => one.href.includes('{wanted}'))")
        page.close()


def test_menu_of_a_phone_opens_and_leads_to_pages(chromium: Browser, site: Path) -> None:
    page = Page(chromium, site / "index.html", SIZES[0], "light", "")
    shown = "document.querySelector('.sidebar-tree a').getBoundingClientRect().right > 0"
    assert not page.value(shown)
    page.click(".mobile-header label[for='__navigation']")
    page.until(shown)
    links = page.value("[...document.querySelectorAll('.sidebar-tree a')].map(one => one.href.split('#')[0])")
    assert (site / "quick-start.html").as_uri() in links
    assert [one for one in set(links) if not Path(one.removeprefix("file://")).exists()] == []
    page.close()
