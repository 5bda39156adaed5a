"""Documents that point somewhere point at something."""

import re
from pathlib import Path

import pytest

from comms.credentials import Role
from comms.security import RULES as CALLS
from comms.switchboard import RULES as LANE
from user_system.core.deeds import MEANING
from user_system.core.types import End, Purpose, Segment
from user_system.teleop.access import MESSAGES
from user_system.teleop.access import RULES as ROUTES

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


TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


def test_every_fault_names_tests_that_are_there():
    text = (ROOT / "docs" / "faults.md").read_text()
    named = TEST.findall(text)
    assert len(named) > 40
    lost = [
        f"{path}::{name}"
        for path, name in named
        if not (ROOT / path).exists()
        or not re.search(rf"^\s*def {name}\(", (ROOT / path).read_text(), re.MULTILINE)
    ]
    assert not lost


def test_every_fault_of_a_table_names_a_test_or_a_benchmark():
    text = (ROOT / "docs" / "faults.md").read_text()
    for heading in re.findall(r"^## (.*)$", text, re.MULTILINE)[:-1]:
        part = text.split(f"## {heading}\n")[1].split("\n## ")[0]
        rows = [line for line in part.splitlines() if line.startswith("| ")][1:]
        assert rows
        assert [row for row in rows if not (TEST.search(row) or "user-system bench" in row)] == []


@pytest.mark.parametrize("words", [Segment, End, Purpose], ids=lambda words: words.__name__)
def test_the_architecture_names_every_word_of_a_table(words):
    text = (ROOT / "docs" / "architecture.md").read_text()
    assert " ".join(word.name for word in words) in text


def table_of(page, heading):
    """Return the rows of the first table after a heading row, as tuples of cells."""
    lines = iter((ROOT / "docs" / page).read_text().splitlines())
    for line in lines:
        if line.replace(" ", "").startswith(heading.replace(" ", "")):
            break
    next(lines)
    rows = []
    for line in lines:
        if not line.startswith("|"):
            break
        rows.append(tuple(cell.strip() for cell in line.strip("|").split("|")))
    return rows


def test_the_roles_of_the_security_page_are_those_of_the_code():
    def roles(of):
        if set(of) == set(Role):
            return "everybody who is enrolled"
        return ", ".join(sorted(role.value for role in of)) or "nobody: the hub's own"

    methods = {(f"`{p.removeprefix('/user_system.v1.')}`", roles(r)) for p, r in CALLS.items()}
    assert set(table_of("security.md", "| method | roles |")) == methods
    kinds = {(kind, roles(of)) for kind, of in LANE.items()}
    assert set(table_of("security.md", "| message | roles |")) == kinds
    routes = {
        (f"`{method} {path}`", "without a login" if role is None else role.value)
        for (method, path), role in ROUTES.items()
    }
    assert set(table_of("security.md", "| route | least role |")) == routes
    messages = {(f"`{kind}`", role.value) for kind, role in MESSAGES.items()}
    assert set(table_of("security.md", "| message on the websocket | least role |")) == messages


def test_the_deeds_of_the_security_page_are_those_of_the_code():
    deeds = {(f"`{deed.value}`", text) for deed, text in MEANING.items()}
    assert set(table_of("security.md", "| deed | meaning |")) == deeds


def test_tests_that_the_security_page_names_are_there():
    text = (ROOT / "docs" / "security.md").read_text()
    named = set(re.findall(r"`(tests/[a-z_/]+\.py)`", text))
    assert len(named) > 5
    assert all((ROOT / path).exists() for path in named)
