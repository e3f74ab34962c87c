"""What a server may ask its worker beside generation, by name. The functions are the data stage's; this lists them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from sarto.engine.data.questions import dataset_report, dataset_row
from sarto.engine.serving.constraints import Grammar
from sarto.engine.serving.engine import Engine
from sarto.engine.serving.request import prompt_tokens, read_form
from sarto.errors import FailedPrecondition, InvalidArgument
from sarto.schema.generation import CountTokensRequest, GenerateContentRequest
from sarto.schema.runs import BaseWeights, DatasetQuestion


def answer_question(engine: Engine, base: BaseWeights | None, method: str, payload: dict[str, Any]) -> dict[str, Any]:
    """Raises InvalidArgument for an unknown method, and whatever the function says about its payload."""
    if method not in QUESTIONS:
        raise InvalidArgument(f"The worker knows no question {method!r}; known: {', '.join(QUESTIONS)}.")
    try:
        return QUESTIONS[method](engine, base, payload)
    except FileNotFoundError as error:
        raise FailedPrecondition(f"A file was deleted while it was read: {Path(error.filename or '').name}.") from None


def _metrics(engine: Engine, base: BaseWeights | None, payload: dict[str, Any]) -> dict[str, Any]:
    return engine.metrics()


def _forget_adapters(engine: Engine, base: BaseWeights | None, payload: dict[str, Any]) -> dict[str, Any]:
    engine.forget_adapters(payload["digests"])
    return {}


def _compute_tokens(engine: Engine, base: BaseWeights | None, payload: dict[str, Any]) -> dict[str, Any]:
    """Token ids of a prompt and the text of each, as base64 of UTF-8 the way the API shows them."""
    tokenizer = engine.tokenizer(_needed(base))
    _, tokens = prompt_tokens(CountTokensRequest.read(payload), tokenizer)
    return {"tokenIds": tokens, "tokens": [tokenizer.token_text(token) for token in tokens]}


def _prompt(engine: Engine, base: BaseWeights | None, payload: dict[str, Any]) -> dict[str, Any]:
    """A request read for another server: the prompt's token ids, those that end a reply, the functions it may call and
    the grammar it must follow (empty: none), which has a meaning for this base."""
    known = _needed(base)
    tokenizer = engine.tokenizer(known)
    form = read_form(GenerateContentRequest.read(payload), tokenizer)
    if form.grammar is not None:
        Grammar(engine.grammars(known), *form.grammar)
    return {
        "tokenIds": form.prompt,
        "endIds": sorted(tokenizer.end_of_turn_ids),
        "functions": sorted(form.functions),
        "grammar": form.grammar[0] if form.grammar else "",
    }


def _token_texts(engine: Engine, base: BaseWeights | None, payload: dict[str, Any]) -> dict[str, Any]:
    tokenizer = engine.tokenizer(_needed(base))
    return {"texts": [tokenizer.token_text(token) for token in payload["tokenIds"]]}


def _needed(base: BaseWeights | None) -> BaseWeights:
    if base is None:
        raise InvalidArgument("This question needs a model.")
    return base


def _data_report(engine: Engine, base: BaseWeights | None, payload: dict[str, Any]) -> dict[str, Any]:
    known = _needed(base)
    return dataset_report(known, engine.tokenizer(known), DatasetQuestion.model_validate(payload))


def _show_row(engine: Engine, base: BaseWeights | None, payload: dict[str, Any]) -> dict[str, Any]:
    return dataset_row(engine.tokenizer(_needed(base)), DatasetQuestion.model_validate(payload))


QUESTIONS: dict[str, Callable[[Engine, BaseWeights | None, dict[str, Any]], dict[str, Any]]] = {
    "metrics": _metrics,
    "forget_adapters": _forget_adapters,
    "compute_tokens": _compute_tokens,
    "prompt": _prompt,
    "token_texts": _token_texts,
    "data_report": _data_report,
    "show_row": _show_row,
}
LONG = frozenset({"data_report", "show_row"})
"""Questions that read whole files; the others are answered at once, whatever these take."""
