"""The data of a job: a file of JSON lines is uploaded as it is, any other is converted first."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import orjson
import typer

from sarto.cli import output
from sarto.cli.client import Client
from sarto.cli.datasets.preview import confirm, print_preview, print_report
from sarto.cli.datasets.produce import produce, record
from sarto.cli.datasets.reading import Choice, Given, chosen, read_map
from sarto.conversations.convert.files import REMOTE, find_files
from sarto.errors import InvalidArgument

NATIVE = ({"contents"}, {"messages"}, {"input_text"}, {"prompt", "completion"}, {"input", "preferred_output"},
          {"input", "preferred_completion"})  # fmt: skip
"""Keys of rows that the service reads itself."""
FIRST_BYTES = 1 << 20


@dataclass(frozen=True)
class Uploaded:
    """URIs of a job's data; `validation` is empty where there is none."""

    training: str
    validation: str


def upload(
    context: typer.Context,
    api: Client,
    training: str,
    validation: str = "",
    *,
    map_file: str = "",
    yes: bool = False,
    kms_key: str = "",
) -> Uploaded:
    """Upload local files, converted where they need it, with the record of the conversion beside them."""
    mapping = read_map(context, map_file) if map_file else None
    if mapping is None and not any(needs_conversion(each) for each in (training, validation)):
        return Uploaded(api.dataset(training, kms_key), api.dataset(validation, kms_key) if validation else "")
    choice: Choice | None = None
    uris = {"training": "", "validation": ""}
    with tempfile.TemporaryDirectory(prefix="sarto-") as folder:
        for name, source in (("training", training), ("validation", validation)):
            if not source:
                continue
            if source.startswith("gs://"):
                raise InvalidArgument(f"{source}: only local files are converted; download it, or leave --map out.")
            if mapping is None and not needs_conversion(source):
                uris[name] = api.dataset(source, kms_key)
                continue
            files = find_files([source])
            choice = chosen(files, Given(), mapping or (choice.mapping if choice else None))
            print_preview(choice, output.messages())
            confirm(choice, is_agreed=yes)
            made = Path(folder) / name
            made.mkdir()
            target = made / f"{Path(source).name.partition('.')[0] or name}.jsonl"
            report = produce(files, choice.mapping, target, made / f"{target.stem}.validation.jsonl")
            print_report(report, output.messages())
            outputs = dict(
                zip(("training", "validation"), sorted(made.iterdir(), key=lambda p: len(p.name)), strict=False)
            )
            kept = record(files, choice.mapping, outputs)
            uris[name] = api.dataset(str(outputs["training"]), kms_key, mapping=kept)
            if "validation" in outputs and name == "training" and not validation:
                uris["validation"] = api.dataset(str(outputs["validation"]), kms_key, mapping=kept)
    return Uploaded(**uris)


def needs_conversion(source: str) -> bool:
    """Whether a file is not JSON lines of a form that the service reads. A file whose first line cannot be read is
    uploaded as it is, since the service's report explains it."""
    if not source or source.startswith("gs://"):
        return False
    path = Path(source)
    if REMOTE.match(source) or path.is_dir():
        return True
    if path.suffix.lower() != ".jsonl":
        return True
    try:
        with path.open("rb") as file:
            line = file.readline(FIRST_BYTES)
        row = orjson.loads(line.removeprefix(b"\xef\xbb\xbf"))
    except (OSError, orjson.JSONDecodeError):
        return False
    return isinstance(row, dict) and not any(keys <= row.keys() for keys in NATIVE)
