"""Every set of operations computes the same: values and gradients of the plain, the fused and the compiled ones."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from sarto.engine.ops.eager_kernels import EagerKernels
from sarto.engine.ops.fused import FusedOperations
from sarto.engine.ops.library import find_library, libraries
from sarto.engine.ops.native import CompiledKernels
from sarto.engine.ops.operands import bordered
from sarto.engine.ops.reference import HeadShape, LoraWeights, Operations, PlainOperations
from sarto.engine.ops.segments import Segments, blocks, seen
from sarto.engine.ops.select import choose_operations

SHAPE = HeadShape(4, 2, 8)
ROWS = 150
WIDTH = SHAPE.total * SHAPE.head_dim
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 2e-2}
Result = tuple[list[Tensor], list[Tensor]]


def fast() -> list[Operations]:
    """Our kernels in every build that this processor runs: what is right in one may be wrong in another."""
    kernels = [EagerKernels(), *(CompiledKernels(library) for library in libraries())]
    return [FusedOperations(each) for each in kernels]


@pytest.fixture(params=fast(), ids=lambda ops: ops.name)
def ops(request: pytest.FixtureRequest) -> Operations:
    found: Operations = request.param
    return found


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    found: torch.dtype = request.param
    return found


def draw(*size: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed + sum(size))).to(dtype)


def results(compute: Callable[..., Tensor | tuple[Tensor, ...]], *inputs: Tensor) -> Result:
    """Values, and the gradients of all inputs for a drawn direction."""
    leaves = [each.detach().clone().requires_grad_() for each in inputs]
    answer = compute(*leaves)
    values = [each for each in (answer if isinstance(answer, tuple) else (answer,)) if each.is_floating_point()]
    torch.autograd.backward(values, [draw(*each.shape, dtype=each.dtype, seed=7) for each in values])
    gradients = [leaf.grad for leaf in leaves if leaf.grad is not None]
    return [each.detach() for each in values], gradients


def assert_close(found: Result, expected: Result, dtype: torch.dtype) -> None:
    for mine, theirs in ((found[0], expected[0]), (found[1], expected[1])):
        assert len(mine) == len(theirs)
        for left, right in zip(mine, theirs, strict=True):
            assert left.dtype == right.dtype
            assert (left.float() - right.float()).norm() <= TOLERANCE[dtype] * right.float().norm()


def test_add_norm(ops: Operations, dtype: torch.dtype) -> None:
    stream, delta, weight = draw(ROWS, 48), draw(ROWS, 48, dtype=dtype), draw(48)

    def both(kind: Operations) -> Result:
        return results(lambda s, d: kind.add_norm(s, d, weight, 1e-5), stream, delta)

    assert_close(both(ops), both(PlainOperations()), dtype)


def test_norm_of_heads(ops: Operations, dtype: torch.dtype) -> None:
    x, weight = draw(ROWS, 4, 8, dtype=dtype), draw(8)

    def both(kind: Operations) -> Result:
        return results(lambda t: kind.norm(t, weight, 1e-6), x)

    assert_close(both(ops), both(PlainOperations()), dtype)


def test_rotate(ops: Operations, dtype: torch.dtype) -> None:
    qkv, angles = draw(ROWS, WIDTH, dtype=dtype), draw(ROWS, 4)

    def both(kind: Operations) -> Result:
        return results(lambda t: kind.rotate(t, angles.cos(), angles.sin(), SHAPE, 0.3), qkv)

    assert_close(both(ops), both(PlainOperations()), dtype)


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
def test_gated(ops: Operations, dtype: torch.dtype, activation: str) -> None:
    gate_up = draw(ROWS, 96, dtype=dtype) * 3

    def both(kind: Operations) -> Result:
        return results(lambda t: kind.gated(t, activation), gate_up)  # type: ignore[arg-type]

    assert_close(both(ops), both(PlainOperations()), dtype)


@pytest.mark.parametrize("rank", [1, 4, 40])
@pytest.mark.parametrize("has_bias", [False, True])
def test_lora(ops: Operations, dtype: torch.dtype, rank: int, has_bias: bool) -> None:
    cuts, inputs, outputs = ((0, 10), (22, 14)), 24, 36
    matrix = bordered(draw(outputs, inputs, dtype=dtype), 2 * rank)
    bias = draw(outputs, dtype=dtype) if has_bias else None
    x, a = draw(ROWS, inputs, dtype=dtype), draw(2 * rank, inputs)
    b = [draw(rows, rank) for _, rows in cuts]

    def both(kind: Operations) -> Result:
        return results(
            lambda t, a, *b: kind.lora(t, LoraWeights(matrix, bias, outputs, inputs, rank, 0.5, cuts, a, b)), x, a, *b
        )

    assert_close(both(ops), both(PlainOperations()), dtype)


def make_segments(lengths: list[list[int]]) -> Segments:
    """Grids of sequences; the first ten rows are a prefix of every sequence."""
    count, grids = 10, []
    for group in lengths:
        grid = torch.full((len(group), max(group)), -1)
        for cells, length in zip(grid, group, strict=True):
            cells[:10] = torch.arange(10)
            cells[10:length] = torch.arange(count, count + length - 10)
            count += length - 10
        grids.append(grid)
    return Segments.of(tuple(grids), count)


@pytest.mark.parametrize("window", [None, 5, 70])
@pytest.mark.parametrize("keep", [True, False])
def test_attend(ops: Operations, dtype: torch.dtype, window: int | None, keep: bool) -> None:
    segments = make_segments([[16, 12, 14], [200, 190]])
    qkv = draw(len(segments.first), WIDTH, dtype=dtype)

    def both(kind: Operations) -> Result:
        return results(lambda t: kind.attend(t, segments, SHAPE, window, keep), qkv)

    assert_close(both(ops), both(PlainOperations()), dtype)


def paired_segments(answers: list[tuple[int, int]], prompt: int = 150) -> Segments:
    """Two grids: prompts with an answer, then the same prompts with another; answers have these lengths."""
    count, grids = 0, [torch.full((len(answers), prompt + max(column)), -1) for column in zip(*answers, strict=True)]
    for at, lengths in enumerate(answers):
        own = torch.arange(count, count + prompt)
        count += prompt
        for grid, length in zip(grids, lengths, strict=True):
            grid[at, : prompt + length] = torch.cat([own, torch.arange(count, count + length)])
            count += length
    return Segments.of(tuple(grids), count)


@pytest.mark.parametrize("window", [None, 5, 70])
@pytest.mark.parametrize("keep", [True, False])
def test_attend_computes_the_queries_of_a_repeated_prompt_once(
    ops: Operations, dtype: torch.dtype, window: int | None, keep: bool
) -> None:
    segments = paired_segments([(10, 30), (60, 8), (5, 5)])
    assert [grid.skip for grid in segments.grids] == [0, 144]  # of 150, in steps of 16
    qkv = draw(len(segments.first), WIDTH, dtype=dtype)

    def both(kind: Operations) -> Result:
        return results(lambda t: kind.attend(t, segments, SHAPE, window, keep), qkv)

    assert_close(both(ops), both(PlainOperations()), dtype)


def test_a_sequence_that_is_repeated_whole_has_no_query_of_its_own(ops: Operations) -> None:
    grid = torch.arange(32)[None]
    segments = Segments.of((grid, grid), 32)
    assert segments.grids[1].skip == 32
    qkv = draw(32, WIDTH)

    def both(kind: Operations) -> Result:
        return results(lambda t: kind.attend(t, segments, SHAPE, None, True), qkv)

    assert_close(both(ops), both(PlainOperations()), torch.float32)


def test_token_loss_and_its_count(ops: Operations, dtype: torch.dtype) -> None:
    hidden, head = draw(ROWS, 24, dtype=dtype), draw(70, 24, dtype=dtype)
    targets = torch.randint(0, 70, (ROWS,), generator=torch.Generator().manual_seed(1))
    targets[:50] = (hidden[:50] @ head.t()).argmax(-1)

    def both(kind: Operations) -> tuple[Result, int]:
        def loss(t: Tensor) -> Tensor:
            return kind.token_loss(t, head, targets)[0]  # each has a factor of its own in what follows

        return results(loss, hidden), int(kind.token_loss(hidden, head, targets)[1])

    found, right = both(ops)
    expected, wanted = both(PlainOperations())
    assert_close(found, expected, dtype)
    assert right == wanted >= 50


def test_sums_over_a_whole_vocabulary_lose_no_digits(ops: Operations) -> None:
    hidden, head = draw(8, 24), draw(49_152, 24)
    targets = torch.arange(8)

    def both(kind: Operations, x: Tensor, weights: Tensor) -> Result:
        return results(lambda t: kind.token_loss(t, weights, targets)[0], x)

    exact = both(PlainOperations(), hidden.double(), head.double())
    found = both(ops, hidden, head)
    for mine, theirs in zip((*found[0], *found[1]), (*exact[0], *exact[1]), strict=True):
        assert (mine - theirs).norm() <= 5e-6 * theirs.norm()


def test_a_loss_that_is_not_finite_is_not_hidden(ops: Operations, dtype: torch.dtype) -> None:
    hidden = draw(4, 24, dtype=dtype)
    hidden[2, 3] = float("nan")
    losses, _ = ops.token_loss(hidden, draw(70, 24, dtype=dtype), torch.tensor([1, 2, 3, 4]))
    assert torch.isfinite(losses).tolist() == [True, True, False, True]


@pytest.mark.parametrize("window", [None, 1, 64, 100])
@pytest.mark.parametrize("length", [1, 16, 64, 208, 1000])
@pytest.mark.parametrize("skip", [0, 16, 192])
def test_blocks_see_every_pair_once(length: int, window: int | None, skip: int) -> None:
    found = torch.zeros(length, length, dtype=torch.int64)
    cuts = list(blocks(length, window, skip))
    for block in cuts:
        found[block.first : block.last, block.low : block.last] += seen(block, window, torch.device("cpu")).long()
    place = torch.arange(length)
    distance = place[:, None] - place
    expected = (distance >= 0) & (distance < (window or length)) & (place >= skip)[:, None]
    assert torch.equal(found, expected.long())
    assert all(before.last == after.first for before, after in pairwise(cuts))


def test_the_compiled_file_was_built_here_and_is_chosen() -> None:
    """Development and CI machines have a compiler; without one this test says that the slow twin is in use."""
    assert find_library() is not None
    assert choose_operations(torch.device("cpu")).name.startswith("fused, compiled")


def test_there_is_one_openmp_runtime_and_it_is_torchs() -> None:
    program = (
        "import torch; from sarto.engine.ops.select import choose_operations as c; torch.set_num_threads(2);"
        "o = c(torch.device('cpu')); o.gated(torch.randn(64, 64), 'silu');"
        "print({l.split()[-1] for l in open('/proc/self/maps') if 'gomp' in l or 'omp5' in l})"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.count("gomp") == 1, done.stdout
    assert "/torch/" in done.stdout
