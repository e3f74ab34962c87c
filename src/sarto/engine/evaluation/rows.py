"""Rows of an evaluation dataset: the prompt, the reference, and the fields of a template.

Reads every format of training, rows without a reply, and rows with further fields. Knows no models.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from sarto.conversations.conversation import checked_json
from sarto.conversations.examples import DataFormat, Example, RowFault, Turn, parse_line, read_conversation, read_row
from sarto.conversations.gemini_rows import listed
from sarto.conversations.generation_request import request_of
from sarto.schema.evaluation import RESPONSE_FIELDS, ROW_FIELDS
from sarto.schema.generation import Content, GenerateContentRequest, GenerationConfig

FORMAT_KEYS = frozenset({
    "contents", "systemInstruction", "system_instruction", "tools", "generationConfig", "generation_config", "messages",
    "context", "input_text", "output_text", "prompt", "completion",
})  # fmt: skip
SPEAKERS = {"user": "User", "model": "Model", "tool": "Function", "system": "System"}


@dataclass(frozen=True)
class EvaluationRow:
    """`line` is 1-based. `reference` is None for a row without a reference answer. `fields` are texts by name: the
    prompt, the system instruction, the reference, and the other fields of the row."""

    line: int
    request: GenerateContentRequest
    prompt: str
    reference: str | None = None
    fields: dict[str, str] = field(default_factory=dict)


def read_rows(
    path: Path, *, data_format: DataFormat = "auto", limit: int | None = None
) -> tuple[list[EvaluationRow], list[RowFault]]:
    """Usable rows in order, and the fault of each other row; blank lines are skipped."""
    with path.open("rb") as lines:
        return rows_from(lines, data_format=data_format, limit=limit)


def rows_from(
    lines: Iterable[bytes], *, data_format: DataFormat = "auto", limit: int | None = None
) -> tuple[list[EvaluationRow], list[RowFault]]:
    """`read_rows` on lines in memory. `limit` is the most rows."""
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
    """Read one line. A final reply is the reference and not part of the prompt; so are `reference` beside a prompt, and
    the preferred completion of a pair. Raises RowFault."""
    if data_format == "preference":
        return _row_to_answer(parse_line(raw, line, data_format=data_format), {})
    row = read_row(raw, line)
    own = {name: value for name, value in row.items() if name not in FORMAT_KEYS and value is not None}
    reference = own.pop("reference", None)
    fields = {name: _text_field(name, value) for name, value in own.items()}
    values = {name: value for name, value in row.items() if name in FORMAT_KEYS and value is not None}
    if set(values) == {"prompt"} and isinstance(values["prompt"], str):
        values = {"contents": [{"role": "user", "parts": [{"text": values["prompt"]}]}]}
    if reference is not None or _ends_with_question(values):
        return row_from_example(read_conversation(values, line), _reference(reference), fields)
    plain = raw if len(values) == len(row) else orjson.dumps(values)
    return _row_to_answer(parse_line(plain, line, data_format=data_format), fields)


def _row_to_answer(example: Example, fields: dict[str, str]) -> EvaluationRow:
    question = Example(example.turns[:-1], example.tools, example.line, example.format)
    return row_from_example(question, turn_text(example.turns[-1]), fields)


def row_from_example(
    question: Example, reference: str | None = None, fields: dict[str, str] | None = None
) -> EvaluationRow:
    """A row from a conversation to continue and its reference."""
    system = next((turn.text for turn in question.turns if turn.role == "system"), "")
    turns = [turn for turn in question.turns if turn.role != "system"]
    prompt = turns[0].text if len(turns) == 1 else "\n".join(f"{SPEAKERS[t.role]}: {turn_text(t)}" for t in turns)
    known = {"prompt": prompt, "system_instruction": system, **(fields or {})}
    if reference is not None:
        known["reference"] = reference
    return EvaluationRow(question.line, request_of(question), prompt, reference, known)


def turn_text(turn: Turn) -> str:
    """A turn as text for comparison: its text, and its calls or responses as JSON lines with sorted keys."""
    calls = [{"name": call.name, "args": call.arguments} for call in turn.calls]
    responses = [{"name": response.name, "response": response.content} for response in turn.responses]
    return "\n".join([*([turn.text] if turn.text else []), *map(json_text, calls), *map(json_text, responses)])


def reply_text(content: Content | None) -> str:
    """The same for a generated reply, without thoughts."""
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
    """Names of the fields that every row has; a template may use only these."""
    names = set(rows[0].fields) if rows else set(ROW_FIELDS)
    for row in rows:
        names &= row.fields.keys()
    return frozenset(names)


def default_generation_config(rows: Sequence[EvaluationRow]) -> GenerationConfig:
    """Greedy, with half again the tokens that the longest reference can have, so that a model without an end costs
    little."""
    longest = max((len(row.reference.encode()) for row in rows if row.reference is not None), default=4096)
    return GenerationConfig(temperature=0.0, max_output_tokens=min(4096, 64 + longest * 3 // 4))


def _ends_with_question(row: dict[str, Any]) -> bool:
    contents = listed(row.get("contents"))
    if not contents or not isinstance(contents[-1], dict):
        return False
    role = contents[-1].get("role")
    if not role:
        return len(contents) == 1
    return isinstance(role, str) and role.lower() in ("user", "function", "tool")


def _reference(value: object) -> str | None:
    return value if value is None or isinstance(value, str) else _text_field("reference", value)


def _text_field(name: str, value: object) -> str:
    if name in RESPONSE_FIELDS:
        raise RowFault(name, "an answer", "rows without answers", "rename the field; the models give the answers")
    return value if isinstance(value, str) else json_text(checked_json(value, name))
