"""A dataset into a store: every row checked and reported, memory bounded, made once, whole or not at all."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sarto.contract.common import DatasetRef
from sarto.conversations.examples import parse_line
from sarto.engine.dataset.blocks import BLOCK_BYTES, read_line, scan
from sarto.engine.dataset.prepare import DatasetLimits, PreparedDataset, check_usable, prepare
from sarto.engine.dataset.statistics import distribution
from sarto.engine.dataset.token_store import TokenStore
from sarto.engine.rendering.render import render
from sarto.engine.rendering.tokenizer import ChatTokenizer
from sarto.errors import InvalidArgument
from tests.engine.conftest import Write, row
from tests.engine.conversations import FAMILIES

ROWS = [row(f"Question {number}?", f"Answer number {number}.") for number in range(40)]


def run(dataset: DatasetRef, tokenizer: ChatTokenizer, folder: Path, **options: Any) -> PreparedDataset:
    return prepare(dataset, tokenizer, **{"max_tokens": 512, "cache_folder": folder / "cache", **options})


def test_a_store_holds_what_the_renderer_gives(write: Write, tokenizer: ChatTokenizer, tmp_path: Path) -> None:
    store = run(write(ROWS), tokenizer, tmp_path).store
    assert len(store) == len(ROWS)
    for index, given in enumerate(ROWS):
        [expected] = render(parse_line(json.dumps(given).encode(), index + 1), tokenizer)
        assert store.tokens(index).tolist() == expected.tokens
        assert store.tokens(index).dtype == np.uint32
        assert store.loss_mask(index).tolist() == expected.loss_mask
        assert store.line(index) == index + 1
        assert store.lengths[index] == len(expected.tokens)


def test_a_conversation_that_is_split_keeps_its_line(write: Write, tmp_path: Path) -> None:
    turns = [{"role": r, "content": c} for r, c in (("user", "a"), ("assistant", "b")) * 3]
    dataset = write([ROWS[0], {"messages": turns}, ROWS[1]])
    prepared = run(dataset, ChatTokenizer.load(FAMILIES / "qwen3"), tmp_path)
    assert [prepared.store.line(index) for index in range(len(prepared.store))] == [1, 2, 2, 2, 3]
    assert prepared.stats(1).example_count == 3


def test_dropped_rows_are_reported_fully_and_in_order(write: Write, tokenizer: ChatTokenizer, tmp_path: Path) -> None:
    rows: list[Any] = [*ROWS]
    rows[3] = b"{broken"
    rows[17] = row("Too long", "word " * 600)
    rows[30] = row("No reply", " ")
    stats = run(write(rows), tokenizer, tmp_path).stats(5)
    assert stats.dropped_indices == [4, 18, 31]
    assert stats.dropped_count == 3 and stats.example_count == 37
    broken, too_long, empty = stats.dropped_reasons
    assert "broken JSON" in broken
    assert "at most 512 tokens" in too_long and "never cut" in too_long
    assert empty.startswith("contents[1]: saw a turn without text")


def test_more_than_a_tenth_unusable_fails_with_the_first_faults(
    write: Write, tokenizer: ChatTokenizer, tmp_path: Path
) -> None:
    bad = [b"nonsense"] * 5
    with pytest.raises(InvalidArgument) as caught:
        run(write([*ROWS, *bad]), tokenizer, tmp_path)
    message = caught.value.message
    assert "5 of 45 rows cannot be used (11.1 %; at most 10 % may be dropped)" in message
    assert "line 41: saw broken JSON" in message
    assert [violation.field.split()[-1] for violation in caught.value.violations] == ["41", "42", "43", "44", "45"]
    assert not list((tmp_path / "cache").iterdir()), "nothing half-made stays"
    looser = run(write([*ROWS, *bad]), tokenizer, tmp_path, limits=DatasetLimits(max_dropped_share=0.5))
    assert len(looser.faults) == 5
    with pytest.raises(InvalidArgument, match="at most 10 %"):  # the store is there now, the rule holds all the same
        run(write([*ROWS, *bad]), tokenizer, tmp_path)


@pytest.mark.parametrize(
    ("rows", "limits", "words"),
    [
        ([], DatasetLimits(), "has no rows"),
        ([b"", b"  "], DatasetLimits(), "has no rows"),
        (ROWS, DatasetLimits(max_bytes=100), "at most 100 are allowed"),
        (ROWS, DatasetLimits(max_examples=39), "more than 39 examples"),
    ],
)
def test_limits_are_refused_by_name(
    write: Write, tokenizer: ChatTokenizer, tmp_path: Path, rows: list[Any], limits: DatasetLimits, words: str
) -> None:
    with pytest.raises(InvalidArgument, match=words):
        run(write(rows), tokenizer, tmp_path, limits=limits)


def test_a_large_validation_file_is_bound_to_the_size_of_the_training_file(
    write: Write, tokenizer: ChatTokenizer, tmp_path: Path
) -> None:
    training = run(write([row(f"question {i}", "yes") for i in range(3400)]), tokenizer, tmp_path)
    held = {n: run(write([row(f"held {i}", "no") for i in range(n)]), tokenizer, tmp_path) for n in (1000, 1020, 1021)}
    for count in (1000, 1020):
        check_usable(training, held[count])
    with pytest.raises(InvalidArgument, match=r"1,021 examples for 3,400 .* at most 30%"):
        check_usable(training, held[1021])
    check_usable(run(write(ROWS), tokenizer, tmp_path), held[1000])


def test_a_second_job_on_the_same_data_tokenises_nothing(
    write: Write, tokenizer: ChatTokenizer, tmp_path: Path
) -> None:
    dataset = write(ROWS)
    first = run(dataset, tokenizer, tmp_path)
    copy = Path(dataset.path).with_name("copy.jsonl")
    copy.write_bytes(Path(dataset.path).read_bytes())
    second = run(replace_path(dataset, copy), tokenizer, tmp_path)
    assert (first.was_cached, second.was_cached) == (False, True)
    assert first.stats(1) == second.stats(1)
    assert not run(dataset, tokenizer, tmp_path, max_tokens=511).was_cached
    assert not run(dataset, ChatTokenizer.load(FAMILIES / "qwen2"), tmp_path).was_cached
    copy.write_bytes(Path(dataset.path).read_bytes() + json.dumps(ROWS[0]).encode())
    assert not run(replace_path(dataset, copy), tokenizer, tmp_path).was_cached


def replace_path(dataset: DatasetRef, path: Path) -> DatasetRef:
    return dataset.model_copy(update={"path": str(path), "size_bytes": path.stat().st_size})


def test_runs_that_make_the_same_store_at_once_share_it(write: Write, tokenizer: ChatTokenizer, tmp_path: Path) -> None:
    dataset = write(ROWS * 20)
    found: list[TokenStore] = []

    def prepare() -> None:
        found.append(run(dataset, tokenizer, tmp_path).store)

    threads = [threading.Thread(target=prepare, daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({store.folder for store in found}) == 1
    assert len({tuple(store.tokens(7).tolist()) for store in found}) == 1
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_several_processes_give_what_one_gives(write: Write, tokenizer: ChatTokenizer, tmp_path: Path) -> None:
    rows: list[Any] = [row(f"Question {number} " + "and so on " * 20, f"Answer {number}") for number in range(30_000)]
    rows[20_000] = b"broken"
    rows[29_999] = row("mail me@example.org", "done")
    dataset = write(rows)
    assert dataset.size_bytes > 6 * BLOCK_BYTES
    heard: list[tuple[int, int]] = []
    one = run(dataset, tokenizer, tmp_path / "one")
    two = run(dataset, tokenizer, tmp_path / "two", processes=2, progress=lambda done, size: heard.append((done, size)))
    assert one.stats(3) == two.stats(3)
    assert one.store.facts == two.store.facts
    assert two.store.facts.secrets == [[30_000, "e-mail address", "me@…"]]
    for name, column in one.store.columns.items():
        assert np.array_equal(column, two.store.columns[name])
    assert (one.store.folder / "tokens").read_bytes() == (two.store.folder / "tokens").read_bytes()
    assert heard[-1] == (dataset.size_bytes, dataset.size_bytes)


def test_a_huge_line_is_one_fault_and_is_never_read(write: Write, tokenizer: ChatTokenizer, tmp_path: Path) -> None:
    huge = b'{"prompt": "' + b"x" * (3 * BLOCK_BYTES) + b'", "completion": "y"}'
    dataset = write([*ROWS[:20], huge, *ROWS[20:]])
    prepared = run(dataset, tokenizer, tmp_path, limits=DatasetLimits(max_line_bytes=2 * BLOCK_BYTES))
    [fault] = prepared.faults
    assert fault.line == 21 and fault.seen.startswith("a line of 3,1")
    assert prepared.store.line(20) == 22
    assert read_line(Path(dataset.path), 21, 2 * BLOCK_BYTES) is None
    assert read_line(Path(dataset.path), 22, 2 * BLOCK_BYTES) == json.dumps(ROWS[20]).encode()
    assert read_line(Path(dataset.path), 42, 2 * BLOCK_BYTES) is None


def test_blocks_cover_a_file_line_by_line(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    lines = [b"a" * (index * 977 % 200_000) for index in range(60)]
    for ending in (b"", b"\n"):
        path.write_bytes(b"\n".join(lines) + ending)
        blocks = list(scan(path, 1 << 30))
        assert b"".join(block.read(path) for block in blocks) == path.read_bytes()
        seen = [line for block in blocks for line in block.read(path).removesuffix(b"\n").split(b"\n")]
        assert seen == lines
        counted = 1
        for block in blocks:
            assert block.first_line == counted
            counted += block.read(path).count(b"\n")


def test_windows_line_ends_and_a_byte_order_mark_change_nothing(
    write: Write, tokenizer: ChatTokenizer, tmp_path: Path
) -> None:
    plain, windows = write(ROWS), write(ROWS)
    data = Path(windows.path).read_bytes().replace(b"\n", b"\r\n")
    Path(windows.path).write_bytes(b"\xef\xbb\xbf" + data)
    one, other = run(plain, tokenizer, tmp_path), run(windows, tokenizer, tmp_path)
    assert one.stats(1) == other.stats(1)


def test_input_and_output_tokens_sum_to_the_tokens_of_one_pass(
    write: Write, tokenizer: ChatTokenizer, tmp_path: Path
) -> None:
    stats = run(write(ROWS), tokenizer, tmp_path).stats(7)
    assert stats.input_tokens.sum + stats.output_tokens.sum == stats.token_count
    assert stats.messages.min == stats.messages.max == 2
    assert stats.messages.buckets == [(40, 2.0, 3.0)]
    assert stats.step_count == 7
    assert len(stats.sample_contents) == 6
    assert stats.character_count == sum(len(part["text"]) for r in ROWS for c in r["contents"] for part in c["parts"])


def test_buckets_are_whole_and_count_every_value_once() -> None:
    generator = np.random.default_rng(1)
    for values in (np.array([5]), np.array([3, 3, 3]), np.array([1, 2]), generator.integers(0, 1000, 500)):
        found = distribution(values)
        assert sum(count for count, _, _ in found.buckets) == len(values)
        assert all(count and left == int(left) and right > left for count, left, right in found.buckets)
        assert len(found.buckets) <= 7
        assert found.min == values.min() and found.max == values.max() and found.sum == values.sum()


def test_preparing_loads_no_torch() -> None:
    modules = (
        "sarto.engine.dataset.prepare, sarto.engine.dataset_report.data_report, sarto.engine.dataset_report.mask_proof"
    )
    code = f"import sys, {modules}; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_limits_default_to_the_documented_values() -> None:
    assert replace(DatasetLimits()) == DatasetLimits(1 << 30, 10_000_000, 16 << 20, 0.1)
