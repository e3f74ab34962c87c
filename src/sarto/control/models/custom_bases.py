"""Custom base models: a gs:// folder in the layout of a hub snapshot, of an architecture in the catalogue.

It is checked at create and named by its content. The job's run converts it once, into `HOME/models`. Only safetensors
are read.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from sarto.catalog import Weights
from sarto.contract.common import CUSTOM
from sarto.control.context import Control
from sarto.errors import FieldViolation, InvalidArgument, SartoError
from sarto.names import parse_gs_uri
from sarto.storage.buckets.store import StoredObject

TENSORS = re.compile(r"model[^/]*\.safetensors")
CONFIG, TOKENIZER, SETTINGS, TEMPLATE = "config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"
OTHERS = frozenset({CONFIG, TOKENIZER, SETTINGS, TEMPLATE, "generation_config.json", "model.safetensors.index.json"})
MODEL_TYPES = {"gemma3": "gemma3_text"}
"""Values of `model_type` for families with another name."""
MOST_JSON_BYTES = 50_000_000


@dataclass(frozen=True)
class CustomBase:
    """`id` identifies the project and the content: `custom-` and a digest. Projects share no custom base: an existing
    one would reveal that another project has it."""

    id: str
    shared_id: str
    """The id by content only, for jobs that were created before ids had the project."""
    files: dict[str, StoredObject]

    def link_into(self, control: Control, folder: Path) -> None:
        """Link its files into a folder of our own; files of an earlier attempt are replaced."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, stored in self.files.items():
            (folder / name).unlink(missing_ok=True)
            control.buckets.link_into(stored, folder / name)


def find(control: Control, project: str, uri: str, weights: Weights, field: str) -> CustomBase:
    """The folder, if it can be the base of a job on that architecture. Raises InvalidArgument with every fault."""
    files = _files(control, project, uri, field)
    missing = []
    if not any(TENSORS.fullmatch(name) for name in files):
        missing.append("weights (model.safetensors, or model-00001-of-….safetensors with its index); only safetensors")
    missing += [name for name in (CONFIG, TOKENIZER) if name not in files]
    if TEMPLATE not in files and not _has_template(control, files.get(SETTINGS)):
        missing.append(f"chat template ({TEMPLATE}, or chat_template in {SETTINGS})")
    faults = [f'"{uri}" has no {words}.' for words in missing]
    if CONFIG in files:
        kind = str(_read(control, files[CONFIG]).get("model_type", ""))
        model_type = MODEL_TYPES.get(weights.family, weights.family)
        if kind != model_type:
            faults.append(
                f'{CONFIG} says model_type "{kind}"; {weights.title}, named by baseModel, is a "{model_type}".'
            )
    if faults:
        raise InvalidArgument.of(FieldViolation(field, words) for words in faults)
    listed = "".join(f"{name}:{files[name].sha256}\n" for name in sorted(files))
    return CustomBase(_id(f"{project}\n{listed}"), _id(listed), files)


def _id(text: str) -> str:
    return CUSTOM + hashlib.sha256(text.encode()).hexdigest()[:32]


def context_length(folder: Path, weights: Weights) -> int:
    """Context length of the base: that of its configuration, at most that of the architecture."""
    config = orjson.loads((folder / CONFIG).read_bytes())
    stated = config.get("max_position_embeddings")
    return min(weights.context, stated) if isinstance(stated, int) and stated > 0 else weights.context


def _files(control: Control, project: str, uri: str, field: str) -> dict[str, StoredObject]:
    bucket, prefix = parse_gs_uri(uri, field)
    prefix = prefix.rstrip("/") + "/" if prefix.strip("/") else ""
    try:
        listed = control.buckets.list(bucket, prefix, "/", project=project).objects
    except SartoError as error:
        raise InvalidArgument.field(field, f"{uri}: {error.message}") from None
    named = {one.name.removeprefix(prefix): one for one in listed}
    return {name: one for name, one in named.items() if name in OTHERS or TENSORS.fullmatch(name)}


def _has_template(control: Control, settings: StoredObject | None) -> bool:
    return settings is not None and isinstance(_read(control, settings).get("chat_template"), str)


def _read(control: Control, stored: StoredObject) -> dict[str, Any]:
    """A JSON object; any other content is read as an empty one."""
    if stored.size > MOST_JSON_BYTES:
        return {}
    try:
        value = orjson.loads(control.buckets.path(stored).read_bytes())
    except orjson.JSONDecodeError:
        return {}
    return value if isinstance(value, dict) else {}
