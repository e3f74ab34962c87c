"""The small parts of the engine: text streams, sampling, lanes, prefixes, adapter residency, memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from sarto.contract.common import BaseWeights
from sarto.engine.models.load import load_base
from sarto.engine.ops.lora_rows import compiled_rows
from sarto.engine.rendering.tokenizer import ChatTokenizer
from sarto.engine.serving.adapter_pool import AdapterKey, ResidentAdapters
from sarto.engine.serving.kv_cache import PREFIX_TOKENS, CacheShape, Lane, PrefixCache, width_for
from sarto.engine.serving.linear import Products
from sarto.engine.serving.request import Sampling
from sarto.engine.serving.sampling import Sampler, sample
from sarto.engine.serving.text_stream import TextStream
from sarto.errors import InvalidArgument
from tests.serving.making import make_adapter, request, running_engine, text_of
from tests.tiny import make_tiny_base

SHAPE = CacheShape(layers=2, kv_heads=2, head_dim=4, dtype=torch.float32, device=torch.device("cpu"))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseWeights:
    return make_tiny_base(tmp_path_factory.mktemp("base") / "llama")


@pytest.fixture(scope="module")
def tokenizer(base: BaseWeights) -> ChatTokenizer:
    return ChatTokenizer.load(base.folder)


@given(st.text(max_size=40), st.lists(st.text(min_size=1, max_size=4), max_size=3))
def test_streamed_text_is_the_text_before_the_first_stop(tokenizer: ChatTokenizer, text: str, stops: list[str]) -> None:
    stream = TextStream(tokenizer.stream(), stops)
    given_out = []
    for token in tokenizer.encode(text):
        given_out.append(stream.push(token))
        assert "\ufffd" not in given_out[-1] or "\ufffd" in text
        if stream.is_stopped:
            break
    given_out.append(stream.finish())
    # A stop counts once its last character is there, so the one that ends first wins, then the one that begins first.
    ends = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
    first = min(ends)[0] if ends else None
    expected = text if first is None else text[: min(b for e, b in ends if e == first)]
    assert "".join(given_out) == expected


def test_greedy_rows_take_the_likeliest_token_and_report_the_models_own_probability() -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0], [2.0, 0.0, 1.0]])
    picks = sample(logits, [Sampler(Sampling(temperature=0, logprobs=2)), Sampler(Sampling(temperature=0))])
    assert [pick.token for pick in picks] == [1, 0]
    assert picks[0].logprob == pytest.approx(float(logits[0].log_softmax(0)[1]))
    assert [token for token, _ in picks[0].top] == [1, 2]
    assert picks[1].top == []


def test_sampling_follows_the_distribution_within_top_k_and_top_p() -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()[None]
    sampler = Sampler(Sampling(temperature=1, top_k=3, top_p=0.8, seed=1))
    drawn = [sample(logits, [sampler])[0].token for _ in range(4000)]
    shares = [drawn.count(token) / len(drawn) for token in range(4)]
    # top-k leaves 0.95 of the mass, of which 0.8 needs two tokens: 0.5 and 0.3, renormalised.
    assert shares == pytest.approx([0.625, 0.375, 0, 0], abs=0.03)


def test_low_temperature_sharpens_and_a_tiny_top_p_is_greedy() -> None:
    logits = torch.tensor([[1.0, 1.2, 0.9]])
    cold = [sample(logits, [Sampler(Sampling(temperature=0.001, seed=seed))])[0].token for seed in range(20)]
    narrow = [sample(logits, [Sampler(Sampling(top_p=0.0, seed=seed))])[0].token for seed in range(20)]
    assert set(cold) == set(narrow) == {1}


def test_penalties_push_down_what_was_said() -> None:
    sampler = Sampler(Sampling(temperature=0, frequency_penalty=0.6))
    logits = torch.tensor([[1.0, 0.0]])
    assert [sample(logits, [sampler])[0].token for _ in range(4)] == [0, 0, 1, 0]


@given(st.integers(1, 20_000))
def test_a_lane_has_room_and_wastes_little(tokens: int) -> None:
    width = width_for(tokens)
    assert tokens <= width <= max(tokens + 64, 1.25 * tokens + 1)
    assert width_for(width) == width


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 20)), max_size=60))
def test_lanes_keep_every_sequence_apart_through_growth_and_removal(steps: list[tuple[bool, int]]) -> None:
    lane, expected = Lane(SHAPE, 64), []
    for number, (is_new, which) in enumerate(steps):
        if is_new or not expected:
            content = torch.full((2, 2, 2, 5, 4), float(number + 1))
            assert lane.take(content, 5) == len(expected)
            expected.append(content)
        else:
            slot = which % len(expected)
            moved = lane.drop(slot)
            expected[slot] = expected[moved]
            expected.pop()
        assert lane.count == len(expected)
        for slot, content in enumerate(expected):
            assert torch.equal(lane.content(slot)[:, :, :, :5], content)


def test_prefixes_are_found_by_tokens_and_adapter_and_dropped_by_least_use() -> None:
    piece_bytes = PREFIX_TOKENS * SHAPE.token_bytes
    cache = PrefixCache(SHAPE, 3 * piece_bytes)
    tokens = list(range(2 * PREFIX_TOKENS + 5))
    content = torch.randn(2, 2, 2, len(tokens), 4)
    cache.keep("a", tokens, content)
    found = cache.find("a", [*tokens[:-1], 9, 9, 9])
    assert torch.equal(torch.cat(found, 3), content[:, :, :, : 2 * PREFIX_TOKENS])
    assert cache.find("b", tokens) == []
    assert cache.find("a", [1, *tokens[1:]]) == []
    assert len(cache.find("a", tokens[: 2 * PREFIX_TOKENS])) == 1  # the last token must be computed
    other = [7, *tokens[1:]]
    cache.keep("a", other, content)
    assert cache.size_bytes == 3 * piece_bytes
    assert len(cache.find("a", other)) == 2
    assert len(cache.find("a", tokens)) == 1  # a beginning outlives what follows it
    cache.clear()
    assert cache.size_bytes == 0 and cache.find("a", other) == []
    long = list(range(5 * PREFIX_TOKENS))  # more than fits
    for seed in range(3):
        content = torch.randn(2, 2, 2, len(long), 4)
        cache.keep(str(seed), long, content)
        kept = cache.find(str(seed), long)
        assert torch.equal(torch.cat(kept, 3), content[:, :, :, : 3 * PREFIX_TOKENS])
        assert cache.size_bytes == 3 * piece_bytes
    nothing = PrefixCache(SHAPE, piece_bytes - 1)
    nothing.keep("a", tokens, content)
    assert nothing.find("a", tokens) == []


def test_keys_and_values_without_memory_are_told_as_that() -> None:
    """Which a bound run reports as such, and does not try again."""
    with pytest.raises(MemoryError, match="keys and values"):
        SHAPE.empty(1 << 40, 1 << 10)


def test_adapters_are_kept_by_use_and_never_evicted_while_they_work(base: BaseWeights, tmp_path: Path) -> None:
    decoder = load_base(base, torch.float32)
    adapters = ResidentAdapters(decoder, Products(decoder), limit=2)
    one, two, three = (make_adapter(base, tmp_path / str(n), rank=4, seed=n) for n in (1, 2, 3))
    assert adapters.acquire(one, None) is not None
    assert adapters.acquire(two, adapters.read(two)) is not None
    assert adapters.acquire(three, None) is None  # both are at work
    adapters.release(two)
    assert adapters.acquire(three, None) is not None
    assert one in adapters and two not in adapters
    assert adapters.acquire(one, None) is not None
    found = adapters.residency
    assert (found.hits, found.misses, found.evictions) == (1, 3, 1)


def test_adapters_of_different_rank_and_many_of_them_answer_as_they_do_alone(base: BaseWeights, tmp_path: Path) -> None:
    keys = [make_adapter(base, tmp_path / str(n), rank=(2, 8, 16, 30)[n % 4], seed=n) for n in range(12)]
    with running_engine(max_adapters=5) as asker:
        together = asker.wait([asker.send(base, request(), key) for key in keys])
        texts = [text_of(chunks) for chunks in together.values()]
        assert texts == [text_of(asker.ask(base, request(), key)) for key in keys]
        residency = asker.engine.metrics()["bases"][0]["adapters"]
    assert len(set(texts)) > 8
    assert residency["resident"] == 5
    assert residency["evictions"] >= 12


def test_an_adapter_that_cannot_be_read_or_does_not_fit_is_refused(base: BaseWeights, tmp_path: Path) -> None:
    key = make_adapter(base, tmp_path / "adapter")
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    wrong = {
        name: tensor[:, :-1].contiguous() if "q_proj.lora_A" in name else tensor for name, tensor in tensors.items()
    }
    save_file(wrong, tmp_path / "adapter" / "adapter_model.safetensors")
    with running_engine() as asker:
        with pytest.raises(InvalidArgument, match="does not fit the base"):
            asker.ask(base, request(), key)
        with pytest.raises(InvalidArgument, match="cannot be read"):
            asker.ask(base, request(), AdapterKey("missing", str(tmp_path / "nowhere")))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_compiled_row_adapters_equal_their_twin(dtype: torch.dtype) -> None:
    compiled = compiled_rows()
    if compiled is None:
        pytest.skip("the package was built without a compiler")
    generator = torch.Generator().manual_seed(0)
    rank, inputs, width, parts = 4, 300, 270, torch.tensor([0, 0, 1])
    x, a, b, y = (
        torch.randn(shape, generator=generator).to(dtype)
        for shape in ((5, inputs), (3, inputs, 2 * rank), (3, 3 * rank, width), (5, 3 * width))
    )
    slots = torch.tensor([2, -1, 0, 2], dtype=torch.int32)
    expected = y.float().clone()
    for row, slot in enumerate(slots.tolist()):
        if slot >= 0:
            factors = (x[row].float() @ a[slot].float()).view(2, rank)
            for block, part in enumerate(parts.tolist()):
                term = factors[part] @ b[slot].float()[block * rank : (block + 1) * rank]
                expected[row, block * width : (block + 1) * width] += term
    compiled.lora(x, slots, parts, a, b, rank, y)
    torch.testing.assert_close(y.float(), expected, rtol=1e-5 if dtype == torch.float32 else 1e-2, atol=1e-3)
