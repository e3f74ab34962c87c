"""Templates of rewards: `{{references.KEY}}`, and in prompts of an autorater `{{prompt}}`, `{{response}}` and
`{{system_instruction}}`. Values replace placeholders as plain text, once, in regular expressions too."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

PLACEHOLDER = re.compile(r"\{\{([^{}]*)\}\}")
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*")
REFERENCE = "references."
PROMPT, RESPONSE, SYSTEM_INSTRUCTION = "prompt", "response", "system_instruction"
PROMPT_NAMES = frozenset({PROMPT, RESPONSE, SYSTEM_INSTRUCTION})


def names(template: str) -> Iterator[str]:
    """The names of its placeholders. Double braces around anything but a name are text."""
    for match in PLACEHOLDER.finditer(template):
        name = match[1].strip()
        if name.startswith(REFERENCE) or NAME.fullmatch(name):
            yield name


def references(template: str) -> set[str]:
    """The keys of `references` that it names."""
    return {name.removeprefix(REFERENCE) for name in names(template) if name.startswith(REFERENCE)}


def fill(template: str, values: Mapping[str, str]) -> str:
    """The template with the placeholders that `values` names replaced; others are unchanged."""
    return PLACEHOLDER.sub(lambda match: values.get(match[1].strip(), match[0]), template)


def reference_values(example: Mapping[str, object]) -> dict[str, str]:
    """The references of a row, by the names of their placeholders."""
    found = example.get("references")
    return {f"{REFERENCE}{key}": str(value) for key, value in found.items()} if isinstance(found, dict) else {}
