"""A guess of the mapping from the names of the columns and the first rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import orjson

from sarto.conversations.conversation import RowFault
from sarto.conversations.convert.faults import Fault
from sarto.conversations.convert.files import SourceFile, delimiter_of, read_rows
from sarto.conversations.convert.mapping import ColumnMapping
from sarto.conversations.convert.places import column_of
from sarto.errors import InvalidArgument

SAMPLE_ROWS = 20
INPUTS = ("input", "prompt", "question", "instruction", "query", "user", "input_text", "source", "problem", "request",
          "text", "ticket", "message", "body")  # fmt: skip
OUTPUTS = ("output", "completion", "answer", "response", "reply", "assistant", "output_text", "target", "solution",
           "label", "category", "class", "summary")  # fmt: skip
CONTEXTS = ("input", "context")
SYSTEMS = ("system", "system_prompt", "system_message")
LISTS = ("messages", "conversations", "conversation", "dialogue", "dialog", "turns", "chat")
SPEAKER_KEYS = (("from", "value"), ("role", "content"), ("role", "text"), ("speaker", "text"), ("role", "value"))


@dataclass(frozen=True)
class Guess:
    """A mapping with the name of the shape it was taken for. It is certain where the names leave no choice."""

    mapping: ColumnMapping
    title: str
    is_certain: bool


@dataclass(frozen=True)
class Sample:
    """The first rows of the first file, and its columns."""

    rows: list[Mapping[str, Any]]
    columns: list[str]
    delimiter: str


def read_sample(files: Sequence[SourceFile], encoding: str, delimiter: str = "") -> Sample:
    """Raises InvalidArgument when no row can be read."""
    file = files[0]
    delimiter = delimiter or delimiter_of(file, encoding)
    rows: list[Mapping[str, Any]] = []
    fault: Fault | None = None
    for number, line, row in islice(read_rows(file, encoding, delimiter, None), SAMPLE_ROWS):
        if isinstance(row, RowFault):
            fault = fault or Fault(file.name, number, line, row)
        else:
            rows.append(row)
    if not rows:
        raise InvalidArgument(str(fault) if fault else f"{file.name}: it has no rows.")
    columns = list(dict.fromkeys(column for row in rows for column in row))
    return Sample(rows, columns, delimiter)


def ignored(mapping: ColumnMapping, columns: Sequence[str]) -> list[str]:
    """Columns that a mapping does not read."""
    used = {column_of(name, list(columns)) for name in mapping.used()}
    if mapping.shape == "gemini":
        used |= {"contents", "systemInstruction", "system_instruction", "tools", "completions"}
    return [column for column in columns if column not in used]


def guess(sample: Sample) -> Guess:
    """Raises InvalidArgument, with the columns, where none fits."""
    by_name = {column.strip().lower(): column for column in reversed(sample.columns)}
    for attempt in (_gemini, _preference, _lists, _instructions, _pair):
        found = attempt(by_name, sample)
        if found is not None:
            return found
    listed = ", ".join(sample.columns[:30])
    raise InvalidArgument(_no_guess(sample) or (
        f"No known shape of data has the columns {listed}. Name them: --input COLUMN --output COLUMN, or --messages "
        "COLUMN, or --chosen COLUMN --rejected COLUMN."
    ))  # fmt: skip


def _no_guess(sample: Sample) -> str:
    """A better explanation for frequent cases; empty for others."""
    if sample.columns == ["text"]:
        return (
            'The only column is "text": there is no reply to learn. Write the prompt and the reply into columns of '
            "their own."
        )
    lists = [name for name in sample.columns if isinstance(sample.rows[0].get(name), list)]
    if len(sample.rows) == 1 and lists:
        inner = f"jq '.{lists[0]}' FILE > rows.json"
        return f'The file is one object, with a list in "{lists[0]}". Take the list out: {inner}'
    return ""


def _found(
    shape: str,
    title: str,
    sample: Sample,
    by_name: Mapping[str, str],
    *,
    is_certain: bool = True,
    **columns: str | tuple[str, ...],
) -> Guess:
    named = {role: (names,) if isinstance(names, str) else names for role, names in columns.items() if names}
    taken = {name for names in named.values() for name in names}
    if shape != "gemini":
        system = next((by_name[name] for name in SYSTEMS if name in by_name and by_name[name] not in taken), "")
        if system and "system" not in named:
            named["system"] = (system,)
        if "tools" in by_name and by_name["tools"] not in taken and "tools" not in named:
            named["tools"] = (by_name["tools"],)
    return Guess(ColumnMapping(shape, named, delimiter=sample.delimiter), title, is_certain)


def _gemini(by_name: Mapping[str, str], sample: Sample) -> Guess | None:
    return _found("gemini", "Gemini rows", sample, by_name) if "contents" in sample.columns else None


def _preference(by_name: Mapping[str, str], sample: Sample) -> Guess | None:
    for chosen, rejected in (
        ("preferred_output", "non_preferred_output"),
        ("preferred_completion", "non_preferred_completion"),
    ):
        if chosen in by_name and rejected in by_name and "input" in by_name:
            source, title = by_name["input"], "OpenAI preference pairs"
            return _found("preference", title, sample, by_name, input=f"{source}.messages", chosen=by_name[chosen],
                          rejected=by_name[rejected], tools=f"{source}.tools")  # fmt: skip
    if "chosen" in by_name and "rejected" in by_name:
        prompt = next((by_name[name] for name in ("prompt", "question", "instruction", "input") if name in by_name), "")
        return _found("preference", "TRL preference pairs", sample, by_name, input=prompt, chosen=by_name["chosen"],
                      rejected=by_name["rejected"], is_certain=not prompt or "prompt" in by_name)  # fmt: skip
    return None


def _lists(by_name: Mapping[str, str], sample: Sample) -> Guess | None:
    for name in LISTS:
        if name not in by_name:
            continue
        column = by_name[name]
        turn = _first_turn(sample, column)
        if turn is None:
            continue
        keys = next((keys for keys in SPEAKER_KEYS if keys[0] in turn and keys[1] in turn), None)
        if keys == ("role", "content") or (keys is None and "role" in turn):
            return _found("messages", "OpenAI messages", sample, by_name, messages=column)
        if keys is not None:
            title = "ShareGPT" if keys == ("from", "value") else f"turns of {keys[0]} and {keys[1]}"
            return _found("turns", title, sample, by_name, messages=column, role=keys[0], text=keys[1])
    return None


def _first_turn(sample: Sample, column: str) -> dict[str, Any] | None:
    for row in sample.rows:
        value = row.get(column)
        if isinstance(value, str):
            try:
                value = orjson.loads(value)
            except orjson.JSONDecodeError:
                continue
        if isinstance(value, list) and value and isinstance(value[0], dict):
            return value[0]
    return None


def _instructions(by_name: Mapping[str, str], sample: Sample) -> Guess | None:
    """Alpaca's columns, and Dolly's."""
    output = next((by_name[name] for name in ("output", "response") if name in by_name), "")
    if "instruction" not in by_name or not output:
        return None
    context = next((by_name[name] for name in CONTEXTS if name in by_name), "")
    inputs = (by_name["instruction"], context) if context else (by_name["instruction"],)
    return _found("columns", "Alpaca", sample, by_name, input=inputs, output=output)


def _pair(by_name: Mapping[str, str], sample: Sample) -> Guess | None:
    source = next((by_name[name] for name in INPUTS if name in by_name), "")
    target = next((by_name[name] for name in OUTPUTS if name in by_name and by_name[name] != source), "")
    if not source or not target:
        return None
    is_labelled = "label" in by_name and by_name["label"] != target
    if is_labelled and (source, target) == (by_name.get("prompt"), by_name.get("completion")):
        values = {str(row.get(by_name["label"])).lower() for row in sample.rows}
        if values <= {"true", "false"}:
            raise InvalidArgument(
                "The columns are those of KTO: replies with a label for good and bad ones. There is no such method "
                f"here. Learn the good ones: --input {source} --output {target} --where {by_name['label']}=true"
            )
    names = (source.lower(), target.lower())
    is_certain = names in (("prompt", "completion"), ("input", "output"), ("input_text", "output_text"))
    title = "prompt and completion" if is_certain else "two columns of text, by their names"
    return _found("columns", title, sample, by_name, input=source, output=target, is_certain=is_certain)
