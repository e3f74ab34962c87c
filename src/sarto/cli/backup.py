"""`sarto backup` and `sarto restore`: a whole home, saved while its service runs, and restored elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sarto import settings as settings_
from sarto.cli import output
from sarto.cli.options import Home
from sarto.errors import FailedPrecondition
from sarto.storage import backup as backup_


def backup(
    target: Annotated[Path, typer.Argument(help="Folder to create; it must not exist.", metavar="DIR")],
    home: Home = None,
) -> None:
    """Copy the whole home into a new folder, also while the service runs. Base weights are not part of it."""
    settings = settings_.load(home)
    if settings.database_url:
        raise FailedPrecondition(
            "The database is not in the home (database_url is set). Save it with its own tool first, such as"
            " `pg_dump --format=custom`, then copy the data folder (data_folder, else the home): all that the dump"
            " refers to is in it by then."
        )
    saved = backup_.save(settings.home, target.expanduser().absolute())
    files = saved["files"]
    assert isinstance(files, dict)
    output.console().print(f"Saved {len(files)} files of {settings.home} to {target}")


def restore(
    source: Annotated[Path, typer.Argument(help="Folder of `sarto backup`.", metavar="DIR")],
    home: Home = None,
) -> None:
    """Create a home from a backup. The home must be empty; every file is checked against the backup's list."""
    folder = (home or settings_.default_home()).expanduser().absolute()
    backup_.restore(source.expanduser().absolute(), folder)
    output.console().print(f"Restored to {folder}. Start it with: sarto serve --home {folder}")
