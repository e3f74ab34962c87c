"""What a conversion writes for each shape of data, read back by the readers of jobs; and the faults of rows."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from sarto.conversations.conversation import FunctionCall, FunctionResponse, Turn
from sarto.conversations.convert.conversion import Report, convert, refuse_unusable
from sarto.conversations.convert.files import find_files
from sarto.conversations.convert.guess import Guess, guess, ignored, read_sample
from sarto.conversations.convert.mapping import ColumnMapping, Filter
from sarto.conversations.examples import DataFormat, Example, parse_examples
from sarto.errors import InvalidArgument

USER, MODEL, SYSTEM = Turn("user", "6 * 7?"), Turn("model", "42"), Turn("system", "Be brief.")
CALL = FunctionCall("add", {"a": 1, "b": 2})
TOOL = {
    "name": "add",
    "description": "Adds.",
    "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}},
}
SHAREGPT_TOOLS = [
    {"from": "system", "value": "Be brief."},
    {"from": "human", "value": "1 + 2?"},
    {"from": "function_call", "value": json.dumps({"name": "add", "arguments": {"a": 1, "b": 2}})},
    {"from": "observation", "value": "3"},
    {"from": "gpt", "value": "3"},
]
OPENAI = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "1 + 2?"},
    {"role": "assistant", "content": None, "tool_calls": [
        {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1, "b": 2}'}}]},
    {"role": "tool", "tool_call_id": "c1", "content": "3"},
    {"role": "assistant", "content": "3"},
]  # fmt: skip
WITH_TOOL = (SYSTEM, Turn("user", "1 + 2?"), Turn("model", calls=(CALL,)),
             Turn("tool", responses=(FunctionResponse("add", "3"),)), Turn("model", "3"))  # fmt: skip
FRAMED = [{"type": "function", "function": TOOL}]
CASES: dict[str, tuple[dict[str, Any], str, tuple[Turn, ...]]] = {
    "pair": ({"prompt": "6 * 7?", "completion": "42", "id": 7}, "columns", (USER, MODEL)),
    "pair of messages": (
        {"prompt": [{"role": "user", "content": "6 * 7?"}], "completion": [{"role": "assistant", "content": "42"}]},
        "columns", (USER, MODEL)),
    "names": ({"Question": "6 * 7?", "Answer": 42}, "columns", (USER, MODEL)),
    "alpaca": ({"instruction": "Add.", "input": "1, 2", "output": "3"}, "columns",
               (Turn("user", "Add.\n\n1, 2"), Turn("model", "3"))),
    "alpaca without input": ({"instruction": "6 * 7?", "input": "", "output": "42", "system": "Be brief."}, "columns",
                             (SYSTEM, USER, MODEL)),
    "dolly": ({"instruction": "Add.", "context": "1, 2", "response": "3", "category": "qa"}, "columns",
              (Turn("user", "Add.\n\n1, 2"), Turn("model", "3"))),
    "openai": ({"messages": OPENAI, "tools": FRAMED}, "messages", WITH_TOOL),
    "openai as text": ({"messages": json.dumps(OPENAI), "tools": json.dumps(FRAMED)}, "messages", WITH_TOOL),
    "sharegpt": ({"conversations": SHAREGPT_TOOLS, "tools": json.dumps([TOOL])}, "turns", WITH_TOOL),
    "speakers": ({"dialogue": [{"speaker": "User", "text": "6 * 7?"}, {"speaker": "Bot", "text": "42"}]}, "turns",
                 (USER, MODEL)),
    "gemini": ({"contents": [{"role": "user", "parts": [{"text": "6 * 7?"}]},
                             {"role": "model", "parts": [{"text": "42"}]}], "source": "x"}, "gemini", (USER, MODEL)),
}  # fmt: skip
PAIR = ((USER, MODEL), (USER, Turn("model", "41")))
ASK, RIGHT, WRONG = ({"role": "user", "content": "6 * 7?"}, {"role": "assistant", "content": "42"},
                     {"role": "assistant", "content": "41"})  # fmt: skip
PAIRS: dict[str, dict[str, Any]] = {
    "text": {"prompt": "6 * 7?", "chosen": "42", "rejected": "41"},
    "messages": {"prompt": [ASK], "chosen": [RIGHT], "rejected": [WRONG]},
    "without a prompt": {"chosen": [ASK, RIGHT], "rejected": [ASK, WRONG], "score_chosen": 9.5},
    "with the prompt twice": {"prompt": "6 * 7?", "chosen": [ASK, RIGHT], "rejected": [ASK, WRONG]},
    "openai": {"input": {"messages": [ASK]}, "preferred_output": [RIGHT], "non_preferred_output": [WRONG]},
    "openai, older": {
        "input": {"messages": [ASK]},
        "preferred_completion": [RIGHT],
        "non_preferred_completion": [WRONG],
    },
}


def guessed(path: Path) -> Guess:
    return guess(read_sample(find_files([str(path)]), "utf-8"))


def converted(path: Path, mapping: ColumnMapping) -> tuple[list[bytes], Report]:
    out = io.BytesIO()
    report = convert(find_files([str(path)]), mapping, out)
    return out.getvalue().splitlines(keepends=True), report


def read_back(line: bytes, data_format: DataFormat = "auto") -> tuple[Example, ...]:
    return parse_examples(line, 1, data_format=data_format)


def json_file(folder: Path, *rows: Any) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def parquet_of(folder: Path, *rows: Any) -> Path:
    path = folder / "rows.parquet"
    parquet.write_table(pa.Table.from_pylist(list(rows)), path)
    return path


def without_ids(turns: tuple[Turn, ...]) -> tuple[Turn, ...]:
    return tuple(
        replace(turn, calls=tuple(replace(call, id="") for call in turn.calls),
                responses=tuple(replace(each, id="") for each in turn.responses))
        for turn in turns
    )  # fmt: skip


@pytest.mark.parametrize("write", [json_file, parquet_of])
@pytest.mark.parametrize("name", CASES)
def test_each_shape_is_recognised_and_becomes_its_conversation(name: str, write: Any, tmp_path: Path) -> None:
    row, shape, turns = CASES[name]
    path = write(tmp_path, row, row)
    found = guessed(path)
    assert found.mapping.shape == shape
    lines, _ = converted(path, found.mapping)
    (example,) = read_back(lines[1])
    assert without_ids(example.turns) == turns
    assert example.tools == ((TOOL,) if "tools" in row else ())
    assert example.format == "contents"


@pytest.mark.parametrize("write", [json_file, parquet_of])
@pytest.mark.parametrize("name", PAIRS)
def test_preference_pairs_become_scored_completions(name: str, write: Any, tmp_path: Path) -> None:
    path = write(tmp_path, PAIRS[name])
    lines, _ = converted(path, guessed(path).mapping)
    assert tuple(example.turns for example in read_back(lines[0], "preference")) == PAIR
    assert [each["score"] for each in json.loads(lines[0])["completions"]] == [1, 0]


def test_rows_with_weights_stay_in_the_form_of_openai(tmp_path: Path) -> None:
    turns = [ASK, {**WRONG, "weight": 0}, {"role": "user", "content": "Sure?"}, {**RIGHT, "weight": 1}]
    path = json_file(tmp_path, {"messages": turns}, {"messages": [ASK, RIGHT]})
    lines, _ = converted(path, replace(guessed(path).mapping, system_text="Be brief."))
    assert json.loads(lines[0])["messages"] == [{"role": "system", "content": "Be brief."}, *turns]
    assert "contents" in json.loads(lines[1])
    (example,) = read_back(lines[0])
    assert [turn.text for turn in example.turns] == ["Be brief.", "6 * 7?", "41", "Sure?", "42"]


@pytest.mark.parametrize(("weight", "words"), [(0, "weight"), (2, "want 0 or 1"), (True, "want 0 or 1")])
def test_a_wrong_weight_is_a_fault(weight: object, words: str, tmp_path: Path) -> None:
    path = json_file(tmp_path, {"messages": [ASK, {**RIGHT, "weight": weight}]})
    (fault,) = converted(path, guessed(path).mapping)[1].shown
    assert words in str(fault) and 'column "messages' in str(fault)


def test_what_is_ignored_and_what_is_not_certain_is_told(tmp_path: Path) -> None:
    path = json_file(tmp_path, {"id": 1, "ticket": "It broke.", "category": "hardware"})
    found = guessed(path)
    assert not found.is_certain
    assert ignored(found.mapping, ["id", "ticket", "category"]) == ["id"]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"text": "Once upon a time"}, "there is no reply to learn"),
        ({"x": "1", "y": "2"}, "No known shape of data has the columns x, y"),
        ({"data": [{"q": "a"}], "version": 1}, "jq '.data' FILE"),
        ({"prompt": "x", "completion": "y", "label": False}, "KTO"),
    ],
)
def test_columns_without_a_shape_are_refused_with_a_remedy(row: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match=words):
        guessed(json_file(tmp_path, row))


PAIR_MAPPING = ColumnMapping("columns", {"input": ("q",), "output": ("a",)})


@pytest.mark.parametrize(
    ("row", "column", "words"),
    [
        ({"q": "x", "a": " "}, "a", "saw no text"),
        ({"q": "x"}, "a", "saw no text"),
        ({"q": "x", "a": 3.10}, "a", "the number 3.1, which may have lost digits, want text; write it in quotes"),
        ({"q": "x", "a": 123456789012345678901234567890}, "a", "may have lost digits"),
        ({"q": "x", "a": True}, "a", "saw true, want text"),
        ({"q": {"b": 1}, "a": "y"}, "q", "saw an object with b, want text"),
        ({"q": "x", "a": [{"role": "bot", "content": "y"}]}, "a[0].role", "name the role"),
        ({"q": "x\0", "a": "y"}, "", "NUL"),
        ({"q": ["one"], "a": "y"}, "q", "saw a list of 1, want text"),
    ],
)
def test_a_row_fault_names_file_row_and_column(row: Any, column: str, words: str, tmp_path: Path) -> None:
    path = json_file(tmp_path, {"q": "x", "a": 2**63}, row)
    _, report = converted(path, PAIR_MAPPING)
    (fault,) = report.shown
    assert str(fault).startswith("rows.jsonl row 2 (line 2)" + (f', column "{column}"' if column else "")), str(fault)
    assert words in str(fault)
    with pytest.raises(InvalidArgument, match="1 row of 2 cannot be used; nothing was written"):
        refuse_unusable(report, PAIR_MAPPING)
    refuse_unusable(report, replace(PAIR_MAPPING, skip_faults=True))


def test_binary_and_nested_columns_are_refused_by_name_where_text_is_wanted(tmp_path: Path) -> None:
    path = parquet_of(tmp_path, {"q": b"\x89PNG", "a": "x"}, {"q": b"\x89PNG", "a": "x"})
    assert 'row 1, column "q": saw 4 bytes of binary data, want text' in str(converted(path, PAIR_MAPPING)[1].shown[0])
    path = parquet_of(tmp_path, {"q": "x", "a": {"text": "y", "n": 1}})
    assert 'column "a": saw an object with text, n, want text' in str(converted(path, PAIR_MAPPING)[1].shown[0])
    mapping = ColumnMapping("columns", {"input": ("q",), "output": ("a.text",)})
    assert json.loads(converted(path, mapping)[0][0])["contents"][1]["parts"] == [{"text": "y"}]


def test_filters_duplicates_and_the_split(tmp_path: Path) -> None:
    rows = [{"q": f"{n % 900}?", "a": "yes", "m": {"lang": "en" if n % 2 else "de"}} for n in range(2000)]
    path = json_file(tmp_path, *rows)
    filters = (Filter("m.lang", equals="en"), Filter("q", min_chars=3, max_chars=4), Filter("a", non_empty=True))
    mapping = replace(PAIR_MAPPING, filters=filters, deduplicate=True, validation_share=0.2, seed=3)
    training, validation = io.BytesIO(), io.BytesIO()
    report = convert(find_files([str(path)]), mapping, training, validation)
    texts = [json.loads(line)["contents"][0]["parts"][0]["text"] for line in training.getvalue().splitlines()]
    assert all(int(text[:-1]) % 2 and len(text) > 2 for text in texts) and len(set(texts)) == len(texts)
    assert report.training + report.validation + report.filtered + report.duplicates == report.rows == 2000
    assert report.training == len(texts) and 0.12 < report.validation / (len(texts) + report.validation) < 0.28
    again, other = io.BytesIO(), io.BytesIO()
    convert(find_files([str(path)]), replace(mapping, seed=4), again, other)
    assert other.getvalue() != validation.getvalue()
    # a row stays on its side when rows before it are taken away
    half = json_file(tmp_path, *rows[1000:])
    convert(find_files([str(half)]), mapping, io.BytesIO(), kept := io.BytesIO())
    assert set(kept.getvalue().splitlines()) <= set(validation.getvalue().splitlines())


def test_nothing_left_is_an_error(tmp_path: Path) -> None:
    mapping = replace(PAIR_MAPPING, filters=(Filter("q", equals="never"),))
    _, report = converted(json_file(tmp_path, {"q": "x", "a": "y"}), mapping)
    with pytest.raises(InvalidArgument, match="No row is left of 1"):
        refuse_unusable(report, mapping)


def test_cells_of_spreadsheets_are_kept_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text('q,a\n=1+1,"#NAME?"\n-5,+x\n- a list,@me\n', encoding="utf-8")
    lines, report = converted(path, guessed_columns(path))
    assert [turn["parts"][0]["text"] for line in lines for turn in json.loads(line)["contents"]] == [
        "=1+1", "#NAME?", "-5", "+x", "- a list", "@me",
    ]  # fmt: skip
    assert sorted(report.findings.values()) == [1, 3]


def guessed_columns(path: Path) -> ColumnMapping:
    return replace(PAIR_MAPPING, delimiter=read_sample(find_files([str(path)]), "utf-8").delimiter)
