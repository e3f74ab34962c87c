"""The planner: nothing is computed twice or in vain, and no cut changes what is learned."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sarto.engine.tuning.packing import Batch, TokenizedExample, epoch_order, plan


def make(tokens: list[int], learned: list[int], line: int = 1) -> TokenizedExample:
    mask = np.zeros(len(tokens), dtype=np.bool_)
    mask[learned] = True
    return TokenizedExample(np.array(tokens, dtype=np.uint32), mask, line)


def sequences(batch: Batch) -> list[list[int]]:
    """Token ids of every sequence of a batch, read through its grids."""
    return [batch.tokens[row[row >= 0]].tolist() for grid in batch.grids for row in grid]


def predictions(batch: Batch) -> list[tuple[int, int]]:
    """(token of the row that is asked, target) of every target."""
    asked = batch.tokens[batch.rows[batch.picks]]
    return sorted(zip(asked.tolist(), batch.targets.tolist(), strict=True))


def test_tokens_after_the_last_learned_one_are_dropped_and_the_last_is_only_a_target() -> None:
    (batch,) = plan([make([1, 2, 3, 4, 5, 6], [2, 3])], 100)
    assert batch.tokens.tolist() == [1, 2, 3]
    assert predictions(batch) == [(2, 3), (3, 4)]
    assert batch.rendered_tokens == 6


def test_equal_prefixes_are_computed_once_at_every_depth() -> None:
    rows = [[1, 2, 3, 9], [1, 2, 3, 4, 9], [1, 2, 7, 9], [5, 9]]
    (batch,) = plan([make(tokens, [len(tokens) - 1], i) for i, tokens in enumerate(rows)], 100)
    assert len(batch.tokens) == len({(1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), (1, 2, 7), (5,)})
    assert sorted(sequences(batch)) == sorted(tokens[:-1] for tokens in rows)
    assert predictions(batch) == [(3, 9), (4, 9), (5, 9), (7, 9)]


def test_equal_examples_share_rows_but_keep_their_targets() -> None:
    (batch,) = plan([make([1, 2, 3], [2]), make([1, 2, 4], [2]), make([1, 2, 3], [2])], 100)
    assert batch.tokens.tolist() == [1, 2]
    assert batch.rows.tolist() == [1]
    assert sorted(batch.targets.tolist()) == [3, 3, 4]


def test_examples_that_teach_nothing_are_left_out_and_the_first_token_is_never_a_target() -> None:
    assert plan([make([1, 2, 3], [])], 100) == []
    assert plan([make([1, 2, 3], [0])], 100) == []


def test_whole_examples_are_packed_to_the_budget() -> None:
    rows = [make([i * 10 + j for j in range(8)], [7], i) for i in range(6)]
    batches = plan(rows, 15)
    assert [len(batch.tokens) for batch in batches] == [14, 14, 14]
    assert [len(batch.tokens) for batch in plan(rows, 3)] == [7] * 6
    assert sorted(line for batch in batches for line in batch.lines) == list(range(6))


tokens_and_masks = st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=1, max_size=12)


@settings(deadline=None, max_examples=200)
@given(st.lists(tokens_and_masks, min_size=1, max_size=8), st.integers(1, 40), st.booleans())
def test_every_learned_token_is_asked_once_behind_exactly_its_own_past(
    drawn: list[list[tuple[int, bool]]], budget: int, share: bool
) -> None:
    examples = [
        TokenizedExample(np.array([t for t, _ in row], dtype=np.uint32), np.array([m for _, m in row]), i)
        for i, row in enumerate(drawn)
    ]
    expected = sorted(
        (tuple(e.tokens[:i].tolist()), int(e.tokens[i]))
        for e in examples
        for i in range(1, len(e.tokens))
        if e.loss_mask[i]
    )
    found = []
    for batch in plan(examples, budget, share_prefixes=share):
        past = {}
        for grid in batch.grids:
            for cells in grid:
                rows = cells[cells >= 0].tolist()
                for at, row in enumerate(rows):
                    assert batch.positions[row] == at
                    past[row] = tuple(batch.tokens[rows[: at + 1]].tolist())
        assert set(past) == set(range(len(batch.tokens)))
        asked = batch.rows[batch.picks].tolist()
        found += [(past[row], target) for row, target in zip(asked, batch.targets.tolist(), strict=True)]
        assert torch.equal(batch.rows, batch.rows.unique())
    assert sorted(found) == expected


def test_an_epochs_order_is_a_permutation_that_only_seed_and_epoch_decide() -> None:
    first = epoch_order(50, 1, 1)
    assert sorted(first.tolist()) == list(range(50))
    assert first.tolist() == epoch_order(50, 1, 1).tolist()
    assert first.tolist() != epoch_order(50, 1, 2).tolist() != epoch_order(50, 2, 2).tolist()
