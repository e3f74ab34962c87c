"""The files of a data source: a file, several, or the folder of a Hugging Face dataset, with format and split."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from sarto.conversations.convert.arrow_rows import read_arrow, read_parquet
from sarto.conversations.convert.csv_rows import guess_delimiter, read_csv
from sarto.conversations.convert.faults import Row, broken
from sarto.conversations.convert.json_rows import read_json
from sarto.conversations.convert.streams import open_bytes, open_text
from sarto.errors import InvalidArgument

TRAIN = "train"
SPLITS = {"train": TRAIN, "training": TRAIN, "validation": "validation", "valid": "validation", "val": "validation",
          "dev": "validation", "eval": "validation", "test": "test", "testing": "test"}  # fmt: skip
SUFFIXES = {".csv": "csv", ".tsv": "tsv", ".tab": "tsv", ".json": "json", ".jsonl": "json", ".ndjson": "json",
            ".parquet": "parquet", ".pq": "parquet", ".arrow": "arrow", ".feather": "arrow"}  # fmt: skip
PACKED = (".gz", ".gzip", ".zst", ".zstd")
MAGIC = {b"PAR1": "parquet", b"ARROW1": "arrow", b"\xff\xff\xff\xff": "arrow"}
REFUSED = {
    b"PK\x03\x04": "a zip file or an Excel workbook; unpack it, or save the sheet as CSV",
    b"BZh": "a bzip2 file; unpack it first",
    b"\xfd7zXZ": "an xz file; unpack it first",
    b"FEA1": "a Feather file of version 1; write it again with pyarrow.feather.write_feather",
    b"PARE": "an encrypted Parquet file; decrypt it first",
    b"\xd0\xcf\x11\xe0": "an old Excel workbook; save the sheet as CSV",
    b"SQLite format 3": "an SQLite database; export a table as CSV",
    b"%PDF": "a PDF document, not a table",
    b"Obj\x01": "an Avro file; convert it to Parquet or JSON lines",
    b"ORC": "an ORC file; convert it to Parquet",
}  # fmt: skip
REMOTE = re.compile(r"(?P<scheme>[a-z][a-z0-9+]{1,20})://")
_WORD = re.compile(r"[a-z]+")
MOST_FILES = 10_000


@dataclass(frozen=True)
class SourceFile:
    """A local file. `name` is how errors call it; `split` is empty where no name tells it."""

    path: Path
    name: str
    format: str
    split: str = ""


def find_files(sources: Sequence[str]) -> list[SourceFile]:
    """The data files of these paths, folders in the order of their names. Raises InvalidArgument."""
    found: list[SourceFile] = []
    for source in sources:
        if remote := REMOTE.match(source):
            raise InvalidArgument(
                f"{source}: sources of {remote['scheme']}:// are not read from here. Download it and name the file, "
                f"for example: {_download(remote['scheme'], source)}"
            )
        path = Path(source)
        if path.is_dir():
            found += _of_folder(path)
        else:
            found.append(_of_file(path, path.name))
    if not found:
        raise InvalidArgument("Name at least one data file or folder.")
    names = [file.name for file in found]
    return found if len(set(names)) == len(names) else [_with_path(file) for file in found]


def _download(scheme: str, source: str) -> str:
    programs = {"s3": f"aws s3 cp {source} .", "gs": f"gcloud storage cp {source} .", "http": f"curl -LO {source}",
                "https": f"curl -LO {source}", "hf": "hf download --repo-type dataset OWNER/NAME --local-dir data",
                "az": "azcopy copy URL ."}  # fmt: skip
    return programs.get(scheme, "with its own program")


def _with_path(file: SourceFile) -> SourceFile:
    return SourceFile(file.path, str(file.path), file.format, file.split)


def _of_file(path: Path, name: str, split: str = "") -> SourceFile:
    try:
        with open_bytes(path, name) as opened:
            start = opened.read(16)
    except OSError as error:
        raise InvalidArgument(f"{path} cannot be read: {error.strerror}.") from None
    return SourceFile(path, name, _format(path, name, start), split)


def _format(path: Path, name: str, start: bytes) -> str:
    """The format by the first bytes, or by the name."""
    for magic, kind in MAGIC.items():
        if start.startswith(magic):
            return kind
    for magic, what in REFUSED.items():
        if start.startswith(magic):
            raise broken(name, f"it is {what}.")
    suffix = suffix_of(path)
    kind = SUFFIXES.get(suffix, "")
    if not start:
        raise broken(name, "it is empty.")
    if kind in ("parquet", "arrow"):
        raise broken(name, f"its name ends in {suffix}, but it does not begin as such a file.")
    if not kind and start.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] in (b"{", b"["):
        return "json"
    if not kind:
        raise broken(name, f"its name must end in one of {', '.join(SUFFIXES)} (with .gz or .zst behind it or not).")
    return kind


def suffix_of(path: Path) -> str:
    """`.csv` of `rows.csv.gz`."""
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    if suffixes and suffixes[-1] in PACKED:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def split_of(name: str) -> str:
    """The split that a file's or a folder's name begins with or holds as a word: `train-00000-of-00002.parquet`."""
    words = _WORD.findall(name.lower().partition(".")[0])
    return next((SPLITS[word] for word in words if word in SPLITS), "")


def _of_folder(folder: Path) -> list[SourceFile]:
    saved = _saved_to_disk(folder)
    if saved is not None:
        return saved
    paths = [path for path in _walk(folder) if suffix_of(path) in SUFFIXES and not _is_about(path)]
    if not paths:
        raise InvalidArgument(f"{folder} has no data files ({', '.join(SUFFIXES)}).")
    homes = {path.parent for path in paths if not split_of(path.parent.name)}
    if len(homes) > 1:
        listed = ", ".join(sorted(str(home) for home in homes)[:10])
        raise InvalidArgument(f"{folder} holds several datasets; name one of the folders: {listed}.")
    found = [
        _of_file(path, path.relative_to(folder).as_posix(), split_of(path.name) or split_of(path.parent.name))
        for path in paths
    ]
    kinds = sorted({file.format for file in found})
    if len(kinds) > 1:
        raise InvalidArgument(f"{folder} holds files of several formats ({', '.join(kinds)}); name the files.")
    return found


def _walk(folder: Path) -> list[Path]:
    """Files of a folder and its folders, without hidden ones, sorted."""
    paths: list[Path] = []
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not any(part.startswith((".", "_")) for part in path.relative_to(folder).parts):
            paths.append(path)
        if len(paths) > MOST_FILES:
            raise InvalidArgument(f"{folder} holds more than {MOST_FILES:,} files; name the data files.")
    return paths


def _is_about(path: Path) -> bool:
    """Files that describe a dataset."""
    return path.name in ("dataset_info.json", "dataset_infos.json", "state.json", "dataset_dict.json", "package.json")


def _saved_to_disk(folder: Path) -> list[SourceFile] | None:
    """The shards of a dataset that `save_to_disk` wrote, in its order; None for other folders."""
    splits = _json(folder / "dataset_dict.json")
    if splits is not None:
        names = splits.get("splits")
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise broken(f"{folder.name}/dataset_dict.json", "it has no list of splits.")
        return [file for name in names for file in _shards(folder, folder / Path(name).name, name)]
    return list(_shards(folder, folder, "")) if (folder / "state.json").is_file() else None


def _shards(root: Path, folder: Path, split: str) -> Iterator[SourceFile]:
    state, where = _json(folder / "state.json"), f"{folder.name}/state.json"
    files = (state or {}).get("_data_files")
    if not isinstance(files, list):
        raise broken(where, "it has no list of data files.")
    if any((state or {}).get(key) for key in ("_indices_files", "_indices_data_files")):
        raise broken(where, "its rows are chosen by an index. Call flatten_indices() and save_to_disk() again.")
    for file in files:
        name = file.get("filename") if isinstance(file, dict) else None
        if not isinstance(name, str):
            raise broken(where, "a data file has no name.")
        path = folder / Path(name).name
        yield _of_file(path, path.relative_to(root).as_posix(), SPLITS.get(split, split))


def _json(path: Path) -> dict[str, object] | None:
    if not path.is_file():
        return None
    try:
        value = json.loads(path.read_bytes())
    except ValueError:
        raise broken(str(path), "it is not JSON.") from None
    return value if isinstance(value, dict) else {}


def delimiter_of(file: SourceFile, encoding: str) -> str:
    """The delimiter of a CSV file; empty for other formats."""
    if file.format == "tsv":
        return "\t"
    if file.format != "csv":
        return ""
    with open_text(file.path, file.name, encoding) as stream:
        return guess_delimiter(stream)


def read_rows(file: SourceFile, encoding: str, delimiter: str, columns: Sequence[str] | None) -> Iterator[Row]:
    """The rows of a file, with these columns or with all where a format can choose."""
    if file.format == "parquet":
        yield from read_parquet(file.path, file.name, columns)
        return
    if file.format == "arrow":
        yield from read_arrow(file.path, file.name, columns)
        return
    with open_text(file.path, file.name, encoding) as stream:
        if file.format == "json":
            yield from read_json(stream, file.name)
        else:
            yield from read_csv(stream, file.name, "\t" if file.format == "tsv" else delimiter or ",")
