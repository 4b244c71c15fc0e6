"""The pictures of the documentation are drawn from the texts beside them."""

from __future__ import annotations

import hashlib
from pathlib import Path
from xml.etree import ElementTree

import pytest

PAGES = Path(__file__).parents[2] / "docs"
TEXTS = sorted(PAGES.glob("pictures/*.dot"))


@pytest.mark.parametrize("text", TEXTS, ids=lambda path: path.stem)
def test_drawing_is_that_of_its_text(text: Path) -> None:
    drawing = text.with_suffix(".svg").read_text()
    digest = hashlib.sha256(text.read_bytes()).hexdigest()[:16]
    assert drawing.endswith(f"<!-- from {text.name} {digest} -->\n"), f"{text.name} is newer: run scripts/pictures"
    assert ElementTree.fromstring(drawing).tag == "{http://www.w3.org/2000/svg}svg"


def test_each_drawing_is_on_the_first_page_with_words() -> None:
    page = (PAGES / "index.md").read_text()
    assert len(TEXTS) == 3
    for text in TEXTS:
        before, _, _ = page.partition(f"](pictures/{text.stem}.svg)")
        assert before != page, text.name
        assert len(before.rpartition("![")[2]) > 60, f"{text.name}: says too little to whoever can't see it"
