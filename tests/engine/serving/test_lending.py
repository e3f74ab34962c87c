"""A decoder that training lends to serving: the same answers, and the same weights when it comes back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sarto.contract.common import BaseWeights
from sarto.engine.models.decoder import GROUPS, Decoder
from sarto.engine.models.load import load_base
from sarto.engine.ops.select import choose_operations
from sarto.engine.serving.linear import _PlainProduct, product_in_torch
from sarto.engine.serving.linear_panels import PanelMatrix
from sarto.engine.serving.parity import certify
from tests.parity.test_decoder import OneSequence
from tests.parity.test_parity import rows, trainer_of
from tests.serving.making import make_adapter, request, running_engine, tokens_of
from tests.tiny import NoAdapters, make_tiny_base

CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=["llama", "gemma3"])
def base(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> BaseWeights:
    return make_tiny_base(tmp_path_factory.mktemp("base") / request.param, request.param)


def load(base: BaseWeights, dtype: torch.dtype) -> Decoder:
    decoder = load_base(base, dtype)
    decoder.ops = choose_operations(CPU)
    return decoder


def weights(decoder: Decoder) -> list[torch.Tensor]:
    return [decoder.layer(i).projection(group).weight for i in range(decoder.config.layers) for group in GROUPS]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_lent_decoder_answers_as_its_own_base_and_comes_back_as_it_was(
    base: BaseWeights, tmp_path: Path, dtype: str
) -> None:
    key = make_adapter(base, tmp_path / "adapter")
    asked = request("Tell me a story", temperature=1.0, seed=7, maxOutputTokens=60, responseLogprobs=True)
    with running_engine(dtype=dtype) as own:
        expected = [tokens_of(own.ask(base, asked, adapter)) for adapter in (None, key)]
    decoder = load(base, getattr(torch, dtype))
    before = [weight.clone() for weight in weights(decoder)]
    with running_engine(dtype=dtype) as asker:
        for _ in range(2):
            asker.engine.lend(base, decoder)
            assert [len(weight) for weight in weights(decoder)] == [0] * len(before)
            assert [tokens_of(asker.ask(base, asked, adapter)) for adapter in (None, key)] == expected
            asker.engine.give_back(base)
            assert all(torch.equal(*pair) for pair in zip(weights(decoder), before, strict=True))
            assert not any(weight.is_inference() for weight in weights(decoder))
        assert tokens_of(asker.ask(base, asked, key)) == expected[1]  # a base of its own, as before
    positions = torch.arange(3)
    stream = decoder(positions, positions, OneSequence(decoder.config), NoAdapters())
    assert torch.isfinite(stream).all()


def test_a_request_in_flight_ends_when_the_decoder_is_wanted_back(base: BaseWeights) -> None:
    decoder = load(base, torch.float32)
    with running_engine(dtype="float32") as asker:
        asker.engine.lend(base, decoder)
        sent = asker.send(base, request("x", maxOutputTokens=1500))
        asker.engine.give_back(base)
        with pytest.raises(Exception, match="not served here any more"):
            asker.wait([sent])
    assert all(len(weight) for weight in weights(decoder))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_certificate_over_the_trainers_own_weights_has_the_same_numbers(
    base: BaseWeights, tmp_path: Path, dtype: torch.dtype
) -> None:
    key = make_adapter(base, tmp_path / "adapter")
    decoder, trainer = load(base, dtype), trainer_of(base, key.folder, dtype)
    folder = Path(key.folder)
    apart = certify(base, folder, rows(), trainer, dtype=dtype, device=CPU)
    shared = certify(base, folder, rows(), trainer, dtype=dtype, device=CPU, lent=decoder)
    assert shared == apart and shared.passed
    assert all(len(weight) for weight in weights(decoder))


def test_what_cannot_be_lent_is_left_alone(base: BaseWeights, tmp_path: Path) -> None:
    quantised = base.model_copy(update={"quantisation": "int8"})
    decoder = load(quantised, torch.float32)
    with running_engine(dtype="float32") as asker:
        asker.engine.lend(quantised, decoder)
        assert all(len(weight) for weight in weights(decoder))
        asker.engine.lend(base, load(base, torch.bfloat16))
        assert asker.ask(base, request("x"))
        asker.engine.give_back(base)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_form_of_a_matrix_leads_back_to_it(dtype: torch.dtype) -> None:
    plain = torch.randn(50, 64).to(dtype)
    packed = product_in_torch(dtype, torch.device("cpu"))(plain, None)
    forms = [_PlainProduct(plain, None), packed, PanelMatrix.of(plain, None)]
    assert all(torch.equal(form.plain(), plain) for form in forms)
