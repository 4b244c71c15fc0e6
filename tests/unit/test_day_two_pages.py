"""Pages as steps, and a check that a test runs all pages of ``docs/day-2``."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support import pages
from support.pages import Step

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs/day-2"

PAGE = """# Title

```yaml
# /srv/a
one: 1
```

```jinja
# in /srv/a
one = 2
```

1. In a list:

   ```sh
   salt '*' \\
       test.ping
   # nothing
   ls
   ```

```yaml
no: path
```

```text
True
```
"""


def test_blocks_are_steps_in_order() -> None:
    assert pages.steps(PAGE) == [
        Step("file", "/srv/a", "# /srv/a\none: 1\n"),
        Step("edit", "/srv/a", "one = 2\n"),
        Step("sh", "", "salt '*' \\\n    test.ping\n# nothing\nls\n"),
        Step("text", "", "True\n"),
    ]
    assert pages.commands(pages.steps(PAGE)[2].text) == ["salt '*'      test.ping", "ls"]


def test_edit_replaces_one_line_that_is_there() -> None:
    assert pages.edited("a = 1\nab = 2\n", "a = \\1 3\n") == "a = \\1 3\nab = 2\n"
    for lines in ("c = 1\n", "a = 1\nb = 1\n"):
        with pytest.raises(ValueError, match="0 lines begin with"):
            pages.edited("a = 1\n", lines)
    with pytest.raises(ValueError, match="2 lines begin with"):
        pages.edited("a = 1\na = 2\n", "a = 3\n")


@pytest.mark.parametrize(
    ("wanted", "lack"),
    [
        ("a\nb\n", None),
        ("b\na\n", "a"),
        ("a\na\n", "a"),
        ("order ... thanks\n", None),
        ("order ... thank\n", "order ... thank"),
        ("rder\n", "rder"),
        ("", None),
    ],
)
def test_lines_are_seen_whole_and_in_order(wanted: str, lack: str | None) -> None:
    assert pages.lacking(wanted, "  a\n order 1, thanks\nb \n") == lack


def test_walk_takes_every_page_in_the_order_of_the_index() -> None:
    listed = re.findall(r"^([a-z]+)$", (DOCS / "index.md").read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(path.stem for path in DOCS.glob("*.md") if path.stem != "index")
    walk = (ROOT / "tests/integration/test_day_two.py").read_text()
    walked = [name or other for name, other in re.findall(r'follow\("(\w+)"|DOCS / "(\w+)\.md"\)\n    ', walk)]
    assert list(dict.fromkeys(name for name in walked if name in listed)) == listed
    for page in listed:
        assert any(step.kind == "sh" for step in pages.page(DOCS / f"{page}.md")), page
