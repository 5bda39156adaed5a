"""Documents that point somewhere point at something."""

import re
from pathlib import Path

import pytest

from user_system.core.types import End, Purpose, Segment

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_inside_the_repository_lead_somewhere(page):
    links = [link for link in LINK.findall(page.read_text()) if "://" not in link]
    lost = [link for link in links if not (page.parent / link).exists()]
    assert not lost


def test_every_decision_is_listed_and_complete():
    folder = ROOT / "docs" / "decisions"
    pages = sorted(folder.glob("[0-9]*.md"))
    listed = LINK.findall((folder / "README.md").read_text())
    assert [page.name for page in pages] == listed
    for page in pages:
        text = page.read_text()
        assert text.startswith(f"# {page.name[:4]} ")
        for part in ("## Context", "## Decision", "## Consequences"):
            assert part in text


@pytest.mark.parametrize("words", [Segment, End, Purpose], ids=lambda words: words.__name__)
def test_the_architecture_names_every_word_of_a_table(words):
    text = (ROOT / "docs" / "architecture.md").read_text()
    assert " ".join(word.name for word in words) in text
