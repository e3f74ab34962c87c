"""`sarto data convert` and `sarto tune` on data as people have it, run as a user runs them."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
from pathlib import Path

import pytest

from tests.cli.conftest import SARTO, Run


@pytest.fixture
def table(tmp_path: Path) -> Path:
    rows = "".join(f'{n},"say {n}",{n},{"de" if n % 4 else "en"}\n' for n in range(16))
    path = tmp_path / "tickets.csv"
    path.write_text(f"id,question,answer,lang\n{rows}")
    return path


def alone(folder: Path, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """`sarto ARGS` without any server."""
    environment = {"HOME": str(folder), "COLUMNS": "160", "PATH": "", "SARTO_URL": "http://127.0.0.1:9"}
    return subprocess.run(
        [SARTO, *arguments], input=stdin, capture_output=True, text=True, timeout=60, env=environment, cwd=folder
    )


def test_a_guess_is_shown_and_must_be_agreed_to(tmp_path: Path, table: Path) -> None:
    shown = alone(tmp_path, "data", "convert", "tickets.csv")
    assert shown.returncode == 0, shown.stderr
    for text in ("input: question", "output: answer", "ignored: id, lang", "  user: say 2", "16 rows: 16 for training"):
        assert text in shown.stdout
    asked = alone(tmp_path, "data", "convert", "tickets.csv", "--to", "out.jsonl")
    assert asked.returncode == 1 and "--yes" in asked.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tickets.csv"]
    assert alone(tmp_path, "data", "convert", "tickets.csv", "--to", "out.jsonl", "--yes").returncode == 0
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 16


def test_a_saved_mapping_makes_the_same_bytes_again(tmp_path: Path, table: Path) -> None:
    options = ["--input", "question", "--output", "answer", "--where", "lang=de", "--validation-share", "0.3",
               "--system-text", "Count.", "--deduplicate", "--save-map", "map.toml", "--json"]  # fmt: skip
    first = alone(tmp_path, "data", "convert", "tickets.csv", "--to", "one.jsonl", *options)
    assert first.returncode == 0, first.stderr
    report = json.loads(first.stdout)
    assert report["filteredRows"] == 4 and report["trainingRows"] + report["validationRows"] == 12
    assert alone(tmp_path, "data", "convert", "tickets.csv", "--to", "two.jsonl", "--map", "map.toml").returncode == 0
    for end in (".jsonl", ".validation.jsonl"):
        made = [(tmp_path / f"{name}{end}").read_bytes() for name in ("one", "two")]
        assert made[0] == made[1] and made[0]


def test_faults_are_named_and_nothing_is_written(tmp_path: Path, table: Path) -> None:
    with table.open("a") as file:
        file.write("16,say 16,,en\n17,say 17\n")
    refused = alone(tmp_path, "data", "convert", "tickets.csv", "--to", "out.jsonl", "--yes")
    assert refused.returncode == 2
    assert 'tickets.csv row 17 (line 18), column "answer": saw no text' in refused.stderr
    assert "tickets.csv row 18 (line 19): saw 2 cells, want 4" in refused.stderr
    assert not (tmp_path / "out.jsonl").exists()
    skipped = alone(tmp_path, "data", "convert", "tickets.csv", "--to", "out.jsonl", "--yes", "--skip-faults")
    assert skipped.returncode == 0 and "2 with faults left out" in skipped.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["tickets.csv", "--input", "quest", "--output", "answer"], 'has no column "quest"; it has id, question'),
        (["tickets.csv", "--map", "none.toml"], "none.toml cannot be read"),
        (["tickets.csv", "--to", "tickets.csv", "--yes"], "is one of the sources"),
        (["tickets.csv", "--to", "no/out.jsonl", "--yes"], "cannot be read or written"),
        (["none.csv"], "none.csv cannot be read"),
        (["tickets.csv", "--where", "lang"], "--where is written COLUMN=VALUE"),
        (["s3://bucket/rows.csv"], "aws s3 cp"),
    ],
)
def test_wrong_options_are_named(arguments: list[str], words: str, tmp_path: Path, table: Path) -> None:
    refused = alone(tmp_path, "data", "convert", *arguments)
    assert refused.returncode == 2 and words in refused.stderr, refused.stderr


def test_without_pyarrow_its_extra_is_named(tmp_path: Path) -> None:
    (tmp_path / "rows.parquet").write_bytes(b"PAR1" * 9)
    (tmp_path / "hidden").mkdir()
    (tmp_path / "hidden" / "pyarrow.py").write_text("raise ImportError('not here')")
    command = [SARTO, "data", "convert", "rows.parquet"]
    environment = {"HOME": str(tmp_path), "PYTHONPATH": str(tmp_path / "hidden"), "COLUMNS": "160"}
    refused = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment, cwd=tmp_path)
    assert refused.returncode == 1 and "pip install 'sarto[parquet]'" in refused.stderr, refused.stderr


@pytest.mark.slow
def test_a_table_is_converted_uploaded_and_tuned_and_its_mapping_kept(sarto: Run, tmp_path: Path, table: Path) -> None:
    (tmp_path / "map.toml").write_text(
        'shape = "columns"\nvalidation_share = 0.2\n[columns]\ninput = "question"\noutput = "answer"\n'
    )
    guessed = sarto("tune", "tickets.csv", "--no-watch")
    assert guessed.returncode == 1 and "--yes" in guessed.stderr
    tuned = sarto("tune", "tickets.csv", "--map", "map.toml", "--epochs", "1", "--json")
    assert tuned.returncode == 0, tuned.stderr
    job = json.loads(tuned.stdout)
    assert job["state"] == "JOB_STATE_SUCCEEDED"
    training, validation = (job["supervisedTuningSpec"][f"{name}DatasetUri"] for name in ("training", "validation"))
    record = training.removesuffix(".jsonl") + ".mapping.json"
    again = sarto("data", "convert", "tickets.csv", "--map", record, "--to", "again.jsonl")
    assert again.returncode == 0, again.stderr
    for uri, made in ((training, "again.jsonl"), (validation, "again.validation.jsonl")):
        digest = hashlib.sha256((tmp_path / made).read_bytes()).hexdigest()
        assert uri.split("/")[3] == digest[:16]
    checked = sarto("data", "check", "tickets.csv", "--yes", "--json")
    assert checked.returncode == 0, checked.stderr
    assert json.loads(checked.stdout)["dataset"]["rows"] == 16


def test_the_examples_of_the_page_run(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    section = page.partition("## Data as you have it")[2].partition("\n## ")[0]
    blocks = dict(re.findall(r"^```(\w*)\n(.*?)^```$", section, re.DOTALL | re.MULTILINE))
    (tmp_path / "tickets.csv").write_text(blocks["csv"], encoding="utf-8")
    commands = blocks[""].splitlines()
    for command in commands:
        done = alone(tmp_path, *command.split()[1:])
        assert done.returncode == 0, done.stderr
    made = (tmp_path / "train.jsonl").read_bytes()
    assert len(commands) == 4 and made
    (tmp_path / "map.toml").write_text(blocks["toml"], encoding="utf-8")
    by_hand = alone(tmp_path, *commands[-1].split()[1:])
    assert by_hand.returncode == 0, by_hand.stderr
    texts = [path.read_text(encoding="utf-8") for path in tmp_path.glob("train*.jsonl")]
    assert sum(text.count("Answer briefly.") for text in texts) == 2  # the rows in English
