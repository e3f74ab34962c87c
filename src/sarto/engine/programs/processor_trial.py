"""Test of a processor: products at the shapes of a base, as in training and serving, against float32.

`python -m sarto.engine.programs.processor_trial` reads {"level", "shapes"} from standard input and writes {"fault"}, a
description or nothing. Uninitialised memory is NaN here, so that a kernel that reads past its operands is detected.
`sarto.system.processor` starts it, with the instruction level in its environment.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from sarto.engine.ops.operands import bordered, roomy
from sarto.engine.ops.reference import LoraWeights
from sarto.engine.ops.select import choose_operations, native_dtype
from sarto.engine.serving.linear import product_in_torch
from sarto.engine.serving.linear_panels import NO_ADAPTERS, PanelMatrix, compiled_panels
from sarto.system.failpoints import planted

ROWS = (1, 31, 200)
"""A decoding row, a small batch of an odd size, a batch of training."""
RANK, HEAD, KEYS = 8, 64, 77
EPS = 1e-5
TOLERANCE = 2e-2
"""Share of the norm; bfloat16 rounds each number to within 4e-3."""
WRONG = "wrong products at"
"""Failpoint by which a test injects wrong products, with the levels where they occur."""


def fault(level: str, shapes: list[tuple[int, int]]) -> str:
    torch.set_deterministic_debug_mode("warn")  # fills uninitialised memory with NaN
    torch.manual_seed(0)
    spoil = level in planted(WRONG)
    for inputs, outputs in shapes:
        where = f"with {inputs} inputs and {outputs} outputs"
        try:
            for what, computed, expected in products(inputs, outputs):
                if spoil:
                    computed.view(-1)[-1] = float("nan")
                error = float((computed.float() - expected).norm() / expected.norm())
                if not error <= TOLERANCE:  # NaN too
                    return f"{what} {where} is off by {error:.2g}"
        except RuntimeError as refusal:
            return f"torch refuses products {where}: {str(refusal).partition(chr(10))[0]}"
    return ""


def products(inputs: int, outputs: int) -> Iterator[tuple[str, Tensor, Tensor]]:
    """(description, this processor's product, the product in float32), for one matrix."""
    dtype = native_dtype(torch.device("cpu"))
    weight = (torch.randn(outputs, inputs) / inputs**0.5).to(dtype)
    compiled = compiled_panels() if dtype == torch.bfloat16 and inputs % 2 == 0 else None
    in_torch = product_in_torch(dtype, weight.device)(weight, None) if compiled is None else None
    panels = PanelMatrix.of(weight, None) if compiled is not None else None
    for rows in ROWS:
        yield from _trained(weight, rows)
        x = roomy(weight, rows, inputs).copy_(torch.randn(rows, inputs))
        expected = x.float() @ weight.float().t()
        if compiled is not None and panels is not None:
            computed = x.new_empty(rows, outputs)
            panels.multiply(compiled, x, NO_ADAPTERS, computed)
            yield "a product of serving", computed, expected
        if in_torch is not None:
            terms = torch.randn(rows, outputs).to(dtype)
            yield "a product of serving", in_torch(x, None), expected
            yield "a product of serving with an adapter", in_torch(x, terms), expected + terms.float()
        q, k, v = (torch.randn(3, count, HEAD).to(dtype) for count in (rows, KEYS, KEYS))
        scores = torch.bmm(q, k.mT)
        yield "a product of attention", scores, torch.bmm(q.float(), k.float().mT)
        yield "a product of attention", torch.bmm(scores, v), torch.bmm(scores.float(), v.float())


def _trained(weight: Tensor, rows: int) -> Iterator[tuple[str, Tensor, Tensor]]:
    """A norm and a projection with an adapter, forward and backward: the norm leaves the free columns that the adapter
    uses."""
    (outputs, inputs), ops = weight.shape, choose_operations(torch.device("cpu"))
    x = torch.randn(rows, inputs).to(weight.dtype).requires_grad_()
    a = (torch.randn(RANK, inputs) / inputs**0.5).requires_grad_()
    b = torch.randn(outputs, RANK).requires_grad_()
    one = torch.ones(inputs)
    adapted = LoraWeights(bordered(weight, RANK), None, outputs, inputs, RANK, 1.0, ((0, outputs),), a, (b,))
    computed = ops.lora(ops.add_norm(None, x, one, EPS)[1], adapted)
    ours = [leaf.detach().to(weight.dtype).float().requires_grad_() for leaf in (x, a, b)]
    normed = F.rms_norm(ours[0], (inputs,), one, EPS)
    reference = normed @ weight.float().t() + (normed @ ours[1].t()) @ ours[2].t()
    direction = roomy(weight, rows, outputs).copy_(torch.randn(rows, outputs))
    gradients = torch.autograd.grad(computed, (x, a, b), direction)
    expected = torch.autograd.grad(reference, ours, direction.float())
    yield "a product of training", computed.detach(), reference.detach()
    for name, mine, theirs in zip(("inputs", "A", "B"), gradients, expected, strict=True):
        yield f"a gradient of training ({name})", mine, theirs


def main() -> int:
    trial = json.load(sys.stdin)
    print(json.dumps({"fault": fault(trial["level"], trial["shapes"])}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
