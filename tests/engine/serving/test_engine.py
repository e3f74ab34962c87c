"""The engine: batching that changes nothing, seeds, stops, limits, cancellation, queues."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sarto.contract.common import BaseWeights
from sarto.errors import InvalidArgument, ResourceExhausted, Unavailable
from sarto.schema.generation import GenerateContentRequest
from tests.control.homes import wait_until
from tests.serving.making import Asker, make_adapter, parts_of, request, running_engine, text_of, tokens_of
from tests.tiny import make_tiny_base


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseWeights:
    return make_tiny_base(tmp_path_factory.mktemp("base") / "llama")


@pytest.fixture(scope="module")
def asker() -> Iterator[Asker]:
    with running_engine(dtype="bfloat16") as asker:
        yield asker


def finish(chunks: list[dict], index: int = 0) -> str:  # type: ignore[type-arg]
    """Finish reason of a candidate."""
    found = [c["finishReason"] for chunk in chunks for c in chunk["candidates"]
             if c["index"] == index and "finishReason" in c]  # fmt: skip
    assert len(found) == 1
    return str(found[0])


def test_a_seeded_request_gives_the_same_bits_alone_and_in_a_crowd(
    asker: Asker, base: BaseWeights, tmp_path: Path
) -> None:
    key = make_adapter(base, tmp_path / "adapter")
    asked = request("Tell me a story", temperature=1.0, seed=7, maxOutputTokens=90, responseLogprobs=True)
    alone = tokens_of(asker.ask(base, asked, key))
    others = [
        asker.send(base, request("x" * length, temperature=1.5, maxOutputTokens=60), key if length % 2 else None)
        for length in range(1, 80, 6)
    ]
    sent = asker.send(base, asked, key)
    others += [asker.send(base, request("y" * 300, maxOutputTokens=5))]
    answers = asker.wait([sent, *others])
    assert tokens_of(answers[sent]) == alone
    assert len(alone) > 1


def test_different_seeds_and_no_seed_give_different_answers(asker: Asker, base: BaseWeights) -> None:
    answers = {text_of(asker.ask(base, request("Hi", temperature=2, topK=200, topP=1, maxOutputTokens=20, **seed)))
               for seed in ({"seed": 1}, {"seed": 2}, {}, {})}  # fmt: skip
    assert len(answers) == 4


def test_base_and_adapter_answer_differently_on_one_set_of_weights(
    asker: Asker, base: BaseWeights, tmp_path: Path
) -> None:
    key = make_adapter(base, tmp_path / "adapter", seed=9)
    assert text_of(asker.ask(base, request())) != text_of(asker.ask(base, request(), key))
    assert len([row for row in asker.engine.metrics()["bases"] if row["base"] == base.name]) == 1


def test_the_last_chunk_counts_tokens_and_every_chunk_names_the_answer(asker: Asker, base: BaseWeights) -> None:
    chunks = asker.ask(base, request("Hello", maxOutputTokens=9))
    assert finish(chunks) == "MAX_TOKENS"
    usage = chunks[-1]["usageMetadata"]
    assert usage["candidatesTokenCount"] == 9
    assert usage["totalTokenCount"] == usage["promptTokenCount"] + 9
    assert all("usageMetadata" not in chunk for chunk in chunks[:-1])
    assert len({chunk["responseId"] for chunk in chunks}) == 1
    assert {chunk["modelVersion"] for chunk in chunks} == {base.name}


def test_text_streams_while_it_is_generated_and_is_whole(asker: Asker, base: BaseWeights) -> None:
    chunks = asker.ask(base, request("Hello", maxOutputTokens=40, responseLogprobs=True))
    assert len(chunks) > 5
    ids = [token for token, _ in tokens_of(chunks)]
    assert text_of(chunks) == asker.engine.tokenizer(base).decode(ids)


def test_a_stop_sequence_ends_the_answer_before_it(asker: Asker, base: BaseWeights) -> None:
    whole = text_of(asker.ask(base, request("Hello", maxOutputTokens=40)))
    stop = whole[7:10]  # byte tokens: the sequence spans several
    chunks = asker.ask(base, request("Hello", maxOutputTokens=40, stopSequences=["never", stop]))
    assert text_of(chunks) == whole[: whole.find(stop)]
    assert finish(chunks) == "STOP"


def test_candidates_are_independent_and_reproducible(asker: Asker, base: BaseWeights) -> None:
    asked = request("Hello", temperature=1.8, topK=200, topP=1, seed=3, candidateCount=3, maxOutputTokens=15)
    chunks = asker.ask(base, asked)
    texts = [text_of(chunks, index) for index in range(3)]
    assert len(set(texts)) == 3
    again = asker.ask(base, asked)
    assert [text_of(again, index) for index in range(3)] == texts
    assert chunks[-1]["usageMetadata"]["candidatesTokenCount"] <= 45


def test_logprobs_name_the_chosen_token_and_its_rivals(asker: Asker, base: BaseWeights) -> None:
    chunks = asker.ask(base, request("Hello", responseLogprobs=True, logprobs=5, maxOutputTokens=4))
    results = [c["logprobsResult"] for chunk in chunks for c in chunk["candidates"] if "logprobsResult" in c]
    chosen = [row for result in results for row in result["chosenCandidates"]]
    top = [row["candidates"] for result in results for row in result["topCandidates"]]
    assert len(chosen) == len(top) == 4
    for best, rivals in zip(chosen, top, strict=True):
        assert len(rivals) == 5
        assert rivals[0] == best
        assert sorted((r["logProbability"] for r in rivals), reverse=True) == [r["logProbability"] for r in rivals]


def test_frequency_penalty_breaks_repetition(asker: Asker, base: BaseWeights) -> None:
    plain = [token for token, _ in tokens_of(asker.ask(base, request(maxOutputTokens=60, responseLogprobs=True)))]
    asked = request(maxOutputTokens=60, responseLogprobs=True, frequencyPenalty=2, presencePenalty=2)
    varied = [token for token, _ in tokens_of(asker.ask(base, asked))]
    assert len(set(varied)) > len(set(plain))


def test_a_prompt_longer_than_the_context_is_refused_with_numbers(asker: Asker, base: BaseWeights) -> None:
    with pytest.raises(InvalidArgument, match=r"The prompt has 2\d\d\d tokens; this model's context is 2048"):
        asker.ask(base, request("x" * 2100))


def test_an_answer_ends_where_the_context_ends(asker: Asker, base: BaseWeights) -> None:
    chunks = asker.ask(base, request("x" * 1900, maxOutputTokens=5000))
    assert chunks[-1]["usageMetadata"]["totalTokenCount"] == 2048
    assert finish(chunks) == "MAX_TOKENS"


def test_a_repeated_prompt_is_found_in_the_prefix_cache_and_answers_the_same(asker: Asker, base: BaseWeights) -> None:
    asked = request("Please consider this long and boring instruction very carefully. " * 3, responseLogprobs=True)
    first, second = asker.ask(base, asked), asker.ask(base, asked)
    assert tokens_of(first) == tokens_of(second)
    known = second[-1]["usageMetadata"]["cachedContentTokenCount"]
    assert 0 < known < second[-1]["usageMetadata"]["promptTokenCount"]


def test_adapters_do_not_share_prefixes(asker: Asker, base: BaseWeights, tmp_path: Path) -> None:
    asked = request("Please consider that other long and boring instruction very carefully. " * 3)
    asker.ask(base, asked)
    chunks = asker.ask(base, asked, make_adapter(base, tmp_path / "adapter", seed=4))
    assert "cachedContentTokenCount" not in chunks[-1]["usageMetadata"]


def known_of(chunks: list[dict[str, Any]]) -> int:
    return int(chunks[-1]["usageMetadata"].get("cachedContentTokenCount", 0))


def test_no_tenant_finds_remembered_what_another_one_asked_of_the_same_base(asker: Asker, base: BaseWeights) -> None:
    asked = request("What a tenant asks is nobody else's business, however long it may be. " * 3)
    numbers = [asker.send(base, asked, tenant=tenant) for tenant in ("alpha", "beta", "beta", "delta")]
    at_once = [known_of(chunks) for chunks in asker.wait(numbers).values()]
    assert at_once[:2] == [0, 0] and at_once[2] > 0 and at_once[3] == 0
    later = [known_of(asker.ask(base, asked, tenant=tenant)) for tenant in ("gamma", "alpha", "alph")]
    assert later[0] == later[2] == 0 < later[1]


def test_a_cancelled_request_frees_its_place(base: BaseWeights) -> None:
    with running_engine(max_rows=1) as asker:
        first = asker.send(base, request(maxOutputTokens=1900))
        second = asker.send(base, request("Second", maxOutputTokens=3))
        asker.first_chunk()
        asker.engine.cancel(first)
        chunks = asker.wait([second])[second]
        assert chunks[-1]["usageMetadata"]["candidatesTokenCount"] == 3
        asker.wait([asker.send(base, request(maxOutputTokens=1))])
        metrics = asker.engine.metrics()["bases"][0]
        assert metrics["generatedTokens"] < 1900


def test_a_full_queue_is_refused_with_a_retry_hint(base: BaseWeights) -> None:
    with running_engine(max_rows=1, queue_limit=2) as asker:
        asker.send(base, request(maxOutputTokens=1900))
        asker.first_chunk()
        asker.send(base, request())
        asker.send(base, request())
        with pytest.raises(ResourceExhausted) as refused:
            asker.send(base, request())
    assert refused.value.details[0]["retryDelay"].endswith("s")


def test_a_full_queue_makes_room_for_a_project_that_has_less_in_it(base: BaseWeights) -> None:
    with running_engine(max_rows=1, queue_limit=4) as asker:
        running = asker.send(base, request(maxOutputTokens=1900), tenant="greedy")
        asker.first_chunk()
        greedy = [asker.send(base, request(maxOutputTokens=1), tenant="greedy") for _ in range(4)]
        with pytest.raises(ResourceExhausted):
            asker.send(base, request(), tenant="greedy")
        modest = asker.send(base, request(maxOutputTokens=2), tenant="modest")
        with pytest.raises(ResourceExhausted, match="waiting already"):
            asker.wait([greedy[-1]])
        asker.engine.cancel(running)
        asker.wait([*greedy[:-1], modest])


def test_projects_take_turns_whatever_waits_before_them(base: BaseWeights) -> None:
    with running_engine(max_rows=1) as asker:
        running = asker.send(base, request(maxOutputTokens=1900), tenant="greedy")
        asker.first_chunk()
        greedy = [asker.send(base, request(maxOutputTokens=200), tenant="greedy") for _ in range(6)]
        modest = asker.send(base, request(maxOutputTokens=1), tenant="modest")
        asker.engine.cancel(running)
        asker.wait([modest])
        assert asker.engine.metrics()["bases"][0]["waiting"] >= 4
        for number in greedy:
            asker.engine.cancel(number)


def test_memory_admits_one_after_the_other(base: BaseWeights) -> None:
    with running_engine(cache_bytes=200_000) as asker:  # about 780 tokens of the tiny base
        sent = [asker.send(base, request("a" * 100, maxOutputTokens=300)) for _ in range(6)]
        asker.first_chunk()
        cache = asker.engine.metrics()["bases"][0]["cache"]
        assert 0 < cache["reservedTokens"] <= cache["limitTokens"]
        answers = asker.wait(sent)
    assert len({text_of(chunks) for chunks in answers.values()}) == 1


def test_closing_the_engine_ends_what_runs(base: BaseWeights) -> None:
    with running_engine() as asker:
        number = asker.send(base, request(maxOutputTokens=1900))
        asker.first_chunk()
    with pytest.raises(Unavailable):
        asker.wait([number])


def test_a_system_instruction_is_part_of_the_prompt(asker: Asker, base: BaseWeights) -> None:
    row = {"contents": [{"role": "user", "parts": [{"text": "Hello"}]}],
           "generationConfig": {"temperature": 0, "maxOutputTokens": 12}}  # fmt: skip
    told = asker.ask(base, GenerateContentRequest.read(row | {"systemInstruction": {"parts": [{"text": "Be rude."}]}}))
    assert text_of(told) != text_of(asker.ask(base, GenerateContentRequest.read(row)))


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"cachedContent": "cachedContents/1"}, "cachedContent"),
        ({"tools": [{"googleSearch": {}}]}, "googleSearch"),
        (
            {"contents": [{"role": "user", "parts": [{"inlineData": {"mimeType": "image/png", "data": "AA=="}}]}]},
            "image",
        ),
        ({"contents": [{"role": "user", "parts": [{"fileData": {"fileUri": "gs://b/a.pdf"}}]}]}, "file"),
        ({"generationConfig": {"temperature": 3}}, "temperature"),
        ({"generationConfig": {"candidateCount": 9}}, "candidate_count"),
        ({"generationConfig": {"logprobs": 3}}, "response_logprobs"),
        ({"generationConfig": {"responseModalities": ["AUDIO"]}}, "response_modalities"),
        ({"generationConfig": {"speechConfig": {"a": 1}}}, "speech_config"),
        ({"generationConfig": {"responseMimeType": "image/png"}}, "response_mime_type"),
        ({"modelArmorConfig": {"promptTemplateName": "x"}}, "modelArmorConfig"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(asker: Asker, base: BaseWeights, body: dict, named: str) -> None:  # type: ignore[type-arg]
    row = {"contents": [{"role": "user", "parts": [{"text": "Hi"}]}]} | body
    with pytest.raises(Exception, match=named) as refused:
        asker.ask(base, GenerateContentRequest.read(row))
    assert refused.type.__module__ == "sarto.errors"


def test_thinking_config_and_safety_settings_are_taken_without_effect(asker: Asker, base: BaseWeights) -> None:
    plain = request(thinkingConfig={"thinkingBudget": 0})
    plain.safety_settings = [{"category": "HARM_CATEGORY_HARASSMENT", "threshold": "BLOCK_NONE"}]
    assert parts_of(asker.ask(base, plain)) == parts_of(asker.ask(base, request()))


def test_requests_that_arrive_together_compute_a_shared_beginning_once(base: BaseWeights) -> None:
    system = "You are a careful assistant of a large library and answer in one short sentence. " * 3
    with running_engine() as asker:
        first = asker.send(base, request("wait", maxOutputTokens=300))
        sent = [asker.send(base, request(f"{system} Question {number}")) for number in range(5)]
        answers = asker.wait([first, *sent])
        known = [answers[number][-1]["usageMetadata"].get("cachedContentTokenCount", 0) for number in sent]
        texts = [text_of(answers[number]) for number in sent]
    assert known[0] < 64  # what the template itself begins with
    assert all(tokens >= len(system) // 2 for tokens in known[1:])
    with running_engine() as asker:
        assert texts == [text_of(asker.ask(base, request(f"{system} Question {n}"))) for n in range(5)]


def test_a_model_of_few_requests_is_unloaded_when_idle_and_loaded_again(base: BaseWeights) -> None:
    own = base.model_copy(update={"digest": "full-1"})
    with running_engine(dtype="bfloat16", idle_seconds=0.3) as asker:
        asker.ask(base, request())
        whole = text_of(asker.ask(own, request()))
        assert len(asker.engine.metrics()["bases"]) == 2
        wait_until(lambda: len(asker.engine.metrics()["bases"]) == 1)
        assert asker.engine.metrics()["bases"][0]["base"] == base.name and "full-1" not in asker.engine._texts
        assert text_of(asker.ask(own, request())) == whole
