"""A database of the first schema with all that a service of then had in it: the service of now goes on with it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jwt
import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config

from sarto.control.access import account_store, authorization
from sarto.control.access.authentication import Authenticator
from sarto.control.access.principal import Principal
from sarto.control.batches import batch_predictions
from sarto.control.context import Control
from sarto.control.exports import export_model
from sarto.control.jobs import events, tuning_jobs
from sarto.control.models import registry
from sarto.control.runs.supervisor import Supervisor
from sarto.names import parse_resource
from sarto.schema.models import ExportModelRequest
from sarto.storage.database import migrations
from sarto.storage.database.database import Database
from sarto.storage.database.tables import batch_prediction_job, checkpoint, metadata, model_export, tuning_job
from tests.control.batches.test_batch_predictions import body as batch_body
from tests.control.batches.test_batch_predictions import store
from tests.control.homes import PARENT, ROOT, create, make_control, member, open_control, wait_for_end

FIRST = "0001"
OWNER = "old-owner@demo.iam.gserviceaccount.com"


ADMIN = "sarto-admin@demo.iam.gserviceaccount.com"
"""As the administrator was called before it left the project."""


def at_first_schema(database: Database) -> sa.MetaData:
    return at_schema(database, FIRST)


def at_schema(database: Database, revision: str) -> sa.MetaData:
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    with database.transaction() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
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
    assert authorization.allowed(again.database, owner, "aiplatform.tuningJobs.create", member(again).project)
    listed, _ = tuning_jobs.list_jobs(again, owner, PARENT)
    assert {job["name"] for job in listed} == {ended["name"], str(waiting).replace("demo", member(again).project)}
    with again.database.transaction() as connection:
        authorization.bind(connection, authorization.SERVICE, authorization.SARTO_ADMIN, ROOT.member)
    again_supervisor = supervise(again)
    assert wait_for_end(again, waiting)["state"] == "JOB_STATE_SUCCEEDED"
    assert registry.resolve(again, member(again), ended["tunedModel"]["endpoint"]).adapter_folder
    assert events.list_events(again, member(again), waiting)[0][-1]["kind"] == "succeeded"
    again_supervisor.stop()
    again.database.close()


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_a_home_whose_rows_have_whole_paths_goes_on_in_another_folder(
    request: pytest.FixtureRequest, tmp_path: Path, database: str, supervise: Callable[[Control], Supervisor]
) -> None:
    url = request.getfixturevalue("postgres_url") if database == "postgresql" else f"sqlite:///{tmp_path / 'old.db'}"
    control = make_control(tmp_path / "home", f"sqlite:///{tmp_path / 'now.db'}")
    supervisor = supervise(control)
    ended = wait_for_end(control, create(control))
    supervisor.stop()
    caller, endpoint = member(control), ended["tunedModel"]["endpoint"]
    further = create(control, preTunedModel={"tunedModelName": ended["tunedModel"]["model"]})
    destination = {"artifactDestination": {"outputUriPrefix": "gs://data/exported"}, "exportFormatId": "adapter"}
    model = parse_resource(ended["tunedModel"]["model"].partition("@")[0], "models")
    export_model.export(control, caller, model, ExportModelRequest.read({"outputConfig": destination}, "request"))
    rows = batch_body(store(control, "in.jsonl", b"{}\n"), model=ended["tunedModel"]["model"])
    batch_predictions.create(control, caller, PARENT, rows)
    old = Database(url)
    then = at_schema(old, "0010_asked_by")
    copy(control.database, old, then)
    home, digest = tmp_path / "home", registry.resolve(control, caller, endpoint).adapter_digest
    judged = {"judges": {"grader": ["smol", f"{home}/adapters/{digest}", digest]}}
    with old.transaction() as connection:  # as rows were written before
        for table, column, relative in (
            ("checkpoint", "adapter_folder", "adapters/"), ("tuning_job", "run", '"adapters/'),
            ("model_export", "run", '"adapters/'), ("batch_prediction_job", "run", '"adapters/'),
        ):  # fmt: skip
            whole = relative.replace("adapters/", f"{home}/adapters/")
            replaced = sa.func.replace(then.tables[table].c[column], relative, whole)
            connection.execute(then.tables[table].update().values({column: replaced}))
        jobs = then.tables["tuning_job"].c
        run = json.loads(str(connection.execute(sa.select(jobs.run).where(jobs.id == further.id)).scalar()))
        assert run["parent_adapter"].startswith(f"{home}/adapters/")
        update = then.tables["tuning_job"].update().where(jobs.id == further.id)
        connection.execute(update.values(run=json.dumps(run | judged)))
    control.database.close()
    old.close()
    home.rename(tmp_path / "elsewhere")

    again = open_control(tmp_path / "elsewhere", url)
    name = f"adapters/{digest}"
    with again.database.reading() as connection:
        everything = [
            *connection.execute(sa.select(checkpoint.c.adapter_folder)).scalars(),
            *(text for table in (tuning_job, model_export, batch_prediction_job)
              for text in connection.execute(sa.select(table.c.run)).scalars()),
        ]  # fmt: skip
        run = json.loads(str(connection.execute(sa.select(tuning_job.c.run).filter_by(id=further.id)).scalar()))
        exported = json.loads(str(connection.execute(sa.select(model_export.c.run)).scalar()))
        predicting = json.loads(str(connection.execute(sa.select(batch_prediction_job.c.run)).scalar()))
    assert len(everything) == 7 and not [text for text in everything if str(tmp_path) in text]
    assert run["judges"] == {"grader": ["smol", name, digest]}
    assert [run["parent_adapter"], exported["adapterFolder"], predicting["adapter_folder"]] == [name] * 3
    deployed = registry.resolve(again, member(again), endpoint)
    assert (tmp_path / "elsewhere" / deployed.adapter_folder / "adapter_model.safetensors").exists()
    again_supervisor = supervise(again)
    tuned = wait_for_end(again, further)
    assert tuned["state"] == "JOB_STATE_SUCCEEDED", tuned
    again_supervisor.stop()
    again.database.close()


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_the_administrator_leaves_its_project_and_its_key_files_go_on(
    request: pytest.FixtureRequest, tmp_path: Path, database: str
) -> None:
    url = request.getfixturevalue("postgres_url") if database == "postgresql" else ""
    old = Database.in_home(tmp_path, url)
    then = at_schema(old, "0008_held_objects").tables
    private, public = account_store.new_pair()
    account = {"project": "123456789012", "display_name": "sarto-admin", "disabled": False, "create_time": 2.0}
    service, project = "service", "projects/123456789012"
    with old.transaction() as connection:
        connection.execute(then["project"].insert().values(number="123456789012", id="demo", create_time=1.0))
        rows = [
            account | {"email": "impostor@demo.iam.gserviceaccount.com", "unique_id": "1", "create_time": 1.0},
            account | {"email": ADMIN, "unique_id": "2"},
        ]
        connection.execute(then["service_account"].insert(), rows)
        key = {"id": "k1", "email": ADMIN, "public_key": public, "disabled": False, "create_time": 2.0}
        connection.execute(then["service_account_key"].insert().values(**key))
        for resource, role, member in (
            (service, authorization.SARTO_ADMIN, f"serviceAccount:{ADMIN}"),
            (project, "roles/owner", "serviceAccount:impostor@demo.iam.gserviceaccount.com"),
            (f"{project}/serviceAccounts/{ADMIN}", "roles/iam.serviceAccountTokenCreator", "user:ada@example.com"),
        ):
            connection.execute(then["binding"].insert().values(resource=resource, role=role, member=member))
    held = {"private_key_id": "k1", "private_key": private, "client_email": ADMIN}
    (tmp_path / "credentials").mkdir()
    (tmp_path / "credentials" / "admin.json").write_text(json.dumps(held))

    migrations.upgrade(old)
    written = account_store.open_home(old, tmp_path, "demo", "http://127.0.0.1:8080")
    assert written is not None and json.loads(written.read_bytes())["client_email"] == account_store.ADMIN_EMAIL
    server = Authenticator(old, "http://127.0.0.1:8080", 3600)
    now = int(time.time())
    for name in (ADMIN, account_store.ADMIN_EMAIL):  # a copy elsewhere says the old one
        signed = jwt.encode(
            {"iss": name, "sub": name, "iat": now, "exp": now + 600, "scope": "s"}, private, "RS256", {"kid": "k1"}
        )
        administrator = server.authenticate(signed)
        assert administrator.email == account_store.ADMIN_EMAIL
        authorization.require_everywhere(old, administrator, "resourcemanager.projects.create")
    for who in (Principal("impostor@demo.iam.gserviceaccount.com", ""), Principal("ada@example.com", "", "user")):
        for on in (ADMIN, account_store.ADMIN_EMAIL):
            for place in ("1", "123456789012"):
                is_allowed = authorization.allowed(
                    old, who, "iam.serviceAccountKeys.create", place, f"serviceAccounts/{on}"
                )
                assert is_allowed == (who.kind == "serviceAccount" and on == ADMIN and place != "1")  # nobody is there
    old.close()
