"""`sarto doctor`: checks the requirements of a service on this machine, and prints a remedy for each fault."""

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
from sarto.assembly.machine import cores, missing_confinement, this_processor
from sarto.catalog import Catalog
from sarto.cli import output
from sarto.cli.options import DEFAULT_BASE_MODEL, AsJson, Home
from sarto.control.access import account_store
from sarto.control.audit import chain
from sarto.errors import SartoError
from sarto.settings import Settings
from sarto.storage.database import migrations
from sarto.storage.database.database import Database
from sarto.storage.database.tables import job_event
from sarto.storage.encryption.scratch_folder import is_memory, place_for
from sarto.system.memory import available_memory_bytes
from sarto.system.processor import cpu

LEAST_DISK_BYTES, ENOUGH_DISK_BYTES = 1_000_000_000, 5_000_000_000
LEAST_MEMORY_BYTES = 1_500_000_000
LEAST_PRIVATE_BYTES = 500_000_000
MOST_SKEW_SECONDS = 5.0


@dataclass(frozen=True)
class Finding:
    """`advice` is the remedy; empty if there is no fault."""

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
        rows = ({"CHECK": f.name, "": f.state, "FOUND": f.found, "REMEDY": f.advice} for f in findings)
        output.print_rows(rows, ("CHECK", "", "FOUND", "REMEDY"), "")
    if any(finding.state == "fault" for finding in findings):
        raise typer.Exit(output.FAILURE_EXIT)


def examine(home: Path | None) -> list[Finding]:
    """Every check; changes nothing."""
    try:
        settings = settings_.load(home)
    except SartoError as error:
        return [Finding("settings", "fault", error.message, "Mend or remove that key.")]
    checks: tuple[tuple[str, Callable[[Settings], Finding]], ...] = (
        ("home", _home), ("database", _database), ("administrators", _administrators), ("clock", _clock),
        ("audit log", _audit), ("disk", _disk), ("memory", _memory), ("threads", _threads),
        ("processor", _processor), ("base weights", _weights), ("private folder", _private), ("port", _port),
        ("confinement", _confinement), ("user", _user),
    )  # fmt: skip
    return [Finding("settings", "ok", str(settings.home / "config.toml")), *(_safe(*one, settings) for one in checks)]


def _safe(name: str, check: Callable[[Settings], Finding], settings: Settings) -> Finding:
    try:
        return check(settings)
    except (OSError, SQLAlchemyError, SartoError) as error:
        return Finding(name, "fault", str(error).partition("\n")[0], "Read the message; nothing was changed.")


def _home(settings: Settings) -> Finding:
    home = settings.home
    if not home.exists():
        return Finding("home", "warning", f"{home} does not exist", "The first `sarto serve` creates it.")
    if not os.access(home, os.R_OK | os.W_OK | os.X_OK):
        return Finding("home", "fault", f"{home} cannot be written", f"chown -R $(id -un) {home}, or give --home.")
    if home.stat().st_mode & 0o077:
        return Finding("home", "warning", f"{home} is open to others", f"chmod 700 {home}")
    return Finding("home", "ok", str(home))


def _database(settings: Settings) -> Finding:
    if not settings.database_url and not (settings.home / "sarto.db").exists():
        return Finding("database", "warning", "there is none yet", "The first `sarto serve` creates it.")
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


def _administrators(settings: Settings) -> Finding:
    """Holders of a role on the service, their keys, and those that users of a project could reach before."""
    name = "administrators"
    if not settings.database_url and not (settings.home / "sarto.db").exists():
        return Finding(name, "ok", "none yet; the first `sarto serve` creates one")
    database = Database.in_home(settings.home, settings.database_url)
    try:
        with database.reading() as connection:
            administrators = account_store.administrators(connection)
            taken = account_store.with_addresses_of_agents(connection)
    finally:
        database.close()
    endless = sum(one.keys_without_end for one in administrators)
    summary = (
        f"{len(administrators)} with {sum(one.keys for one in administrators)} keys, {endless} of them without an end"
    )
    if taken:
        advice = "Nobody can sign in as it any more; delete it, and check its entries in the audit log."
        return Finding(name, "fault", f"{', '.join(taken)} has the address of a service agent", advice)
    misplaced = [
        f"{one.email} in a project that {', '.join(one.owners) or 'nobody'} owns"
        for one in administrators
        if one.project
    ]
    if misplaced:
        advice = (
            "Roles in the project give no rights on it any more, but older keys are valid: list them, and delete"
            " unknown ones."
        )
        return Finding(name, "warning", "; ".join(misplaced), advice)
    advice = "Bound their life with max_key_days, or delete those you do not know." if endless > 1 else ""
    return Finding(name, "warning" if endless > 1 else "ok", summary, advice)


def _clock(settings: Settings) -> Finding:
    """This machine's clock against the database's, and against stored times: time must not run backwards."""
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


def _audit(settings: Settings) -> Finding:
    """Whether its chain is intact, and how long entries are kept. Takes a while on a large log."""
    if not settings.database_url and not (settings.home / "sarto.db").exists():
        return Finding("audit log", "ok", "there is none yet")
    database = Database.in_home(settings.home, settings.database_url)
    exports = settings.shared_folder / chain.FOLDER
    try:
        verdict, first = chain.verify(database, "", exports), chain.oldest(database)
    finally:
        database.close()
    if verdict.fault:
        return Finding("audit log", "fault", verdict.fault, "Compare with an export or a backup: sarto audit export.")
    since = f" since {first:%Y-%m-%d}" if first else ""
    retention = f"kept {settings.limits.keep_audit_days:g} days" if settings.limits.keep_audit_days else "kept for ever"
    return Finding("audit log", "ok", f"{verdict.position - verdict.start} entries{since}, {retention}")


def _disk(settings: Settings) -> Finding:
    folder = next(path for path in (settings.home, *settings.home.parents) if path.exists())
    free = shutil.disk_usage(folder).free
    space = f"{free / 1e9:.1f} GB free at {folder}"
    if free < LEAST_DISK_BYTES:
        return Finding("disk", "fault", space, "Free space, or delete old models and jobs.")
    if free < ENOUGH_DISK_BYTES:
        return Finding("disk", "warning", space, "Enough for small models only.")
    return Finding("disk", "ok", space)


def _memory(settings: Settings) -> Finding:
    available = available_memory_bytes()
    if available is None:
        return Finding("memory", "warning", "unknown on this system", "Tuning needs about four times the base.")
    memory = f"{available / 1e9:.1f} GB available"
    if available < LEAST_MEMORY_BYTES:
        return Finding("memory", "fault", memory, "The small base needs 1.5 GB to tune and serve; end other programs.")
    return Finding("memory", "ok", memory)


def _threads(settings: Settings) -> Finding:
    there = cores()
    if settings.limits.threads > there:
        advice = f"Set threads to {there} or 0."
        return Finding("threads", "warning", f"{settings.limits.threads} set, {there} cores to use", advice)
    return Finding("threads", "ok", f"{settings.limits.threads or there} of {there} cores")


def _processor(settings: Settings) -> Finding:
    """The known results for its matrix products; the first run on a base tests them."""
    known = this_processor().verdicts()
    if not known:
        return Finding("processor", "ok", f"{cpu()[0]}, not tried yet: the first job or answer does that")
    wrong = [verdict for verdict in known if verdict.faults]
    text = f"{cpu()[0]}, products tried at the shapes of {len(known)} bases: "
    if not wrong:
        return Finding("processor", "ok", text + f"right with {known[0].words} instructions")
    advice = "Jobs are right but slower; a newer torch may have it mended."
    return Finding("processor", "warning", text + f"instructions {wrong[0].words}", advice)


def _weights(settings: Settings) -> Finding:
    catalog = Catalog.load(settings.home, settings.models_folder)
    weights = catalog.find(DEFAULT_BASE_MODEL).weights
    try:
        catalog.base(weights)
    except SartoError as error:
        return Finding("base weights", "fault", error.message, f"sarto models pull {weights.id}")
    return Finding("base weights", "ok", f"{weights.id} at {catalog.folder(weights)}")


def _confinement(settings: Settings) -> Finding:
    reasons = missing_confinement()
    if not reasons:
        return Finding("confinement", "ok", "runs reach no network, no other files, no other processes")
    state: Literal["warning", "fault"] = "fault" if settings.run_confinement == "always" else "warning"
    advice = "See «What a run can reach» in docs/security.md for what the platform must allow."
    return Finding("confinement", state, f"runs are not fully confined: {'; '.join(reasons)}", advice)


def _user(settings: Settings) -> Finding:
    if os.geteuid() != 0:
        return Finding("user", "ok", "not root")
    if settings.allow_root:
        return Finding("user", "warning", "root, as allow_root allows", "Give the service a user of its own.")
    return Finding("user", "fault", "root", "Start as a user of its own, or set allow_root = true.")


def _private(settings: Settings) -> Finding:
    """The folder in which files under customer keys are decrypted."""
    folder = place_for(settings.home, settings.private_folder)
    there = next(path for path in (folder, *folder.parents) if path.exists())
    space = f"{shutil.disk_usage(there).free / 1e9:.1f} GB free at {folder}"
    if not is_memory(folder):
        return Finding("private folder", "warning", f"{space}, on a disk", "Set private_folder to a tmpfs of yours.")
    if shutil.disk_usage(there).free < LEAST_PRIVATE_BYTES:
        return Finding("private folder", "warning", space, "Enough for small data only; containers take --shm-size.")
    return Finding("private folder", "ok", space)


def _port(settings: Settings) -> Finding:
    where = f"{settings.host}:{settings.port}"
    if settings.port == 0:
        return Finding("port", "ok", "a free one is chosen")
    if (settings.home / "address").exists():
        return Finding("port", "ok", f"this home's service is at {(settings.home / 'address').read_text().strip()}")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host, settings.port))
        except OSError as error:
            return Finding("port", "fault", f"{where}: {error.strerror}", "Choose another with --port, or 0.")
    return Finding("port", "ok", f"{where} is free")
