"""Where the files of a spec are. A spec names a file by a place and the path in it, such as `home/adapters/4f1c`, so it
means the same on every machine; a process is started with the folder of each place on its own.

`Places.located` turns the names of a spec into paths once, at the start of a process; nothing behind that knows names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, TypeVar, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from sarto.contract.run_folder import PLACES

_IS_FILE_NAME = object()
FileName = Annotated[str, _IS_FILE_NAME]
"""In a spec a place and the path in it, or empty for no file; a path of this machine in a spec that was `located`."""
R = TypeVar("R", bound=BaseModel)


@dataclass(frozen=True)
class Places:
    """The folder of each place on this machine."""

    folders: Mapping[str, Path]

    @classmethod
    def under(cls, folder: Path) -> Places:
        """Every place as a folder of its name in `folder`: for a machine to which all files are copied."""
        return cls({place: folder / place for place in PLACES})

    @classmethod
    def parse(cls, arguments: Iterable[str]) -> Places:
        """From the arguments of a program, each `PLACE=FOLDER`."""
        pairs = (argument.partition("=") for argument in arguments)
        return cls({place: Path(folder) for place, _, folder in pairs})

    def arguments(self) -> list[str]:
        return [f"{place}={folder}" for place, folder in self.folders.items()]

    def path(self, name: str) -> Path:
        """Raises ValueError for a name that leads out of its place, or into a place that is not here."""
        place, _, rest = name.partition("/")
        parts = rest.split("/") if rest else []
        if place not in self.folders or any(part in ("", ".", "..") for part in parts):
            raise ValueError(f'"{name}" is not the name of a file in one of the places {", ".join(self.folders)}')
        return self.folders[place].joinpath(*parts)

    def name(self, path: Path | str) -> str:
        """The name of a path, in the place that is nearest to it. Raises ValueError where no place holds it."""
        within = [place for place, folder in self.folders.items() if PurePosixPath(path).is_relative_to(folder)]
        if not within:
            raise ValueError(f"{path} is in none of the places {', '.join(self.folders)}")
        place = max(within, key=lambda place: len(self.folders[place].parts))
        return (PurePosixPath(place) / PurePosixPath(path).relative_to(self.folders[place])).as_posix()

    def located(self, spec: R) -> R:
        """The spec with paths of this machine in place of names. Raises ValueError as `path` does."""
        return _renamed(spec, lambda name: str(self.path(name)))

    def named(self, record: R) -> R:
        """The reverse of `located`: for what control found on this machine."""
        return _renamed(record, self.name)


def _renamed(record: R, rename: Callable[[str], str]) -> R:
    """A copy in which each file name is renamed, at any depth."""
    changes = {
        name: _changed(getattr(record, name), _is_file_name(field), rename)
        for name, field in type(record).model_fields.items()
    }
    return record.model_copy(update=changes)


def _changed(value: Any, is_name: bool, rename: Callable[[str], str]) -> Any:
    if is_name:
        return rename(value) if value else value
    if isinstance(value, BaseModel):
        return _renamed(value, rename)
    if isinstance(value, dict):
        return {key: _changed(each, False, rename) for key, each in value.items()}
    return value


def _is_file_name(field: FieldInfo) -> bool:
    within = (getattr(each, "__metadata__", ()) for each in get_args(field.annotation))
    return _IS_FILE_NAME in field.metadata or any(_IS_FILE_NAME in metadata for metadata in within)
