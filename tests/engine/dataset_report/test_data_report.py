"""The data report and the mask proof find what was planted, and say what a run would do."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from sarto.contract.base_shape import BaseShape
from sarto.contract.common import BaseWeights, TuningParameters
from sarto.engine.dataset.default_parameters import DataShape, choose
from sarto.engine.dataset.detectors import find_secrets, guess_language, script_of
from sarto.engine.dataset.prepare import DatasetLimits, PreparedDataset, prepare
from sarto.engine.dataset_report.data_report import data_report
from sarto.engine.dataset_report.duplicates import find_duplicates
from sarto.engine.dataset_report.forecast import Machine
from sarto.engine.dataset_report.mask_proof import show_row
from sarto.engine.rendering.tokenizer import ChatTokenizer
from sarto.errors import NotFound
from tests.engine.conftest import Write, row
from tests.engine.conversations import CASES, FAMILIES, FAMILY_NAMES

SHAPE = BaseShape(134_000_000, 30, 576, 1536)
GIVEN = TuningParameters(rank=8, alpha=16)
SUBJECTS = "fox dog ship tower river letter garden window bridge market song winter".split()


def essay(number: int) -> dict[str, Any]:
    """A row with words of its own."""
    words = [f"{SUBJECTS[(number * k + k * k) % 12]}{(number * 31 + k * 17) % 97}" for k in range(1, 25)]
    return row(" ".join(words), f"It is about number {number}.")


def ready(dataset: Any, tokenizer: ChatTokenizer, folder: Path) -> PreparedDataset:
    return prepare(
        dataset, tokenizer, max_tokens=400, cache_folder=folder / "cache", limits=DatasetLimits(max_dropped_share=1)
    )


def report_of(write: Write, rows: list[Any], tokenizer: ChatTokenizer, folder: Path, **options: Any) -> dict[str, Any]:
    validation = options.pop("validation", None)
    training = ready(write(rows), tokenizer, folder)
    held = ready(write(validation), tokenizer, folder) if validation else None
    base = BaseWeights(name="tiny", folder=str(FAMILIES / "smollm2"), digest="00")
    report = data_report(training, held, base, SHAPE, GIVEN, max_tokens=400, **options)
    read_back: dict[str, Any] = json.loads(json.dumps(report))
    return read_back


def test_planted_flaws_are_all_found(write: Write, tokenizer: ChatTokenizer, tmp_path: Path) -> None:
    rows: list[Any] = [essay(number) for number in range(60)]
    rows.append(rows[5])  # 61: the same row again
    near = json.loads(json.dumps(rows[7]))
    near["contents"][0]["parts"][0]["text"] += " indeed"
    rows.append(near)  # 62: nearly the same
    other = json.loads(json.dumps(rows[9]))
    other["contents"][1]["parts"][0]["text"] = "Another reply."
    rows.append(other)  # 63: another reply to the same prompt
    rows.append(row("Key sk-abcdefghijklmnopqrstuvwx and a@b.example.com", "ok"))  # 64
    rows.append(row("No reply", ""))  # 65
    rows.append(row("Too long", "far " * 900))  # 66
    held_out = [rows[2], essay(900)]
    report = report_of(write, rows, tokenizer, tmp_path, validation=held_out)
    assert report["isUsable"]
    dataset = report["dataset"]
    assert (dataset["rows"], dataset["usedRows"], dataset["faults"]["count"]) == (66, 64, 2)
    assert dataset["replies"]["empty"] == 1 and dataset["replies"]["withoutLoss"] == 0
    assert dataset["tokens"] == {"doubleBos": 0, "noEndOfTurn": 0}
    assert dataset["secrets"]["counts"] == {"API key": 1, "e-mail address": 1}
    assert {shown["line"] for shown in dataset["secrets"]["shown"]} == {64}
    assert "abcdefgh" not in json.dumps(report)
    repeated = report["duplicates"]
    assert repeated["exactGroups"] == [[6, 61]]
    assert repeated["samePromptGroups"] == [[10, 63]]
    assert [62, 8] in [pair[:2] for pair in repeated["nearPairs"]]
    assert report["overLong"]["512"] == 1
    assert report["validation"]["overlap"] == {"sameRows": 1, "samePrompts": 1, "lines": [1]}
    levels = [finding["level"] for finding in report["findings"]]
    assert levels == sorted(levels, key=["error", "warning", "note"].index) and "warning" in levels


def test_a_forecast_speaks_of_steps_time_and_memory(write: Write, tokenizer: ChatTokenizer, tmp_path: Path) -> None:
    machine = Machine("cpu", 2, 4e11, 8 << 30)
    report = report_of(write, [essay(number) for number in range(200)], tokenizer, tmp_path, machine=machine)
    forecast, automatic = report["forecast"], report["automatic"]
    assert forecast["steps"] == automatic["totalSteps"] == 5 * 25
    assert forecast["tokens"] == 5 * report["statistics"]["tokenCount"]
    beside = 150 * forecast["steps"] + 2000 * 5
    assert forecast["seconds"] == pytest.approx(3.5 * 134e6 * (forecast["tokens"] + beside) / 3.2e11, rel=0.01)
    assert forecast["fits"] and forecast["peakMemoryBytes"] > 1 << 30
    assert set(automatic["reasons"]) == {"epochCount", "batchSize", "learningRate"}


def test_calls_that_do_not_fit_their_declarations_are_found(
    write: Write, tokenizer: ChatTokenizer, tmp_path: Path
) -> None:
    schema = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}

    def calling(name: str, arguments: dict[str, Any], **more: Any) -> dict[str, Any]:
        declared = {"name": "weather", "parameters": schema | more}
        reply = {"role": "model", "parts": [{"functionCall": {"name": name, "args": arguments}}]}
        return {"tools": [{"functionDeclarations": [declared]}], "contents": [row("q", "a")["contents"][0], reply]}

    sound = [calling("weather", {"city": "Rome"}), calling("weather", {"city": "R", "x": 1}, additionalProperties=True)]
    undeclared = [calling("sky", {}), {key: value for key, value in sound[0].items() if key != "tools"}]
    unlike = [calling("weather", {}), calling("weather", {"city": "Rome", "day": 1})]
    report = report_of(write, [*sound, *undeclared, *unlike, *unlike[:1]], tokenizer, tmp_path)
    assert report["dataset"]["calls"] == {"undeclared": 2, "arguments": 3}
    words = " | ".join(finding["message"] for finding in report["findings"] if finding["level"] == "warning")
    assert "2 rows call functions that they do not declare" in words and "3 rows have calls whose arguments" in words
    assert report_of(write, sound, tokenizer, tmp_path)["dataset"]["calls"] == {}


def test_unusable_data_is_reported_and_not_refused(write: Write, tokenizer: ChatTokenizer, tmp_path: Path) -> None:
    report = report_of(write, [essay(1), b"x", b"y"], tokenizer, tmp_path)
    assert not report["isUsable"]
    assert report["findings"][0]["level"] == "error"
    assert [fault["line"] for fault in report["dataset"]["faults"]["shown"]] == [2, 3]


def test_labels_are_counted_where_replies_are_few(write: Write, tokenizer: ChatTokenizer, tmp_path: Path) -> None:
    rows = [row(f"Text {number}", "spam" if number % 4 == 0 else "ham") for number in range(40)]
    assert report_of(write, rows, tokenizer, tmp_path)["dataset"]["labels"] == {"ham": 30, "spam": 10}
    assert report_of(write, [essay(n) for n in range(40)], tokenizer, tmp_path)["dataset"]["labels"] is None


@pytest.mark.parametrize(
    ("rows", "epochs", "batch"), [(20, 9, 4), (200, 5, 8), (2000, 3, 16), (20_000, 2, 32), (200_000, 1, 32)]
)
def test_automatic_values_suit_the_size_of_the_data(rows: int, epochs: int, batch: int) -> None:
    chosen = choose(DataShape(rows, 150, 400), GIVEN, 134_000_000)
    assert (chosen.epoch_count, chosen.batch_size) == (epochs, batch)
    assert chosen.total_steps == epochs * math.ceil(rows / batch)
    assert 1 <= chosen.warmup_steps <= chosen.total_steps
    assert chosen.learning_rate == (2.5e-4 if rows < 100 else 5e-4)
    assert choose(DataShape(rows, 150, 400), GIVEN, 8_000_000_000).learning_rate < chosen.learning_rate


def test_given_values_stay_and_need_no_reason() -> None:
    given = TuningParameters(
        rank=4, alpha=8, epoch_count=7, learning_rate=1e-3, learning_rate_multiplier=2, batch_size=3
    )
    chosen = choose(DataShape(100, 150, 400), given, 134_000_000)
    assert (chosen.epoch_count, chosen.batch_size, chosen.learning_rate) == (7, 3, 2e-3)
    assert list(chosen.reasons) == ["learning_rate_multiplier"]


def test_long_rows_make_small_batches() -> None:
    chosen = choose(DataShape(2000, 6000, 8000), GIVEN, 134_000_000)
    assert chosen.batch_size == 2
    assert "6,000 tokens" in chosen.reasons["batch_size"]


PROOFS = [(family, case) for family in FAMILY_NAMES for case in CASES if family in case.families]


@pytest.mark.parametrize(("family", "case"), PROOFS, ids=[f"{family}-{case.name}" for family, case in PROOFS])
def test_the_mask_proof_holds_for_every_family_and_format(family: str, case: Any, tmp_path: Path) -> None:
    tokenizer = ChatTokenizer.load(FAMILIES / family)
    openai = {"messages": case.messages} | ({"tools": case.tools} if case.tools else {})
    if case.tools:
        openai = json.loads(json.dumps(openai))
        openai["messages"][2]["tool_calls"][0]["id"] = openai["messages"][3]["tool_call_id"] = "c1"
    path = tmp_path / "rows.jsonl"
    path.write_bytes(case.line + b"\n" + json.dumps(openai).encode() + b"\n")
    shown = [show_row(path, line, tokenizer) for line in (1, 2)]
    for proof in shown:
        assert proof["isSame"] and len(proof["serving"]) == sum(m["role"] == "assistant" for m in case.messages)
        for training in proof["training"]:
            assert "".join(token["text"] for token in training["tokens"]) == training["text"]
    learned = [[token["text"] for token in t["tokens"] if token["learned"]] for p in shown for t in p["training"]]
    assert learned[: len(learned) // 2] == learned[len(learned) // 2 :]


@pytest.mark.parametrize(
    ("line", "options"),
    [
        ({"input_text": "Say hi", "output_text": "Hi"}, {}),
        ({"prompt": "Say hi", "completion": "Hi"}, {}),
        (
            {"context": "Be nice", "messages": [{"author": "user", "content": "a"}, {"author": "bot", "content": "b"}]},
            {},
        ),
        (row("English: Hello Spanish:", "Hola"), {"data_format": "translation"}),
    ],
)
@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_the_mask_proof_holds_for_the_older_formats(
    family: str, line: dict[str, Any], options: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(line))
    assert show_row(path, 1, ChatTokenizer.load(FAMILIES / family), **options)["isSame"]


def test_the_proof_of_a_bad_row_is_its_fault(tmp_path: Path, tokenizer: ChatTokenizer) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "a"}\n')
    proof = show_row(path, 1, tokenizer)
    assert proof["fault"]["path"] == "completion" and proof["raw"] == '{"prompt": "a"}'
    with pytest.raises(NotFound, match="no line 2"):
        show_row(path, 2, tokenizer)


SECRETS = [
    (b"-----BEGIN RSA PRIVATE KEY-----", "private key"),
    (b"AKIAABCDEFGHIJKLMNOP", "AWS access key"),
    (b"AIzaSyA1234567890abcdefghijklmnopqrstuvw", "Google API key"),
    (b"ghp_" + b"a1B2" * 9, "GitHub token"),
    (b"xoxb-1234567890-abcdef", "Slack token"),
    (b"sk-proj_abcdefghijklmnop1234", "API key"),
    (b"eyJhbGciOiJI.eyJzdWIiOiIx.SflKxwRJSMeK", "JSON web token"),
    (b'password: \\"hunter2222\\"', "password"),
    (b"jane.doe+x@mail.example.org", "e-mail address"),
]


@pytest.mark.parametrize(("secret", "kind"), SECRETS)
def test_secrets_are_found_by_line_and_never_shown(secret: bytes, kind: str) -> None:
    data = b"first line\nsecond " + secret + b" end\nthird " + secret + b"\n"
    found = find_secrets(data, 10)
    assert [(line, name) for line, name, _ in found] == [(11, kind), (12, kind)]
    assert all(len(start) <= 4 for _, _, start in found)


def test_ordinary_text_holds_no_secrets() -> None:
    text = b"The task-based risk-averse password policy through eyJ and AKIA, a @ b, user@, sk-short, ghost_ gho_"
    assert find_secrets(text, 1) == []


def test_scripts_and_languages_are_told_apart() -> None:
    assert [script_of(text) for text in ("hi", "Привет", "漢字", "ひらがな漢字", "naïve", "123…")] == [
        "Latin", "Cyrillic", "Han", "Japanese", "Latin", "Latin",
    ]  # fmt: skip
    assert guess_language("The cat is on the mat and it is not happy with that.") == "English"
    assert guess_language("Der Hund ist nicht im Haus und das ist gut für die Katze.") == "German"
    assert guess_language("OK") == "unclear"


def test_a_common_template_does_not_make_rows_near(write: Write, tokenizer: ChatTokenizer, tmp_path: Path) -> None:
    instruction = "You are given a sentence. Say what it is about, in one short and complete sentence. " * 3
    rows = []
    for number in range(80):
        given = essay(number)
        given["contents"][0]["parts"][0]["text"] = instruction + given["contents"][0]["parts"][0]["text"]
        rows.append(given)
    prepared = ready(write(rows), tokenizer, tmp_path)
    assert find_duplicates(prepared.store).near_count == 0
