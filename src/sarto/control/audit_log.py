"""The audit log: append-only entries in Cloud Logging's form, each chained by hash to the one before it.

An entry of an act that changes something is written in the transaction of the act: one is never there without the
other. Refusals, reads and data access are written behind the answers, in batches; a crash loses at most the last batch.
A sealer, one at a time over all servers, chains what was written, so that writers need not wait for one another.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from queue import Empty, Full, Queue
from typing import Any

import orjson
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from sarto.control import iam
from sarto.control.audit import CURRENT, PREFIX, Call, Decision, method_name
from sarto.control.auth import Principal
from sarto.control.events import timestamp
from sarto.control.paging import page_size as size_of
from sarto.errors import InvalidArgument
from sarto.storage.database import Database
from sarto.storage.tables import audit_entry, meta

logger = logging.getLogger(__name__)

SEAL_SECONDS = 0.2
SEAL_LOCK = 7411
MOST_WAITING = 20_000
MOST_SEALED = 5_000
ANCHOR = "audit_anchor"
FIRST = "0" * 64
DENIED = {"code": 7, "message": "PERMISSION_DENIED"}


@dataclass(frozen=True)
class Verdict:
    """What `verify` found: `fault` is empty for a whole chain of `position` entries that ends in `hash`."""

    position: int
    hash: str
    unsealed: int
    fault: str = ""


class AuditLog:
    """Writes what `audit` collects. `start` and `stop` bound the life of its thread; other methods need none."""

    def __init__(self, database: Database, data_access: bool) -> None:
        self.database = database
        self.data_access = data_access
        self._waiting: Queue[dict[str, Any]] = Queue(MOST_WAITING)
        self._dropped = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._live, name="audit", daemon=True)

    def start(self) -> None:
        self.database.before_commit = self._with_the_act
        self._thread.start()

    def stop(self) -> None:
        """Everything is written and chained when this returns."""
        self.database.before_commit = None
        self._stop.set()
        self._thread.join()
        self._write_waiting()
        while seal(self.database):
            pass

    def finish(self, call: Call, code: int = 0, message: str = "") -> None:
        """A request is over, with this google.rpc code: write what its transactions did not."""
        for decision in call.decisions.values():
            if decision.is_admin_write or self.data_access or not decision.granted:
                status = {"code": code, "message": message[:300]} if code else {}
                try:
                    self._waiting.put_nowait(_row(call, decision, status if decision.granted else DENIED))
                except Full:
                    self._dropped += 1
        call.decisions.clear()

    def _with_the_act(self, connection: Connection) -> None:
        call = CURRENT.get()
        if call is None:
            return
        acts = [(key, one) for key, one in call.decisions.items() if one.granted and one.is_admin_write]
        for key, decision in acts:
            row = _row(call, decision, {})
            row["entry"] = _dated(row["entry"], self.database.now(connection))
            connection.execute(_INSERT, row)
            del call.decisions[key]

    def _live(self) -> None:
        while not self._stop.wait(SEAL_SECONDS):
            try:
                self._write_waiting()
                while seal(self.database) == MOST_SEALED:
                    pass
            except Exception:  # the database was away: what waits stays, and is tried again
                logger.exception("audit entries not written")

    def _write_waiting(self) -> None:
        rows: list[dict[str, Any]] = []
        while len(rows) < MOST_SEALED:
            try:
                rows.append(self._waiting.get_nowait())
            except Empty:
                break
        if self._dropped:
            logger.warning("audit entries dropped", extra={"count": self._dropped})
            self._dropped = 0
        if rows:
            with self.database.transaction() as connection:
                now = self.database.now(connection)
                connection.execute(_INSERT, [{**row, "entry": _dated(row["entry"], now)} for row in rows])


def seal(database: Database) -> int:
    """Chain entries that are not yet, oldest first; gives how many."""
    unsealed = sa.select(audit_entry.c.sequence, audit_entry.c.entry).where(audit_entry.c.position.is_(None))
    with database.reading() as connection:
        if connection.execute(unsealed.limit(1)).first() is None:
            return 0
    with database.transaction() as connection:
        if not database.is_sqlite:
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(SEAL_LOCK)))
        position, last = _end(connection)
        rows = connection.execute(unsealed.order_by(audit_entry.c.sequence).limit(MOST_SEALED)).all()
        changes = []
        for row in rows:
            position, last = position + 1, chained(last, position + 1, row.entry)
            changes.append({"of": row.sequence, "position": position, "hash": last})
        if changes:
            connection.execute(_SEAL, changes)
            _anchor(connection, f"{position}:{last}")
    return len(rows)


def chained(before: str, position: int, entry: str) -> str:
    return hashlib.sha256(f"{before}\n{position}\n{entry}".encode()).hexdigest()


def verify(database: Database, anchor: str = "") -> Verdict:
    """Walk the whole chain. `anchor` is `POSITION:HASH` as an earlier verify gave it, kept outside the database."""
    expected = [_point(one) for one in (anchor, _stored_anchor(database)) if one]
    position, last = 0, FIRST
    with database.reading() as connection:
        rows = connection.execute(
            sa.select(audit_entry).where(audit_entry.c.position.is_not(None)).order_by(audit_entry.c.position)
        )
        for row in rows:
            if row.position != position + 1:
                return Verdict(position, last, 0, f"entry {position + 1} is missing")
            if chained(last, row.position, row.entry) != row.hash:
                return Verdict(position, last, 0, f"entry {row.position} was changed, or stands in another's place")
            position, last = row.position, row.hash
            if any(at == position and known != last for at, known in expected):
                return Verdict(position, last, 0, f"entry {position} is not the one the anchor names")
        waiting = sa.select(sa.func.count()).select_from(audit_entry).where(audit_entry.c.position.is_(None))
        unsealed = connection.execute(waiting).scalar_one()
    end = max((at for at, _ in expected), default=0)
    if end > position:
        return Verdict(position, last, unsealed, f"the log ends at entry {position}; the anchor names entry {end}")
    return Verdict(position, last, unsealed)


def export(database: Database) -> Iterator[str]:
    """Every entry as a line of JSON, oldest first, with its place in the chain."""
    with database.reading() as connection:
        for row in connection.execute(sa.select(audit_entry).order_by(audit_entry.c.sequence)):
            chain = {"position": row.position, "hash": row.hash}
            yield orjson.dumps({**orjson.loads(row.entry), "chain": chain}).decode()


def list_(
    database: Database, principal: Principal, project: str, page_size: int, page_token: str
) -> tuple[list[dict[str, Any]], str]:
    """A project's entries, newest first, and the token of the next page."""
    number = iam.require(database, principal, "logging.logEntries.list", project).number
    size = size_of(page_size)
    query = sa.select(audit_entry).where(audit_entry.c.project == number)
    if page_token:
        if not page_token.isdigit():
            raise InvalidArgument.field("page_token", "This is not a token of a page before.")
        query = query.where(audit_entry.c.sequence < int(page_token))
    with database.reading() as connection:
        rows = connection.execute(query.order_by(audit_entry.c.sequence.desc()).limit(size + 1)).all()
    more = str(rows[size - 1].sequence) if len(rows) > size else ""
    return [orjson.loads(row.entry) for row in rows[:size]], more


def _row(call: Call, decision: Decision, status: dict[str, Any]) -> dict[str, Any]:
    kind = "activity" if decision.is_admin_write else "data_access"
    service = decision.permission.partition(".")[0]
    email = decision.principal.partition(":")[2]
    payload = {
        "@type": PREFIX,
        "serviceName": f"{service}.googleapis.com",
        "methodName": method_name(decision.permission, call.version),
        "resourceName": decision.resource,
        "authenticationInfo": {"principalEmail": email, "principalSubject": decision.principal},
        "authorizationInfo": [
            {"resource": decision.resource, "permission": decision.permission, "granted": decision.granted}
        ],
        "requestMetadata": {"callerIp": call.address},
        "status": status,
    }
    entry = {
        "logName": f"projects/{decision.project or '-'}/logs/cloudaudit.googleapis.com%2F{kind}",
        "severity": "ERROR" if status else "NOTICE" if decision.is_admin_write else "INFO",
        "labels": {"request": call.request},
        "protoPayload": payload,
    }
    return {"project": decision.project, "entry": orjson.dumps(entry).decode()}


def _dated(entry: str, now: float) -> str:
    return f'{{"timestamp":"{timestamp(now)}",{entry[1:]}'


def _end(connection: Connection) -> tuple[int, str]:
    query = sa.select(audit_entry.c.position, audit_entry.c.hash).where(audit_entry.c.position.is_not(None))
    row = connection.execute(query.order_by(audit_entry.c.position.desc()).limit(1)).first()
    stored = connection.execute(sa.select(meta.c.value).where(meta.c.key == ANCHOR)).scalar()
    if stored and (row is None or int(stored.partition(":")[0]) > row.position):
        position, _, last = stored.partition(":")  # the tail was cut: go on behind it, so that the gap stays
        return int(position), last
    return (row.position, row.hash) if row else (0, FIRST)


def _anchor(connection: Connection, point: str) -> None:
    changed = connection.execute(meta.update().where(meta.c.key == ANCHOR).values(value=point))
    if not changed.rowcount:
        connection.execute(meta.insert().values(key=ANCHOR, value=point))


def _point(anchor: str) -> tuple[int, str]:
    position, _, known = anchor.partition(":")
    if not position.isdigit() or len(known) != len(FIRST):
        raise InvalidArgument(f'"{anchor}" is not an anchor: POSITION:HASH, as `sarto audit verify` prints it')
    return int(position), known


def _stored_anchor(database: Database) -> str:
    with database.reading() as connection:
        return str(connection.execute(sa.select(meta.c.value).where(meta.c.key == ANCHOR)).scalar() or "")


_INSERT = audit_entry.insert()
_SEAL = (
    audit_entry.update()
    .where(audit_entry.c.sequence == sa.bindparam("of"))
    .values(position=sa.bindparam("position"), hash=sa.bindparam("hash"))
)
