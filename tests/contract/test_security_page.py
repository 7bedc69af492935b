"""docs/security.md names tests that exist, so that no attempt is listed as held by nothing."""

from __future__ import annotations

import re
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


def test_every_test_that_the_page_names_exists() -> None:
    page = (REPOSITORY / "docs" / "security.md").read_text(encoding="utf-8")
    missing, path = [], ""
    for name in re.findall(r"`((?:tests/[^`]+)?(?:::test_\w+)?)`", page):
        file, _, function = name.partition("::")
        path = file or path
        text = (REPOSITORY / path).read_text(encoding="utf-8") if (REPOSITORY / path).is_file() else ""
        if not text or (function and f"def {function}(" not in text):
            missing.append(name)
    assert missing == []
    assert page.count("tests/") > 40
