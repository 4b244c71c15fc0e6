"""Take the documentation's pictures with a real browser.

    python tests/browser/screens.py [FOLDER]

Without FOLDER the pictures go to docs/pictures. Run this after a change of the page, and look at the pictures.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "_utils"), str(ROOT / "tests")]

from support import browser  # noqa: E402
from support.fleet import pictures  # noqa: E402

from netspace.plugin import fleet_picture  # noqa: E402


def pages() -> dict[str, str]:
    """Return the pages with pictures of fleets, by name."""
    shop, large = pictures.compiled(pictures.shop()), pictures.compiled(pictures.large())
    return {
        "shop": fleet_picture.picture("html", shop, pictures.seen(shop)),
        "plan": fleet_picture.picture("html", shop, None, pictures.planned()),
        "large": fleet_picture.picture("html", large, pictures.seen(large)),
    }


SCREENS = {
    "fleet-shop": ("shop", (1280, 620), "light", "#n=orders%40h3"),
    "fleet-plan": ("plan", (1280, 620), "dark", ""),
    "fleet-large": ("large", (1280, 760), "light", ""),
    "fleet-large-host": ("large", (1280, 760), "light", "#n=shop-log-63%40h63"),
}


def main() -> None:
    target = Path(sys.argv[1]) if sys.argv[1:] else ROOT / "docs/pictures"
    made = pages()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with browser.running(folder) as chromium:
            for screen, (which, size, scheme, part) in SCREENS.items():
                (folder / "page.html").write_text(made[which])
                page = browser.Page(chromium, folder / "page.html", size, scheme, part)
                page.value("document.activeElement.blur()")
                page.picture(target / f"{screen}.webp")
                assert page.errors() == [], screen
                page.close()


if __name__ == "__main__":
    main()
