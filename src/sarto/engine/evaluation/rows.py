"""Rows of an evaluation dataset: what to ask, what answer is wanted, and the fields a template may use.

Reads every format training reads, also rows without a reply, and rows with fields of their own beside. Knows no models.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from sarto.schema.evaluation import RESPONSE_FIELDS, ROW_FIELDS
from sarto.schema.examples import DataFormat, Example, RowFault, Turn, parse_line, read_conversation, read_row
from sarto.schema.generation import (
    Content,
    FunctionCall,
    FunctionDeclaration,
    FunctionResponse,
    GenerateContentRequest,
    GenerationConfig,
    Part,
    Tool,
)
from sarto.schema.turns import check_json

FORMAT_KEYS = frozenset({
    "contents", "systemInstruction", "system_instruction", "tools", "generationConfig", "generation_config", "messages",
    "context", "input_text", "output_text", "prompt", "completion",
})  # fmt: skip
SPEAKERS = {"user": "User", "model": "Model", "tool": "Function", "system": "System"}


@dataclass(frozen=True)
class EvaluationRow:
    """`line` is 1-based. `reference` is None where the row wants no answer in particular. `fields` are texts by name:
    the prompt, the system instruction, the reference, and whatever else the row brings."""

    line: int
    request: GenerateContentRequest
    prompt: str
    reference: str | None = None
    fields: dict[str, str] = field(default_factory=dict)


def read_rows(
    path: Path, *, data_format: DataFormat = "auto", limit: int | None = None
) -> tuple[list[EvaluationRow], list[RowFault]]:
    """Usable rows in order, and why each other one is not; blank lines are passed over."""
    with path.open("rb") as lines:
        return rows_from(lines, data_format=data_format, limit=limit)


def rows_from(
    lines: Iterable[bytes], *, data_format: DataFormat = "auto", limit: int | None = None
) -> tuple[list[EvaluationRow], list[RowFault]]:
    """`read_rows` from lines at hand. `limit`: rows at most."""
    rows: list[EvaluationRow] = []
    faults: list[RowFault] = []
    for number, raw in enumerate(lines, 1):
        if limit is not None and len(rows) >= limit:
            break
        if not raw.strip():
            continue
        try:
            rows.append(read_evaluation_row(raw, number, data_format=data_format))
        except RowFault as fault:
            fault.line = number
            faults.append(fault)
    return rows, faults


def read_evaluation_row(raw: bytes, line: int, *, data_format: DataFormat = "auto") -> EvaluationRow:
    """One line. A conversation that ends with a reply is asked without it and the reply is the reference; `reference`
    beside a prompt does the same. Raises RowFault."""
    row = read_row(raw, line)
    own = {name: value for name, value in row.items() if name not in FORMAT_KEYS and value is not None}
    reference = own.pop("reference", None)
    fields = {name: _text_field(name, value) for name, value in own.items()}
    kept = {name: value for name, value in row.items() if name in FORMAT_KEYS and value is not None}
    if set(kept) == {"prompt"} and isinstance(kept["prompt"], str):
        kept = {"contents": [{"role": "user", "parts": [{"text": kept["prompt"]}]}]}
    if reference is not None or _ends_with_question(kept):
        return row_from_example(read_conversation(kept, line), _reference(reference), fields)
    plain = raw if len(kept) == len(row) else orjson.dumps(kept)
    example = parse_line(plain, line, data_format=data_format)
    question = Example(example.turns[:-1], example.tools, line, example.format)
    return row_from_example(question, turn_text(example.turns[-1]), fields)


def row_from_example(
    question: Example, reference: str | None = None, fields: dict[str, str] | None = None
) -> EvaluationRow:
    """A row from a conversation to continue and the answer it should get."""
    system = next((turn.text for turn in question.turns if turn.role == "system"), "")
    turns = [turn for turn in question.turns if turn.role != "system"]
    request = GenerateContentRequest(
        contents=[_content(turn) for turn in turns],
        system_instruction=Content(parts=[Part(text=system)]) if system else None,
        tools=[Tool(function_declarations=[_declaration(tool) for tool in question.tools])] if question.tools else [],
    )
    prompt = turns[0].text if len(turns) == 1 else "\n".join(f"{SPEAKERS[t.role]}: {turn_text(t)}" for t in turns)
    known = {"prompt": prompt, "system_instruction": system, **(fields or {})}
    if reference is not None:
        known["reference"] = reference
    return EvaluationRow(question.line, request, prompt, reference, known)


def turn_text(turn: Turn) -> str:
    """A turn as text to compare: what it says, and its calls or responses as JSON lines with sorted keys."""
    calls = [{"name": call.name, "args": call.arguments} for call in turn.calls]
    responses = [{"name": response.name, "response": response.content} for response in turn.responses]
    return "\n".join([*([turn.text] if turn.text else []), *map(json_text, calls), *map(json_text, responses)])


def reply_text(content: Content | None) -> str:
    """The same of a generated reply, thoughts left out."""
    lines: list[str] = []
    text = ""
    for part in content.parts if content else ():
        if part.function_call is not None:
            lines.append(json_text({"name": part.function_call.name, "args": part.function_call.args or {}}))
        elif part.text is not None and not part.thought:
            text += part.text
    return "\n".join([*([text] if text else []), *lines]).encode("utf-8", "replace").decode()


def json_text(value: Any) -> str:
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS).decode()


def shared_fields(rows: Sequence[EvaluationRow]) -> frozenset[str]:
    """Names of the fields that every row has; those are what a template may ask for."""
    names = set(rows[0].fields) if rows else set(ROW_FIELDS)
    for row in rows:
        names &= row.fields.keys()
    return frozenset(names)


def default_generation_config(rows: Sequence[EvaluationRow]) -> GenerationConfig:
    """Greedy, and half again as long as the longest reference can be, so that a model that never ends costs little."""
    longest = max((len(row.reference.encode()) for row in rows if row.reference is not None), default=4096)
    return GenerationConfig(temperature=0.0, max_output_tokens=min(4096, 64 + longest * 3 // 4))


def _ends_with_question(row: dict[str, Any]) -> bool:
    contents = row.get("contents")
    if not isinstance(contents, list) or not contents or not isinstance(contents[-1], dict):
        return False
    role = contents[-1].get("role")
    return role in ("user", "function", "tool") or (role is None and len(contents) == 1)


def _reference(value: object) -> str | None:
    return value if value is None or isinstance(value, str) else _text_field("reference", value)


def _text_field(name: str, value: object) -> str:
    if name in RESPONSE_FIELDS:
        raise RowFault(name, "an answer", "rows without answers", "rename the field; the models give the answers")
    check_json(value, name)
    return value if isinstance(value, str) else json_text(value)


def _content(turn: Turn) -> Content:
    parts = [Part(text=turn.thought, thought=True)] if turn.thought else []
    parts += [Part(text=turn.text)] if turn.text else []
    parts += [Part(function_call=FunctionCall(id=c.id, name=c.name, args=c.arguments)) for c in turn.calls]
    for response in turn.responses:
        content = response.content if isinstance(response.content, dict) else {"result": response.content}
        parts.append(Part(function_response=FunctionResponse(id=response.id, name=response.name, response=content)))
    return Content(role="model" if turn.role == "model" else "user", parts=parts)


def _declaration(tool: dict[str, Any]) -> FunctionDeclaration:
    return FunctionDeclaration(
        name=tool["name"],
        description=tool["description"],
        parameters_json_schema=tool["parameters"],
        response_json_schema=tool.get("response"),
    )
