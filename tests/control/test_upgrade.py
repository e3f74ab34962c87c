"""A database of the first schema with all that a service of then had in it: the service of now goes on with it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config

from sarto.control import events, iam, models, tuning_jobs
from sarto.control.auth import Principal
from sarto.control.context import Control
from sarto.control.supervisor import Supervisor
from sarto.storage import migrations
from sarto.storage.database import Database
from sarto.storage.tables import metadata
from tests.control.homes import PARENT, ROOT, create, make_control, member, open_control, wait_for_end

FIRST = "0001"
OWNER = "old-owner@demo.iam.gserviceaccount.com"


def at_first_schema(database: Database) -> sa.MetaData:
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    with database.transaction() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, FIRST)
    then = sa.MetaData()
    then.reflect(database.engine)
    return then


def copy(now: Database, old: Database, then: sa.MetaData) -> dict[str, list[dict[str, Any]]]:
    """Every row of the new database in the old one, as far as it has tables and columns for it; gives what is there."""
    there: dict[str, list[dict[str, Any]]] = {}
    with now.reading() as source, old.transaction() as target:
        for name, table in then.tables.items():
            if name not in metadata.tables:
                continue
            known = metadata.tables[name]
            columns = [column.name for column in table.columns if column.name in known.columns]
            rows = [row._asdict() for row in source.execute(sa.select(*(known.c[column] for column in columns)))]
            if name == "service_account":
                rows.append(
                    {"email": OWNER, "project": rows[0]["project"] if rows else _project(source), "unique_id": "77",
                     "display_name": "old", "disabled": False, "create_time": 1.0}
                )  # fmt: skip
            there[name] = rows
            missing = {c.name: "roles/owner" for c in table.columns if c.name not in known.columns}
            if rows:
                target.execute(table.insert(), [{**missing, **row} for row in rows])
    return there


def _project(connection: sa.Connection) -> str:
    return str(connection.execute(sa.select(metadata.tables["project"].c.number)).scalar())


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_a_database_of_the_first_schema_goes_on_with_all_it_holds(
    request: pytest.FixtureRequest, tmp_path: Path, database: str, supervise: Callable[[Control], Supervisor]
) -> None:
    control = make_control(tmp_path / "home", f"sqlite:///{tmp_path / 'now.db'}")
    supervisor = supervise(control)
    ended = wait_for_end(control, create(control, labels={"team": "search"}))
    supervisor.stop()
    waiting = create(control)
    url = request.getfixturevalue("postgres_url") if database == "postgresql" else f"sqlite:///{tmp_path / 'old.db'}"
    old = Database(url)
    there = copy(control.database, old, at_first_schema(old))
    control.database.close()
    old.close()
    assert {name for name, rows in there.items() if rows} >= {
        "project", "bucket", "object", "tuning_job", "job_event", "job_label", "metric_point", "model", "model_version",
        "checkpoint", "endpoint", "experiment",
    }  # fmt: skip

    again = open_control(tmp_path / "home", url)
    with again.database.reading() as connection:
        for name, rows in there.items():
            columns = [metadata.tables[name].c[column] for column in (rows[0] if rows else {})]
            found = [row._asdict() for row in connection.execute(sa.select(*columns))] if rows else []
            assert sorted(map(repr, found)) == sorted(map(repr, rows)), name
    owner = Principal(OWNER, "", "serviceAccount")
    assert iam.allowed(again.database, owner, "aiplatform.tuningJobs.create", member(again).project)
    listed, _ = tuning_jobs.list_(again, owner, PARENT)
    assert {job["name"] for job in listed} == {ended["name"], str(waiting).replace("demo", member(again).project)}
    with again.database.transaction() as connection:
        iam.bind(connection, iam.SERVICE, iam.SARTO_ADMIN, ROOT.member)
    again_supervisor = supervise(again)
    assert wait_for_end(again, waiting)["state"] == "JOB_STATE_SUCCEEDED"
    assert models.resolve(again, member(again), ended["tunedModel"]["endpoint"]).adapter_folder
    assert events.list_(again, member(again), waiting)[0][-1]["kind"] == "succeeded"
    again_supervisor.stop()
    again.database.close()
