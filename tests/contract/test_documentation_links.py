"""Links of every Markdown page lead somewhere: to a file of the repository, and to a heading that it has.

`make docs` checks the links of the site; this holds the same pages as they are read in the repository.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PAGES = sorted([*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").rglob("*.md")])
LINK = re.compile(r"\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```.*?^```$", re.M | re.S)
# Pages that exist in the built site only (docs/hooks/pages.py).
GENERATED = {REPOSITORY / "docs/reference/cli.md", REPOSITORY / "docs/reference/config.md"}


@cache
def anchors(page: Path) -> frozenset[str]:
    """The anchors of a page's headings."""
    text = FENCE.sub("", page.read_text("utf-8"))
    headings = re.findall(r"^#+ (.+)$", text, re.M)
    return frozenset(anchor(heading) for heading in headings)


def anchor(heading: str) -> str:
    """As GitHub and the site's slugs: lower case, without punctuation, dashes between words."""
    return re.sub(r"\s", "-", re.sub(r"[^\w\s-]", "", heading.strip().lower()))


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(REPOSITORY).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    broken = []
    for target in LINK.findall(FENCE.sub("", page.read_text("utf-8"))):
        name, _, heading = target.partition("#")
        if ":" in name:
            continue
        file = (page.parent / name).resolve() if name else page
        if file in GENERATED:
            continue
        if not file.is_file() or (heading and file.suffix == ".md" and heading not in anchors(file)):
            broken.append(target)
    assert broken == []


def test_the_reader_sees_links_and_headings(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A `b`: c, d\n\n```\n# none\n```\n[x](page.md#e)\n")
    assert anchors(page) == {"a-b-c-d"}
    assert LINK.findall(page.read_text()) == ["page.md#e"]


def test_lines_that_the_faq_quotes_are_real() -> None:
    """Each part of a quoted error line stands in a string of the source."""
    source = "\n".join(
        path.read_text("utf-8")
        for package in ("roboalign_ray", "actors", "pipelines")
        for path in (REPOSITORY / package).rglob("*.py")
    )
    quoted = re.findall(r"^### `(.+)`$", (REPOSITORY / "docs/faq.md").read_text("utf-8"), re.M)
    parts = [part.strip(" ;?'") for line in quoted for part in line.split("…")]
    assert len(quoted) > 8
    assert [part for part in parts if part and part not in source] == []
