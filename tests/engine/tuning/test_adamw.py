"""Our optimiser takes the steps of torch's."""

from __future__ import annotations

import pytest
import torch

from sarto.engine.tuning.adamw import AdamW


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_steps_equal_torchs(weight_decay: float) -> None:
    draw = torch.Generator().manual_seed(0)
    start = torch.randn(500, generator=draw)
    theirs = torch.nn.Parameter(start.clone())
    reference = torch.optim.AdamW([theirs], weight_decay=weight_decay)
    values = start.clone()
    ours = AdamW(values, weight_decay)
    for number in range(1, 20):
        gradient = torch.randn(500, generator=draw) * 10.0 ** (number % 5 - 3)
        theirs.grad = gradient.clone()
        reference.param_groups[0]["lr"] = 1e-2 / number
        reference.step()
        ours.step(gradient, 1e-2 / number)
        torch.testing.assert_close(values, theirs.detach(), rtol=1e-6, atol=1e-6)
