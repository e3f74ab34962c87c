"""Settings, commands and routes are documented, and what is generated is fresh."""

from __future__ import annotations

import re

import pytest

from sarto.cli import reference
from sarto.settings import Settings
from tests.structure.sources import ROOT

DOCS = ROOT / "docs"


def test_every_setting_is_in_the_operations_page() -> None:
    page = (DOCS / "operations.md").read_text(encoding="utf-8")
    missing = [name for name in Settings.model_fields if f"`{name}`" not in page or f"SARTO_{name.upper()}" not in page]
    assert missing == []


@pytest.mark.parametrize("name", reference.pages())
def test_a_generated_page_is_what_make_docs_writes(name: str) -> None:
    assert (DOCS / name).read_text(encoding="utf-8") == reference.pages()[name], "run: make docs"


def test_every_link_between_our_pages_leads_somewhere() -> None:
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS.rglob("*.md"), *ROOT.glob("examples/**/*.md")]:
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            if not re.match(r"[a-z]+:", target):
                assert (page.parent / target).exists(), f"{page.relative_to(ROOT)} links to {target}"
