"""`sarto doctor`: looks at what a service on this machine needs, and says what to do about what is missing."""

from __future__ import annotations

import os
import shutil
import socket
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import sqlalchemy as sa
import typer
from alembic.runtime.migration import MigrationContext
from sqlalchemy.exc import SQLAlchemyError

from sarto import settings as settings_
from sarto.app import cores, network_of_runs
from sarto.catalog import Catalog
from sarto.cli import output
from sarto.cli.backup import Home
from sarto.cli.options import DEFAULT_BASE_MODEL, AsJson
from sarto.errors import SartoError
from sarto.settings import Settings
from sarto.storage import migrations
from sarto.storage.database import Database
from sarto.storage.private import is_memory, place_for
from sarto.storage.tables import job_event

LEAST_DISK_BYTES, ENOUGH_DISK_BYTES = 1_000_000_000, 5_000_000_000
LEAST_MEMORY_BYTES = 1_500_000_000
LEAST_PRIVATE_BYTES = 500_000_000
MOST_SKEW_SECONDS = 5.0


@dataclass(frozen=True)
class Finding:
    """`advice` says what to do; it is empty where all is well."""

    name: str
    state: Literal["ok", "warning", "fault"]
    found: str
    advice: str = ""


def doctor(home: Home = None, as_json: AsJson = False) -> None:
    """Check settings, home, database, disk, memory, threads, base weights, port and clock. Exit status 1 on a fault."""
    findings = examine(home)
    if as_json:
        output.print_json([asdict(finding) for finding in findings])
    else:
        rows = ({"CHECK": f.name, "": f.state, "FOUND": f.found, "WHAT TO DO": f.advice} for f in findings)
        output.print_rows(rows, ("CHECK", "", "FOUND", "WHAT TO DO"), "")
    if any(finding.state == "fault" for finding in findings):
        raise typer.Exit(output.FAILURE_EXIT)


def examine(home: Path | None) -> list[Finding]:
    """Every check; changes nothing."""
    try:
        settings = settings_.load(home)
    except SartoError as error:
        return [Finding("settings", "fault", error.message, "Mend or remove that key.")]
    checks: tuple[tuple[str, Callable[[Settings], Finding]], ...] = (
        ("home", _home), ("database", _database), ("clock", _clock), ("disk", _disk), ("memory", _memory),
        ("threads", _threads), ("base weights", _weights), ("private folder", _private), ("port", _port),
        ("runs' network", _network),
    )  # fmt: skip
    return [Finding("settings", "ok", str(settings.home / "config.toml")), *(_safe(*one, settings) for one in checks)]


def _safe(name: str, check: Callable[[Settings], Finding], settings: Settings) -> Finding:
    try:
        return check(settings)
    except (OSError, SQLAlchemyError, SartoError) as error:
        return Finding(name, "fault", str(error).partition("\n")[0], "See what it says; nothing was changed.")


def _home(settings: Settings) -> Finding:
    home = settings.home
    if not home.exists():
        return Finding("home", "warning", f"{home} does not exist", "The first `sarto serve` makes it.")
    if not os.access(home, os.R_OK | os.W_OK | os.X_OK):
        return Finding("home", "fault", f"{home} cannot be written", f"chown -R $(id -un) {home}, or give --home.")
    if home.stat().st_mode & 0o077:
        return Finding("home", "warning", f"{home} is open to others", f"chmod 700 {home}")
    return Finding("home", "ok", str(home))


def _database(settings: Settings) -> Finding:
    if not settings.database_url and not (settings.home / "sarto.db").exists():
        return Finding("database", "warning", "there is none yet", "The first `sarto serve` makes it.")
    database = Database.in_home(settings.home, settings.database_url)
    try:
        with database.reading() as connection:
            revision = MigrationContext.configure(connection).get_current_revision()
            damage = connection.exec_driver_sql("pragma quick_check").scalar() if database.is_sqlite else "ok"
        if damage != "ok":
            return Finding("database", "fault", f"damaged: {damage}", "Restore a backup: sarto restore DIR --home NEW")
        if revision is not None and not migrations.is_known(revision):
            return Finding("database", "fault", f"schema {revision} is of a newer Sarto", "Start that version.")
        where = "SQLite in the home" if database.is_sqlite else sa.make_url(database.url).render_as_string()
        return Finding("database", "ok", f"{where}, schema {revision}")
    finally:
        database.close()


def _clock(settings: Settings) -> Finding:
    """This machine against the database's clock, and against what was written before: time must not run backwards."""
    if not settings.database_url and not (settings.home / "sarto.db").exists():
        return Finding("clock", "ok", "nothing to compare with yet")
    database = Database.in_home(settings.home, settings.database_url)
    try:
        with database.reading() as connection:
            skew = time.time() - database.now(connection)
            last = connection.execute(sa.select(sa.func.max(job_event.c.time))).scalar() or 0.0
            ahead = last - database.now(connection)
    finally:
        database.close()
    if abs(skew) > MOST_SKEW_SECONDS:
        return Finding("clock", "warning", f"{skew:+.0f} s from the database's", "Synchronise the clocks (NTP).")
    if ahead > MOST_SKEW_SECONDS:
        return Finding("clock", "fault", f"jobs have events {ahead:.0f} s in the future", "Set the clock right (NTP).")
    return Finding("clock", "ok", f"{abs(skew):.1f} s from the database's")


def _disk(settings: Settings) -> Finding:
    place = next(path for path in (settings.home, *settings.home.parents) if path.exists())
    free = shutil.disk_usage(place).free
    found = f"{free / 1e9:.1f} GB free at {place}"
    if free < LEAST_DISK_BYTES:
        return Finding("disk", "fault", found, "Free space, or delete old models and jobs.")
    if free < ENOUGH_DISK_BYTES:
        return Finding("disk", "warning", found, "Enough for small models only.")
    return Finding("disk", "ok", found)


def _memory(settings: Settings) -> Finding:
    available = available_memory_bytes()
    if available is None:
        return Finding("memory", "warning", "cannot be told on this system", "Tuning needs about four times the base.")
    found = f"{available / 1e9:.1f} GB available"
    if available < LEAST_MEMORY_BYTES:
        return Finding("memory", "fault", found, "The small base needs 1.5 GB to tune and serve; end other programs.")
    return Finding("memory", "ok", found)


def available_memory_bytes() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


def _threads(settings: Settings) -> Finding:
    there = cores()
    if settings.threads > there:
        advice = f"Set threads to {there} or 0."
        return Finding("threads", "warning", f"{settings.threads} set, {there} cores to use", advice)
    return Finding("threads", "ok", f"{settings.threads or there} of {there} cores")


def _weights(settings: Settings) -> Finding:
    catalog = Catalog.load(settings.home, settings.models_folder)
    weights = catalog.find(DEFAULT_BASE_MODEL).weights
    try:
        catalog.base(weights)
    except SartoError as error:
        return Finding("base weights", "fault", error.message, f"sarto models pull {weights.id}")
    return Finding("base weights", "ok", f"{weights.id} at {catalog.folder(weights)}")


def _network(settings: Settings) -> Finding:
    reason = network_of_runs()
    if not reason:
        return Finding("runs' network", "ok", "runs are kept from it")
    state: Literal["warning", "fault"] = "fault" if settings.run_without_network == "always" else "warning"
    advice = "Allow user namespaces (sysctl user.max_user_namespaces), or run where they are; see docs/operations.md."
    return Finding("runs' network", state, f"runs keep it: {reason}", advice)


def _private(settings: Settings) -> Finding:
    """Where what is sealed under customer keys is opened."""
    place = place_for(settings.home, settings.private_folder)
    there = next(path for path in (place, *place.parents) if path.exists())
    found = f"{shutil.disk_usage(there).free / 1e9:.1f} GB free at {place}"
    if not is_memory(place):
        return Finding("private folder", "warning", f"{found}, on a disk", "Set private_folder to a tmpfs of yours.")
    if shutil.disk_usage(there).free < LEAST_PRIVATE_BYTES:
        return Finding("private folder", "warning", found, "Enough for small data only; containers take --shm-size.")
    return Finding("private folder", "ok", found)


def _port(settings: Settings) -> Finding:
    where = f"{settings.host}:{settings.port}"
    if settings.port == 0:
        return Finding("port", "ok", "a free one is taken")
    if (settings.home / "address").exists():
        return Finding("port", "ok", f"this home's service is at {(settings.home / 'address').read_text().strip()}")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host, settings.port))
        except OSError as error:
            return Finding("port", "fault", f"{where}: {error.strerror}", "Choose another with --port, or 0.")
    return Finding("port", "ok", f"{where} is free")
