"""The prompts of a run that learns from rewards: which train and which validate, and their rows for the reward."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sarto.conversations.conversation import Turn
from sarto.conversations.examples import Example, parse_line, read_row, references_of
from sarto.conversations.generation_request import request_of
from sarto.engine.dataset.prepare import PreparedDataset
from sarto.engine.tuning.packing import TokenizedRows, epoch_order
from sarto.errors import FieldViolation, InvalidArgument

HELD_OUT_SHARE, HELD_OUT_ROWS, MOST_SHARE = 0.25, 50, 0.5
"""Without validation data the larger of these is held out of the training data, but at most the last share of it."""
NAMED_LINES = 20


@dataclass(frozen=True)
class PartOfRows:
    """Some of the rows of a dataset."""

    rows: TokenizedRows
    numbers: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.numbers)

    def tokens(self, index: int) -> npt.NDArray[np.uint32]:
        return self.rows.tokens(int(self.numbers[index]))

    def loss_mask(self, index: int) -> npt.NDArray[np.bool_]:
        return self.rows.loss_mask(int(self.numbers[index]))

    def line(self, index: int) -> int:
        return self.rows.line(int(self.numbers[index]))

    def reference(self, index: int) -> float:
        return self.rows.reference(int(self.numbers[index]))


def split(count: int, seed: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], str]:
    """Numbers of the rows that train and of those that are held out, both in order, and a sentence about it. Raises
    InvalidArgument for a single row."""
    if count < 2:
        raise InvalidArgument("One prompt is not enough to train and to validate; add prompts or a validation dataset.")
    held_out = max(round(HELD_OUT_SHARE * count), HELD_OUT_ROWS)
    capped = min(held_out, int(MOST_SHARE * count))
    order = epoch_order(count, seed, 0)
    words = f"Without validation data {capped} of {count} prompts are held out for it"
    if capped < held_out:
        words += f", half of them instead of {held_out}; give a validation dataset or more prompts"
    return np.sort(order[capped:]), np.sort(order[:capped]), f"{words}."


def example_of(prepared: PreparedDataset, line: int) -> dict[str, Any]:
    """A row as rewards see it: the conversation and its references, in camelCase."""
    raw = prepared.raw(line)
    example = request_of(conversation_of(prepared, line)).to_json()
    return example | {"references": references_of(read_row(raw, line))}


def conversation_of(prepared: PreparedDataset, line: int) -> Example:
    return parse_line(prepared.raw(line), line, data_format="reinforcement")


def answered(prepared: PreparedDataset, line: int, text: str) -> Example:
    """The row with an answer, for the comparison of serving and training; a stand-in for an empty answer."""
    prompt = conversation_of(prepared, line)
    return Example((*prompt.turns, Turn("model", text if text.strip() else "?")), prompt.tools, line, prompt.format)


def check_references(prepared: PreparedDataset, lines: Iterable[int], needed: frozenset[str]) -> None:
    """Raises InvalidArgument with the lines that lack a value which the reward names."""
    missing = [
        (line, sorted(lacking))
        for line in lines
        if (lacking := needed - references_of(read_row(prepared.raw(line), line)).keys())
    ]
    if not missing:
        return
    words = [f"line {line} has no references.{lacking[0]}" for line, lacking in missing[:NAMED_LINES]]
    more = f" and {len(missing) - NAMED_LINES} more lines" if len(missing) > NAMED_LINES else ""
    violations = [
        FieldViolation(f"{prepared.name} line {line}", f"references.{name} is missing; the reward names it.")
        for line, lacking in missing[:NAMED_LINES]
        for name in lacking
    ]
    raise InvalidArgument(
        f"{prepared.name}: the reward names references that rows do not have: {'; '.join(words)}{more}. Add them to "
        "each row, or change the reward.",
        violations,
    )


def lines_of(rows: TokenizedRows) -> Sequence[int]:
    return [rows.line(index) for index in range(len(rows))]
