"""Every format gives the same rows, and a broken file is refused by name, with the place and the remedy."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import feather, ipc, parquet

from sarto.conversations.conversation import RowFault
from sarto.conversations.convert import csv_rows, streams
from sarto.conversations.convert.files import delimiter_of, find_files, read_rows
from sarto.errors import InvalidArgument

ROWS = [{"q": f"What is {n}?\nSay it.", "a": f"„{n}“, of course"} for n in range(5)]
Write = Callable[[Path], Path]


def csv_text(mark: str) -> str:
    cells = ['"{}"{}"{}"'.format(row["q"], mark, row["a"]) for row in ROWS]
    return "\r\n".join([f"q{mark}a", *cells, "", ""])


def table(rows: list[dict[str, Any]] = ROWS) -> pa.Table:
    return pa.Table.from_pylist(rows)


def saved(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def zstd(data: bytes) -> bytes:
    packed: bytes = pa.compress(data, codec="zstd", asbytes=True)
    return packed


def parquet_file(path: Path) -> Path:
    parquet.write_table(table(), path, compression="zstd", row_group_size=2)
    return path


def arrow_stream(path: Path) -> Path:
    with ipc.new_stream(path, table().schema) as writer:
        writer.write_table(table(), max_chunksize=2)
    return path


def feather_file(path: Path) -> Path:
    feather.write_feather(table(), path, compression="lz4")
    return path


JSON_LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
FILES: dict[str, Write] = {
    "rows.csv": lambda path: saved(path, csv_text(",").encode()),
    "bom.csv": lambda path: saved(path, b"\xef\xbb\xbf" + csv_text(";").encode()),
    "rows.tsv": lambda path: saved(path, csv_text("\t").encode()),
    "rows.csv.gz": lambda path: saved(path, gzip.compress(csv_text(",").encode())),
    "rows.csv.zst": lambda path: saved(path, zstd(csv_text(",").encode())),
    "rows.jsonl": lambda path: saved(path, JSON_LINES.replace(b"\n", b"\r\n\n")),
    "lines.json": lambda path: saved(path, JSON_LINES),
    "rows.jsonl.gz": lambda path: saved(path, gzip.compress(JSON_LINES[:99]) + gzip.compress(JSON_LINES[99:])),
    "rows.ndjson.zst": lambda path: saved(path, zstd(JSON_LINES[:99]) + zstd(JSON_LINES[99:])),
    "list.json": lambda path: saved(path, json.dumps(ROWS, indent=1).encode()),
    "short.json": lambda path: saved(path, json.dumps(ROWS).encode() + b"\n"),
    "printed.json": lambda path: saved(path, "".join(json.dumps(row, indent=2) for row in ROWS).encode()),
    "unnamed": lambda path: saved(path, JSON_LINES),
    "rows.parquet": parquet_file,
    "rows.parquet.gz": lambda path: saved(path, gzip.compress(parquet_file(path).read_bytes())),
    "rows.arrow": arrow_stream,
    "rows.feather": feather_file,
}


def rows_of(path: Path, encoding: str = "utf-8", delimiter: str = "") -> list[Any]:
    (file,) = find_files([str(path)])
    return [row for *_, row in read_rows(file, encoding, delimiter or delimiter_of(file, encoding), None)]


@pytest.mark.parametrize("name", FILES)
def test_every_format_has_the_same_rows(name: str, tmp_path: Path) -> None:
    assert rows_of(FILES[name](tmp_path / name)) == ROWS


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32", "cp1252", "mac-roman"])
def test_other_encodings_are_read_by_name_and_refused_without(encoding: str, tmp_path: Path) -> None:
    path = saved(tmp_path / "rows.csv", csv_text(",").encode(encoding))
    assert rows_of(path, encoding) == ROWS
    with pytest.raises(InvalidArgument, match=r"byte offset \d+.*--encoding"):
        rows_of(path)


def test_a_wrong_byte_is_named_with_offset_and_line(tmp_path: Path) -> None:
    path = saved(tmp_path / "rows.csv", b"q,a\nWho?,Zo\xc3\xab\n" + b"x,y\n" * 700_000 + b"Where?,Caf\xe9\n")
    with pytest.raises(InvalidArgument) as refused:
        rows_of(path)
    assert "rows.csv: byte 0xE9 at byte offset 2,800,024 (line 700,003)" in refused.value.message
    assert "cp1252" in refused.value.message


@pytest.mark.parametrize(
    ("text", "row", "line", "words"),
    [
        ('q,a\none,two\nthree\nfour,"five\nsix"\n', 2, 3, "saw 1 cells, want 2, as in the header"),
        ('q,a\n"one\ntwo",x\none,two,three\n', 2, 4, "saw 3 cells"),
        ('q,a\none,two\nfour,"five\nsix\n', 2, 3, "a quote that is never closed"),
        ('q,a\none,"two" three\n', 1, 2, "broken quotes"),
    ],
)
def test_a_ragged_or_broken_row_of_csv_is_named(text: str, row: int, line: int, words: str, tmp_path: Path) -> None:
    (file,) = find_files([str(saved(tmp_path / "rows.csv", text.encode()))])
    faults = [each for each in read_rows(file, "utf-8", ",", None) if isinstance(each[2], RowFault)]
    assert [(number, at) for number, at, _ in faults] == [(row, line)]
    assert words in str(faults[0][2])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (",,\n1,2,3\n", "has no header"),
        ("q,a,q\n1,2,3\n", 'names "q" twice, in columns 1 and 3'),
        ('"q,a\n1,2', "header cannot be read"),
    ],
)
def test_a_broken_header_is_refused(text: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match=words):
        rows_of(saved(tmp_path / "rows.csv", text.encode()), delimiter=",")


def test_a_column_without_a_name_is_called_by_its_number(tmp_path: Path) -> None:
    """pandas writes its index so."""
    assert rows_of(saved(tmp_path / "rows.csv", b",q,a\n0,x,y\n")) == [{"column 1": "0", "q": "x", "a": "y"}]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b'[{"a": 1}, {"a": 2}', "not closed after row 2"),
        (b'[{"a": 1} {"a": 2}]', "after row 1 stands"),
        (b'[{"a": 1}, 5]', "wanted an object"),
        (b'[{"a": 1}] x', "text follows the end of the list"),
        (b'[{"a": "x}', "row 1 is not closed"),
    ],
)
def test_a_broken_list_is_refused_with_its_row(data: bytes, words: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match=words):
        rows_of(saved(tmp_path / "rows.json", data))


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("rows.csv", b"PK\x03\x04....", "Excel workbook"),
        ("rows.csv", b"", "it is empty"),
        ("rows.parquet", b"q,a\n", "does not begin as such a file"),
        ("rows.csv", b"\xfd7zXZ\x00", "an xz file"),
        ("rows.xyz", b"q,a\n", "its name must end in one of .csv"),
        ("rows.parquet", b"PAR1" + b"x" * 60 + b"PAR1", "cannot be read as a Parquet file"),
        ("rows.arrow", b"ARROW1\0\0" + b"x" * 60 + b"ARROW1", "cannot be read as a Arrow file"),
        ("rows.csv.gz", gzip.compress(b"q,a\nx,y\n" * 99, mtime=0)[:-9], "gzip data is broken or cut"),
        ("rows.csv.zst", b"\x28\xb5\x2f\xfd" + b"\xff" * 40, "zstd data is broken or cut"),
    ],
)
def test_a_file_of_another_kind_is_refused(name: str, data: bytes, words: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match=words):
        rows_of(saved(tmp_path / name, data))


@pytest.mark.parametrize("pack", [gzip.compress, zstd])
def test_a_bomb_is_refused_and_takes_no_memory(
    pack: Callable[[bytes], bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "RATIO_FROM_BYTES", 4 << 20)
    path = saved(tmp_path / "rows.csv.gz", pack(b"q,a\n" + b"x,y\n" * (8 << 20)))
    tracemalloc.start()
    with pytest.raises(InvalidArgument, match="unpacks to more than 250 times its size"):
        rows_of_none(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 << 20


def rows_of_none(path: Path) -> None:
    (file,) = find_files([str(path)])
    for _ in read_rows(file, "utf-8", ",", None):
        pass


def test_a_cell_that_never_ends_is_refused_within_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_rows, "MOST_LINE_BYTES", 1 << 20)
    path = saved(tmp_path / "rows.csv", b'q,a\nx,"' + b"words\n" * (1 << 20))
    faults = [row for row in rows_of(path, delimiter=",") if isinstance(row, RowFault)]
    assert "a cell of more than" in str(faults[0])


def test_parquet_reads_the_named_columns_only_and_names_wrong_text(tmp_path: Path) -> None:
    wrong = pa.array([b"fine", b"caf\xe9"], pa.binary())
    columns = {"q": pa.array(["x", "y"]), "image": pa.array([b"\x89PNG", b"\x89PNG"]), "n": pa.array([2**63 - 1, -5])}
    path = tmp_path / "rows.parquet"
    parquet.write_table(pa.table({**columns, "a": pa.Array.from_buffers(pa.string(), 2, wrong.buffers())}), path)
    (file,) = find_files([str(path)])
    found = [row for *_, row in read_rows(file, "utf-8", "", ["q", "n", "a"])]
    assert found[0] == {"q": "x", "n": 2**63 - 1, "a": "fine"}
    assert isinstance(found[1], RowFault) and found[1].path == "a" and "0xE9" in found[1].seen


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    parquet.write_table(pa.table([pa.array(["x"]), pa.array(["y"])], names=["q", "q"]), path)
    with pytest.raises(InvalidArgument, match='two columns are named "q"'):
        rows_of(path)


def test_folders_of_datasets_have_their_splits(tmp_path: Path) -> None:
    data = tmp_path / "hub" / "data"
    data.mkdir(parents=True)
    for name in ("train-00000-of-00002", "train-00001-of-00002", "validation-00000-of-00001", "test-00000-of-00001"):
        parquet_file(data / f"{name}.parquet")
    saved(tmp_path / "hub" / "README.md", b"# A dataset")
    saved(tmp_path / "hub" / "dataset_infos.json", b"{}")
    found = find_files([str(tmp_path / "hub")])
    assert [(file.name, file.split) for file in found] == [
        ("data/test-00000-of-00001.parquet", "test"),
        ("data/train-00000-of-00002.parquet", "train"),
        ("data/train-00001-of-00002.parquet", "train"),
        ("data/validation-00000-of-00001.parquet", "validation"),
    ]


def test_shards_of_save_to_disk_are_read_in_order(tmp_path: Path) -> None:
    root = tmp_path / "saved"
    for split in ("train", "test"):
        (root / split).mkdir(parents=True)
        arrow_stream(root / split / "data-00000-of-00001.arrow")
        state = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}
        saved(root / split / "state.json", json.dumps(state).encode())
        saved(root / split / "dataset_info.json", b"{}")
    saved(root / "dataset_dict.json", b'{"splits": ["train", "test"]}')
    assert [(file.name, file.split) for file in find_files([str(root)])] == [
        ("train/data-00000-of-00001.arrow", "train"),
        ("test/data-00000-of-00001.arrow", "test"),
    ]
    assert rows_of(root / "train") == ROWS
    chosen = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}], "_indices_data_files": [{"filename": "i"}]}
    saved(root / "train" / "state.json", json.dumps(chosen).encode())
    with pytest.raises(InvalidArgument, match="flatten_indices"):
        find_files([str(root)])


def test_folders_with_several_datasets_or_none_are_refused(tmp_path: Path) -> None:
    for name in ("de", "en"):
        (tmp_path / name).mkdir()
        saved(tmp_path / name / "train.csv", b"q,a\nx,y\n")
    with pytest.raises(InvalidArgument, match="several datasets; name one of the folders"):
        find_files([str(tmp_path)])
    (tmp_path / "none").mkdir()
    with pytest.raises(InvalidArgument, match="has no data files"):
        find_files([str(tmp_path / "none")])


@pytest.mark.parametrize("address", ["s3://b/rows.csv", "hf://datasets/o/n", "https://h/rows.csv", "az://c/rows.csv"])
def test_addresses_are_refused_with_a_way_to_download(address: str) -> None:
    with pytest.raises(InvalidArgument, match="Download it"):
        find_files([address])
