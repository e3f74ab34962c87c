"""Base models by their API names, from `catalog.toml` beside this file and `HOME/catalog.toml`, whose entries come
first.

A name refers to weights; several names may share them. Knows no HTTP and no tensors.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal, TypeVar

import platformdirs
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from sarto.contract.common import BaseWeights
from sarto.errors import FailedPrecondition, InvalidArgument
from sarto.system.files import read_toml

DIGEST_FILE = "sarto.digest"
"""Has the hex digest of a weights folder. The converter writes it last, so a folder with it is complete."""


class Weights(BaseModel):
    """Weight files, and their origin: a hub repository or a wheel of the package registry."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str
    title: str
    family: str
    license: str
    hub: str = ""
    package: str = ""
    package_version: str = ""
    package_sha256: str = ""
    context: int
    learning_rate: float
    """For an adapter."""
    full_learning_rate: float = 1e-5
    """For full tuning."""


class CatalogEntry(BaseModel):
    """A group of names with one set of rules."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    names: list[str]
    weights: str
    kind: Literal["gemini", "open", "translation"] = "gemini"
    adapter_sizes: list[int]
    default_adapter_size: int


@dataclass(frozen=True)
class BaseModelEntry:
    """One name, resolved."""

    name: str
    rules: CatalogEntry
    weights: Weights


@dataclass(frozen=True)
class Catalog:
    weights: dict[str, Weights]
    entries: tuple[CatalogEntry, ...]
    models_folder: Path

    @classmethod
    def load(cls, home: Path | None = None, models_folder: Path | None = None) -> Catalog:
        """The shipped catalogue, after the entries of `HOME/catalog.toml`, which have precedence."""
        files = [Path(__file__).with_name("catalog.toml")]
        if home is not None and (home / "catalog.toml").exists():
            files.insert(0, home / "catalog.toml")
        weights: dict[str, Weights] = {}
        entries: list[CatalogEntry] = []
        for file in files:
            table = read_toml(file)
            for row in _rows(file, table, "weights", Weights):
                weights.setdefault(row.id, row)
            entries += _rows(file, table, "model", CatalogEntry)
        for entry in entries:
            if entry.weights not in weights:
                raise InvalidArgument(
                    f'{files[0]}: the model {entry.names[0]} has the weights "{entry.weights}", which no [[weights]]'
                    f" defines; defined are: {', '.join(sorted(weights))}."
                )
        return cls(weights, tuple(entries), models_folder or Path(platformdirs.user_cache_dir("sarto")) / "models")

    @cached_property
    def by_name(self) -> dict[str, BaseModelEntry]:
        entries: dict[str, BaseModelEntry] = {}
        for entry in self.entries:
            for name in entry.names:
                entries.setdefault(name, BaseModelEntry(name, entry, self.weights[entry.weights]))
        return entries

    def find(self, name: str, field: str = "tuning_job.base_model") -> BaseModelEntry:
        """Find by id, `publisher/family@version` or `publishers/P/models/X`. Raises InvalidArgument with the known
        names."""
        plain = self._plain(name)
        if plain in self.by_name:
            return self.by_name[plain]
        known = sorted(self.by_name)
        near = difflib.get_close_matches(plain, known, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise InvalidArgument.field(field, f'Base model "{name}" is not known.{hint} Known: {", ".join(known)}.')

    def knows(self, name: str) -> bool:
        """Whether `find` would succeed."""
        return self._plain(name) in self.by_name

    def _plain(self, name: str) -> str:
        plain = name.removeprefix("models/")
        if plain.startswith("google/") and plain.removeprefix("google/") in self.by_name:  # as the OpenAI list has it
            return plain.removeprefix("google/")
        if plain.startswith("publishers/") and plain.count("/") == 3:
            _, publisher, _, model = plain.split("/")
            return model if publisher == "google" and model in self.by_name else f"{publisher}/{model}"
        return plain

    def folder(self, weights: Weights) -> Path:
        return self.models_folder / weights.id

    def base(self, weights: Weights) -> BaseWeights:
        """The weights on disk. Raises FailedPrecondition with the command to get them."""
        folder = self.folder(weights)
        try:
            digest = _digest(folder, (folder / DIGEST_FILE).stat().st_mtime_ns)
        except FileNotFoundError:
            raise FailedPrecondition(
                f"The weights of {weights.title} are not on this machine; get them with "
                f"`sarto models pull {weights.id}`."
            ) from None
        return BaseWeights(name=weights.title, folder=str(folder), digest=digest, hub=weights.hub)


Row = TypeVar("Row", bound=BaseModel)


def _rows(file: Path, table: dict[str, Any], name: str, row: type[Row]) -> list[Row]:
    """The tables [[name]]. Raises InvalidArgument with file, number and field of a fault."""
    try:
        return TypeAdapter(list[row]).validate_python(table.get(name, []))  # type: ignore[valid-type]
    except ValidationError as error:
        first = error.errors()[0]
        where = "".join(f" number {part + 1}" if isinstance(part, int) else f", {part}" for part in first["loc"])
        raise InvalidArgument(f"{file}: [[{name}]]{where}: {first['msg']}.") from None


@lru_cache(maxsize=256)
def _digest(folder: Path, written: int) -> str:
    """Read again only after the file has changed."""
    return (folder / DIGEST_FILE).read_text().strip()
