"""The chain of the audit log: verification, export, and removal of old entries.

Entries are exported into `audit/` of the data folder before they are removed. The position and hash of the last removed
entry are kept, and the chain continues from there. While the exported files exist, `verify` begins at the first entry
ever.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import orjson
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from sarto.control.access.decisions import SERVICE, AuditedCall, Decision
from sarto.control.aip.times import timestamp
from sarto.control.audit.audit_log import ANCHOR, FIRST, chained, put_point, record
from sarto.errors import InvalidArgument
from sarto.storage.database.database import Database, Lock
from sarto.storage.database.tables import audit_entry, meta
from sarto.system.files import write_whole

START = "audit_start"
FOLDER = "audit"
AT_ONCE = 5_000
DAY_SECONDS = 86_400.0
_FILE = re.compile(r"audit-(\d+)-(\d+)\.jsonl")


@dataclass(frozen=True)
class ChainVerification:
    """Result of `verify`: `fault` is empty for an intact chain that goes from after `start` to `position` and ends in
    `hash`."""

    position: int
    hash: str
    unsealed: int
    fault: str = ""
    start: int = 0


@dataclass(frozen=True)
class _Link:
    position: int
    hash: str
    entry: str


def verify(database: Database, anchor: str = "", exports: Path | None = None) -> ChainVerification:
    """Check the whole chain, with the exports in the folder if they are complete from its beginning. `anchor` is a
    `POSITION:HASH` of an earlier verify, kept outside the database."""
    with database.reading() as connection:
        points = {key: _meta(connection, key) for key in (ANCHOR, START)}
        files = _exports(exports, _point(points[START])[0]) if points[START] else []
        start, last = (0, FIRST) if files or not points[START] else _point(points[START])
        expected = [_point(one) for one in (anchor, *points.values()) if one]
        lost = next((at for at, known in expected if at < start), None)
        if lost is not None:
            return ChainVerification(start, last, 0, _LOST.format(lost, start), start)
        position, fault = start, ""
        for link in _chain(connection, files):
            fault = _fault(link, position, last)
            if not fault and any(at == link.position and known != link.hash for at, known in expected):
                fault = f"entry {link.position} is not the one the anchor names"
            if fault:
                return ChainVerification(position, last, 0, fault, start)
            position, last = link.position, link.hash
        waiting = sa.select(sa.func.count()).select_from(audit_entry).where(audit_entry.c.position.is_(None))
        unsealed = connection.execute(waiting).scalar_one()
    if any(at == start and known != (FIRST if not start else _point(points[START])[1]) for at, known in expected):
        return ChainVerification(position, last, unsealed, f"entry {start} is not the one the anchor names", start)
    end = max((at for at, _ in expected), default=0)
    if end > position:
        fault = f"the log ends at entry {position}; the anchor names entry {end}"
    return ChainVerification(position, last, unsealed, fault, start)


_LOST = (
    "the anchor names entry {}, and the entries to {} were removed after their export; put the exported files back into"
    " the folder audit, and check again"
)


def export(database: Database) -> Iterator[str]:
    """Every entry as a line of JSON, oldest first, with its position in the chain."""
    with database.reading() as connection:
        for row in connection.execute(sa.select(audit_entry).order_by(audit_entry.c.sequence)):
            yield _line(row.position, row.hash, row.entry)


def remove_old(database: Database, home: Path, days: float) -> int:
    """Export chained entries that are older than this number of days, and remove them; returns their number."""
    removed = 0
    while days and (count := _remove_some(database, home / FOLDER, days)):
        removed += count
    return removed


def _remove_some(database: Database, folder: Path, days: float) -> int:
    with database.reading() as connection:
        links = _old(connection, timestamp(database.now(connection) - days * DAY_SECONDS))
    if not links:
        return 0
    first, last = links[0].position, links[-1]
    folder.mkdir(mode=0o700, exist_ok=True)
    path = folder / f"audit-{first}-{last.position}.jsonl"
    digest = _write(path, links)
    with database.transaction() as connection:
        database.lock(connection, Lock.SEAL)
        old = audit_entry.delete().where(audit_entry.c.position <= last.position)
        count = connection.execute(old).rowcount
        if count:  # else another server was faster, and exported the same
            put_point(connection, START, f"{last.position}:{last.hash}")
            what = f"{FOLDER}/{path.name} sha256:{digest}"
            removal = Decision(SERVICE.member, "logging.logEntries.delete", what, "", granted=True)
            record(database, connection, AuditedCall("", ""), removal)
    return count


def _old(connection: Connection, before: str) -> list[_Link]:
    """The oldest entries, as far as all of them are older."""
    query = sa.select(audit_entry).where(audit_entry.c.position.is_not(None)).order_by(audit_entry.c.position)
    entries = []
    for row in connection.execute(query.limit(AT_ONCE)):
        if orjson.loads(row.entry)["timestamp"] >= before:
            break
        entries.append(_Link(row.position, row.hash, row.entry))
    return entries


def _write(path: Path, links: list[_Link]) -> str:
    """Write a file, durable and by one rename; returns its SHA-256."""
    data = b"".join(_line(link.position, link.hash, link.entry).encode() + b"\n" for link in links)
    write_whole(path, data, 0o600)
    return hashlib.sha256(data).hexdigest()


def _line(position: int | None, digest: str | None, entry: str) -> str:
    return orjson.dumps({**orjson.loads(entry), "chain": {"position": position, "hash": digest}}).decode()


def _chain(connection: Connection, files: list[Path]) -> Iterator[_Link]:
    for path in files:
        with path.open("rb") as file:
            for line in file:
                entry = orjson.loads(line)
                chain = entry.pop("chain")
                yield _Link(chain["position"], chain["hash"], orjson.dumps(entry).decode())
    query = sa.select(audit_entry).where(audit_entry.c.position.is_not(None)).order_by(audit_entry.c.position)
    for row in connection.execute(query):
        yield _Link(row.position, row.hash, row.entry)


def _fault(link: _Link, position: int, last: str) -> str:
    if link.position != position + 1:
        return f"entry {position + 1} is missing"
    if chained(last, link.position, link.entry) != link.hash:
        return f"entry {link.position} was changed, or is at another position"
    return ""


def _exports(folder: Path | None, start: int) -> list[Path]:
    """The exported files from the first entry to the last removed, if all exist."""
    paths = sorted(
        (int(match[1]), int(match[2]), path)
        for path in (folder.iterdir() if folder is not None and folder.is_dir() else ())
        if (match := _FILE.fullmatch(path.name))
    )
    end, files = 0, []
    for first, last, path in paths:
        if first == end + 1 and last <= start:
            end = last
            files.append(path)
    return files if end == start else []


def oldest(database: Database) -> datetime | None:
    """Time of the oldest remaining entry."""
    query = sa.select(audit_entry.c.entry).order_by(audit_entry.c.sequence).limit(1)
    with database.reading() as connection:
        entry = connection.execute(query).scalar()
    return datetime.fromisoformat(orjson.loads(entry)["timestamp"]).astimezone(UTC) if entry else None


def _meta(connection: Connection, key: str) -> str:
    return str(connection.execute(sa.select(meta.c.value).where(meta.c.key == key)).scalar() or "")


def _point(anchor: str) -> tuple[int, str]:
    position, _, known = anchor.partition(":")
    if not position.isdigit() or len(known) != len(FIRST):
        raise InvalidArgument(f'"{anchor}" is not an anchor: POSITION:HASH, as `sarto audit verify` prints it.')
    return int(position), known
