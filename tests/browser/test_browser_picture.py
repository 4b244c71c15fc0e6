"""The page with a fleet's picture in a real browser: search, filters, details, keyboard, colour schemes, hostile texts.

A test fails on an error of the page's script, a violation of its content security policy, or a request for anything
except the page.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support import browser
from support.browser import Browser, Page
from support.fleet import pictures

from netspace.plugin import fleet_picture
from netspace.plugin.picture import page as html
from netspace.plugin.picture.model import Arrow, Graph, Group, Node

pytestmark = [pytest.mark.browser, pytest.mark.skipif(bool(browser.missing()), reason=browser.missing())]

Opened = Callable[..., Page]
HOSTILE = (
    "</script><script>alert('name')</script>",
    "<img src=x onerror=alert(1)>",
    "]]><svg onload=alert(2)>",
    "<!--<script>",
    "\"' onfocus=alert(3) autofocus x='",
    "{{ constructor.constructor('alert(4)')() }}",
)


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser.running(tmp_path_factory.mktemp("browser")) as running:
        yield running


@pytest.fixture
def opened(chromium: Browser, tmp_path: Path) -> Iterator[Opened]:
    """Open a page; after the test, check that there was no error and no other request."""
    pages: list[Page] = []
    file = tmp_path / "fleet.html"

    def open_page(text: str, size: tuple[int, int] = (1400, 900), scheme: str = "light", part: str = "") -> Page:
        file.write_text(text)
        pages.append(Page(chromium, file, size, scheme, part))
        return pages[-1]

    yield open_page
    for page in pages:
        assert page.errors() == []
        assert {address.partition("#")[0] for address in page.requests()} <= {file.as_uri()}
        page.close()


def shop(*, live: bool = True, planned: bool = False) -> str:
    made = pictures.compiled(pictures.shop())
    return fleet_picture.picture(
        "html", made, pictures.seen(made) if live else None, pictures.planned() if planned else None
    )


def details(page: Page) -> str:
    return str(page.value("document.getElementById('more').innerText"))


def title(page: Page) -> str:
    return str(page.value("(document.querySelector('#more h2') || {}).textContent || ''"))


def hits(page: Page) -> list[str]:
    found: list[str] = page.value("[...document.querySelectorAll('#hits li.in span')].map(e => e.textContent)")
    return found


def shown(page: Page) -> list[float]:
    """Return the visible part of the picture: its left, top, width and height."""
    return [float(one) for one in page.value("document.getElementById('map').getAttribute('viewBox')").split()]


def test_search_finds_and_opens_an_environment(opened: Opened) -> None:
    page = opened(shop())
    assert page.value("document.getElementById('count').textContent") == "4 hosts, 10 environments, 17 links"
    page.click("#q")
    page.press(*"vault")
    assert hits(page) == ["vault"]
    assert page.value("document.querySelectorAll('.n.dim').length") == 12
    page.press("Enter")
    assert title(page) == "vault@h4"
    assert "h4: no answer within 20 s" in details(page) and "not seen" in details(page)
    assert page.value("[...document.querySelectorAll('.l.on')].length") == 3
    assert page.value("location.hash") == "#n=vault%40h4"


def test_filters_leave_what_needs_attention(opened: Opened) -> None:
    page = opened(shop())
    page.choose("#fm", "bad")
    assert hits(page) == ["orders"]
    page.choose("#fm", "!")
    assert {"orders", "vault", "log"} <= set(hits(page)) and "shop-web" not in hits(page)
    page.choose("#fm", "")
    page.choose("#fl", "L2")
    assert hits(page) == ["shop-search", "shop-web"]
    page.choose("#fl", "")
    page.choose("#ft", "bill")
    assert hits(page) == ["bill-mail", "bill-print"]
    assert "2 of 13 match" in page.value("document.getElementById('count').textContent")


def test_a_host_is_opened_and_a_link_followed(opened: Opened) -> None:
    page = opened(shop())
    host = page.value("[...document.querySelectorAll('.b .t')].find(e => e.textContent === 'h3').parentNode.id")
    page.click(f"#{host} .t")
    assert title(page) == "h3"
    assert "L4 trusted, reported by the master's verifier" in details(page) and "198.51.100.3" in details(page)
    page.value("[...document.querySelectorAll('#more button')].find(b => b.textContent.includes('orders')).id = 'go'")
    page.click("#go")
    assert title(page) == "orders@h3" and "it ended (exit 1)" in details(page)
    page.value("[...document.querySelectorAll('#more button')].find(b => b.textContent.startsWith('vault')).id = 'on'")
    page.click("#on")
    assert title(page) == "orders@h3 \u2192 vault@h4"
    assert "requests, sealed" in details(page) and "links:3" in details(page)
    page.click("#more li:last-child button")
    assert title(page) == "vault@h4"


def test_all_is_reached_by_keys_alone(opened: Opened) -> None:
    page = opened(shop())
    page.press("/")
    page.press(*"orders", "Enter")
    assert title(page) == "orders@h3"
    assert page.value("document.activeElement.id") == "more"
    page.press("Tab")  # the host
    page.press("Tab", "Enter")  # the first link
    assert "orders@h3 \u2192 " in title(page)
    page.press("Tab", "Tab", "Enter")  # its far end
    assert "\u2192" not in title(page) and title(page) not in ("", "orders@h3")
    page.press("Escape")
    assert title(page) == "" and page.value("document.querySelectorAll('.sel,.on').length") == 0
    page.press("Escape")
    assert page.value("document.getElementById('q').value") == ""
    page.value("document.getElementById('map').focus()")
    page.press("0")
    before = shown(page)
    page.press("ArrowRight", "ArrowDown", "+")
    after = shown(page)
    assert after[0] > before[0] and after[1] > before[1] and after[2] < before[2]
    page.press("0")
    assert shown(page) == before
    page.press("/", "ArrowDown", "ArrowDown", "Enter")
    assert title(page) == "shop-search@h1", "the list is walked through by arrows"
    order = page.value(
        "[...document.querySelectorAll('input,select,button,svg[tabindex],summary')].every(e => e.tabIndex >= 0)"
    )
    assert order, "the tabulator stops at each control"


def test_mouse_moves_and_zooms_the_picture(opened: Opened) -> None:
    page = opened(shop())
    before = shown(page)
    page.drag((600, 150), (700, 200))
    dragged = shown(page)
    assert dragged[0] < before[0] and dragged[1] < before[1] and dragged[2:] == before[2:]
    page.wheel((700, 400), -300)
    page.until(f"Number(document.getElementById('map').getAttribute('viewBox').split(' ')[2]) < {before[2]} * .9")
    page.click("#fit")
    assert shown(page) == before


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_takes_the_systems_colours_or_the_chosen(opened: Opened, scheme: str) -> None:
    page = opened(shop(), scheme=scheme)
    ground = "getComputedStyle(document.body).backgroundColor"
    colours = {"light": "rgb(255, 255, 255)", "dark": "rgb(17, 23, 29)"}
    assert page.value(ground) == colours[scheme]
    for chosen in ("dark", "light"):
        page.choose("#scheme", chosen)
        assert page.value(ground) == colours[chosen]
    page.choose("#scheme", "")
    assert page.value(ground) == colours[scheme]


def test_a_plan_shows_what_it_adds_and_cuts(opened: Opened) -> None:
    page = opened(shop(live=False, planned=True))
    page.choose("#fc", "!")
    assert set(hits(page)) == {"shop-search", "shop-old", "shop-web", "audit", "vault"}
    labels = page.value("[...document.querySelectorAll('.n text')].map(e => e.textContent)")
    assert {"+ audit", "~ shop-search", "\u2212 shop-old"} <= set(labels)
    page.value("[...document.querySelectorAll('#hits button')].find(b => b.textContent === 'shop-old').id = 'go'")
    page.click("#go")
    assert "the plan removes it" in details(page) and "it is no longer declared" in details(page)


def hostile() -> str:
    nodes = [Node(f"{text}@{text}", "environment", text, text, text, "bad", "", 3, [(text, text)]) for text in HOSTILE]
    names = [node.name for node in nodes]
    arrows = [
        Arrow(one, other, HOSTILE[0], HOSTILE[1], facts=[(HOSTILE[2], HOSTILE[3])])
        for one, other in itertools.pairwise(names)
    ]
    return html.page(
        Graph(nodes, arrows, [Group(text, "L0", "bad", "", [(text, text)]) for text in HOSTILE], HOSTILE[0], HOSTILE)
    )


def test_hostile_texts_stay_texts(opened: Opened) -> None:
    page = opened(hostile())
    assert page.value("document.title") == HOSTILE[0]
    elements = "document.querySelectorAll('img,script,iframe,a,svg svg').length"
    assert page.value(elements) == 2, "the page's own two scripts"
    for number, text in enumerate(HOSTILE):
        page.value(f"document.querySelector('#n{number}').dispatchEvent(new MouseEvent('click', {{bubbles: true}}))")
        assert title(page) == f"{text}@{text}" and text in details(page)
        for link in range(page.value("document.querySelectorAll('#more button').length")):
            page.value(f"document.querySelectorAll('#more button')[{link}].click()")
            page.value(
                f"document.querySelector('#n{number}').dispatchEvent(new MouseEvent('click', {{bubbles: true}}))"
            )
    assert page.value(elements) == 2
    assert page.value("document.querySelectorAll('[onfocus],[onerror],[onload]').length") == 0


def test_policy_refuses_what_is_not_the_pages_own(opened: Opened) -> None:
    page = opened(hostile())
    with pytest.raises(AssertionError, match="TrustedHTML"):
        page.value("document.body.insertAdjacentHTML('beforeend', '<b>x</b>')")
    with pytest.raises(AssertionError, match="TrustedHTML"):
        page.value("document.body.innerHTML = '<img src=x onerror=alert(9)>'")
    refused = "new Promise(r => { addEventListener('securitypolicyviolation', e => r(e.effectiveDirective)) })"
    page.value(f"window.seen = []; {refused}.then(x => window.seen.push(x))")
    page.value("(() => { const i = new Image(); i.src = 'https://192.0.2.1/x.png'; })()")
    page.until("window.seen.length")
    assert page.value("window.seen") == ["img-src"]
    ours = [text for text in page.errors() if "Content Security Policy" not in text and "TrustedHTML" not in text]
    assert ours == [] and len(page.errors()) == 3
    page.forget()


@pytest.fixture(scope="module")
def large_page() -> str:
    made = pictures.compiled(pictures.large())
    return fleet_picture.picture("html", made, pictures.seen(made))


SIZES = [(360, 740), (1024, 768), (1920, 1080)]
"""Windows of a telephone, a small and a large screen."""


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_a_small_fleet_is_seen_whole(opened: Opened, size: tuple[int, int]) -> None:
    page = opened(shop(), size)
    assert page.value("document.documentElement.scrollWidth") <= size[0], "nothing sticks out at the side"
    seen: dict[str, Any] = page.value("document.getElementById('map').getBoundingClientRect().toJSON()")
    texts = "[...document.querySelectorAll('#map text')].filter(e => /^h[1-4]$/.test(e.textContent))"
    names = page.value(f"{texts}.map(e => e.getBoundingClientRect().toJSON()).filter(box => box.height)")
    assert len(names) >= 4, "each host's name is there"
    for box in names:
        assert box["height"] >= 12, "it can be read"
        assert seen["left"] <= box["left"] and box["right"] <= seen["right"]
    page.press("/")
    page.press(*"orders", "Enter")
    box: dict[str, Any] = page.value("document.querySelector('.n.sel').getBoundingClientRect().toJSON()")
    assert title(page) == "orders@h3" and box["height"] >= 12


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_a_large_fleet_is_found_through(opened: Opened, large_page: str, size: tuple[int, int]) -> None:
    page = opened(large_page, size)
    assert page.value("document.documentElement.scrollWidth") <= size[0], "nothing sticks out at the side"
    assert page.value("document.getElementById('map').classList.contains('isfar')") is True
    assert page.value("[...document.querySelectorAll('.l')].filter(e => e.id && e.checkVisibility()).length") == 0
    page.press("/")
    page.press(*"shop-log-63", "Enter")
    assert title(page) == "shop-log-63@h63"
    page.until("!document.getElementById('map').classList.contains('isfar')")
    assert page.value("[...document.querySelectorAll('.l')].filter(e => e.id && e.checkVisibility()).length") == 6
    box: dict[str, Any] = page.value("document.querySelector('.n.sel').getBoundingClientRect().toJSON()")
    seen: dict[str, Any] = page.value("document.getElementById('map').getBoundingClientRect().toJSON()")
    assert seen["left"] <= box["left"] and box["right"] <= seen["right"] and seen["top"] <= box["top"]
    assert box["height"] >= 20, "its name can be read"


def test_address_opens_what_it_names(opened: Opened) -> None:
    page = opened(shop(), part="#b=h2")
    assert title(page) == "h2"
    assert page.value("document.querySelector('#hits [aria-current=true]').textContent").startswith("h2")
