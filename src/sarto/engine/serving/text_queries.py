"""Computations on a user's bytes outside generation, by name: prompts parsed and counted, datasets reported on,
instances scored. Loads no torch; `serving/preparation/program.py` runs them in processes with limits."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

from sarto.contract.common import BaseWeights
from sarto.contract.dataset_query import DatasetQuery
from sarto.engine.dataset_report.forecast import Machine
from sarto.engine.dataset_report.queries import dataset_report, dataset_row
from sarto.engine.rendering.tokenizer import ChatTokenizer
from sarto.engine.serving.grammars import GrammarTokens, check_grammar
from sarto.engine.serving.request import check_length, count_tokens, prompt_tokens, read_form, read_request
from sarto.errors import FailedPrecondition
from sarto.schema.generation import CountTokensRequest, GenerateContentRequest


class TextModel:
    """The text side of a base: tokenizer, template, vocabulary, context length."""

    def __init__(self, base: BaseWeights) -> None:
        self.base = base
        self.tokenizer = ChatTokenizer.load(base.folder)
        config = json.loads((Path(base.folder) / "config.json").read_text(encoding="utf-8"))
        self.context, self._vocabulary = int(config["max_position_embeddings"]), int(config["vocab_size"])

    @cached_property
    def grammars(self) -> GrammarTokens:
        return GrammarTokens(Path(self.base.folder), self._vocabulary, self.tokenizer.end_of_turn_ids)


def answer_text(known: TextModel, method: str, payload: dict[str, Any]) -> dict[str, Any]:
    """Run the function with this name. Raises its errors about the payload."""
    try:
        return TEXT_QUESTIONS[method](known, payload)
    except FileNotFoundError as error:
        raise FailedPrecondition(f"A file was deleted while it was read: {Path(error.filename or '').name}.") from None


def _read(known: TextModel, payload: dict[str, Any]) -> dict[str, Any]:
    """Parse a request for the worker."""
    prepared = read_request(GenerateContentRequest.read(payload), known.tokenizer, known.context)
    if prepared.grammar is not None:
        check_grammar(known.grammars, *prepared.grammar)
    return prepared.to_json()


def _render_prompt(known: TextModel, payload: dict[str, Any]) -> dict[str, Any]:
    """A request for another server: the prompt's token ids, those that end a reply, the functions that it may call, and
    its grammar (empty: none), which was checked for this base."""
    request = GenerateContentRequest.read(payload)
    check_length(request, known.tokenizer, known.context)
    form = read_form(request, known.tokenizer)
    if form.grammar is not None:
        check_grammar(known.grammars, *form.grammar)
    return {
        "token_ids": form.prompt,
        "end_ids": sorted(known.tokenizer.end_of_turn_ids),
        "functions": sorted(form.functions),
        "grammar": form.grammar[0] if form.grammar else "",
    }


def _count_tokens(known: TextModel, payload: dict[str, Any]) -> dict[str, Any]:
    return count_tokens(known.tokenizer, CountTokensRequest.read(payload)).to_json()


def _compute_tokens(known: TextModel, payload: dict[str, Any]) -> dict[str, Any]:
    """Token ids of a prompt and the text of each."""
    _, tokens = prompt_tokens(CountTokensRequest.read(payload), known.tokenizer)
    return {"ids": tokens, "texts": [known.tokenizer.token_text(token) for token in tokens]}


def _token_texts(known: TextModel, payload: dict[str, Any]) -> dict[str, Any]:
    return {"texts": [known.tokenizer.token_text(token) for token in payload["ids"]]}


def _data_report(known: TextModel, payload: dict[str, Any]) -> dict[str, Any]:
    question = DatasetQuery.model_validate(payload["question"])
    return dataset_report(known.base, known.tokenizer, question, Machine(**payload["machine"]))


def _show_row(known: TextModel, payload: dict[str, Any]) -> dict[str, Any]:
    return dataset_row(known.tokenizer, DatasetQuery.model_validate(payload["question"]))


TEXT_QUESTIONS: dict[str, Callable[[TextModel, dict[str, Any]], dict[str, Any]]] = {
    "read": _read,
    "render_prompt": _render_prompt,
    "count_tokens": _count_tokens,
    "compute_tokens": _compute_tokens,
    "token_texts": _token_texts,
    "data_report": _data_report,
    "show_row": _show_row,
}
