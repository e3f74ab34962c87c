"""Converted files: the outputs of a conversion, which appear whole, and the record of how they were made."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from sarto.conversations.convert.conversion import VALIDATION, Report, convert, refuse_unusable
from sarto.conversations.convert.files import SourceFile
from sarto.conversations.convert.mapping import MADE, ColumnMapping, to_json, to_toml
from sarto.errors import InvalidArgument
from sarto.system.files import whole_file, write_whole


def produce(files: Sequence[SourceFile], mapping: ColumnMapping, to: Path, validation_to: Path) -> Report:
    """Convert into files, which are as they were or complete; the second one only if there are rows for validation.
    Raises InvalidArgument when rows cannot be used."""
    read = {file.path.resolve() for file in files}
    for target in (to, validation_to):
        if target.resolve() in read:
            raise InvalidArgument(f"{target} is one of the sources; write to another file.")
    is_split = mapping.validation_share > 0 or any(file.split == VALIDATION for file in files)
    try:
        with ExitStack() as outputs:
            training = outputs.enter_context(whole_file(to))
            validation = outputs.enter_context(whole_file(validation_to)) if is_split else None
            report = convert(files, mapping, training, validation)
            refuse_unusable(report, mapping)
    except OSError as error:
        raise InvalidArgument(f"{error.filename or to} cannot be read or written: {error.strerror}.") from None
    if is_split and not report.validation:
        validation_to.unlink()
    return report


def save(mapping: ColumnMapping, path: Path) -> None:
    """Write a mapping as TOML, or as JSON by the file's name."""
    text = json.dumps(to_json(mapping), indent=2, ensure_ascii=False) if path.suffix == ".json" else to_toml(mapping)
    try:
        write_whole(path, text.encode())
    except OSError as error:
        raise InvalidArgument(f"{path} cannot be written: {error.strerror}.") from None


def record(files: Sequence[SourceFile], mapping: ColumnMapping, made: dict[str, Path]) -> bytes:
    """The mapping as JSON with the digests of sources and outputs; `--map` reads it."""
    sources = [{"name": file.name, **_facts(file.path)} for file in files]
    outputs = {name: _facts(path) for name, path in made.items()}
    return json.dumps({**to_json(mapping), MADE: {"sources": sources, "outputs": outputs}}, indent=2).encode()


def _facts(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"sizeBytes": str(path.stat().st_size), "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
