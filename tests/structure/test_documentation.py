"""Settings, commands and routes are documented, and what is generated is fresh."""

from __future__ import annotations

import re

import pytest

from sarto.cli.docs import reference, settings_table
from sarto.settings import setting_names
from tests.structure.sources import ROOT

DOCS = ROOT / "docs"


def test_the_table_of_settings_is_what_make_docs_writes() -> None:
    page = (DOCS / "operations.md").read_text(encoding="utf-8")
    assert settings_table.with_table(page) == page, "run: make docs"
    assert [name for name in setting_names() if f"| `{name}` | `SARTO_{name.upper()}` |" not in page] == []


@pytest.mark.parametrize("name", reference.pages())
def test_a_generated_page_is_what_make_docs_writes(name: str) -> None:
    assert (DOCS / name).read_text(encoding="utf-8") == reference.pages()[name], "run: make docs"


def test_every_link_between_our_pages_leads_somewhere() -> None:
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS.rglob("*.md"), *ROOT.glob("examples/**/*.md")]:
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            if not re.match(r"[a-z]+:", target):
                assert (page.parent / target).exists(), f"{page.relative_to(ROOT)} links to {target}"


NAMED = re.compile(r"`((?:[a-z_]+/)*test_\w+\.py)(?:::(test_\w+))?`")


@pytest.mark.parametrize(("page", "folder"), [("api.md", "tests/conformance"), ("security.md", "tests")])
def test_every_test_that_a_page_names_is_there(page: str, folder: str) -> None:
    """Traps and threats each name the test that holds them."""
    named = NAMED.findall((DOCS / page).read_text(encoding="utf-8"))
    assert len(named) > 10
    for file, function in named:
        path = ROOT / (file if file.startswith("tests/") else f"{folder}/{file}")
        assert path.exists(), f"{page} names {file}"
        assert not function or f"def {function}(" in path.read_text(encoding="utf-8"), (
            f"{page} names {file}::{function}"
        )


@pytest.mark.parametrize("page", ["api.md", "security.md"])
def test_every_trap_and_every_threat_names_its_test(page: str) -> None:
    rows, is_held = 0, False
    for line in (DOCS / page).read_text(encoding="utf-8").splitlines():
        is_held = line.startswith("|") and (is_held or line.endswith("| Test |"))
        if is_held and not line.endswith("| Test |") and not line.startswith("|---"):
            rows += 1
            assert NAMED.search(line.rpartition("|")[0].rpartition("|")[2]), f"{page} has no test for: {line}"
    assert rows > 20
