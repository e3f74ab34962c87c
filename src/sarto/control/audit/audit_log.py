"""The audit log: append-only entries in Cloud Logging's form, each chained by hash to the one before it.

The entry of a change is written in the transaction of the change, so neither exists without the other. Refusals,
sign-ins, reads and data access of requests are written after the response, in batches; a crash loses at most the last
batch. An entry has at most MOST_RESOURCE characters of caller input. One server at a time chains the entries
afterwards, so writers do not wait for each other.
"""

from __future__ import annotations

import hashlib
import logging
import os
import pwd
from collections.abc import Iterator
from contextlib import contextmanager
from queue import Empty, Full, Queue
from typing import Any

import orjson
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from sarto.control.access import authorization
from sarto.control.access.decisions import CURRENT, PREFIX, SERVICE, AuditedCall, Decision, method_name, on_behalf
from sarto.control.access.principal import Principal
from sarto.control.aip import pages
from sarto.control.aip.times import timestamp
from sarto.control.audit.refusal_rate import RefusalCount, RefusalCounter
from sarto.errors import PermissionDenied, Unauthenticated
from sarto.storage.database.database import Database, Lock
from sarto.storage.database.tables import audit_entry, meta
from sarto.system.loop import Loop

logger = logging.getLogger(__name__)

SEAL_SECONDS, IDLE_SECONDS = 0.2, 1.0
"""Between two batches, and between looks for entries of other servers that were left unsealed."""
MOST_WAITING = 20_000
MOST_SEALED = 5_000
ANCHOR = "audit_anchor"
FIRST = "0" * 64
MOST_RESOURCE = 300
DENIED = {"code": PermissionDenied.code, "message": PermissionDenied.status}
UNKNOWN = {"code": Unauthenticated.code, "message": Unauthenticated.status}


class AuditLog:
    """Writes the entries of `decisions`. `start` and `stop` bound the life of its thread, which writes entries outside
    transactions."""

    def __init__(self, database: Database, data_access: bool) -> None:
        self.database = database
        self.data_access = data_access
        self._waiting: Queue[dict[str, Any]] = Queue(MOST_WAITING)
        self._dropped = 0
        self._refusals = RefusalCounter()
        self._loop = Loop("audit", self._act, IDLE_SECONDS, least=SEAL_SECONDS)

    def start(self) -> None:
        self.database.before_commit, self.database.on_change = self._with_the_act, self._changed
        self.database.watch(self._loop.wake)
        self._loop.start()

    def stop(self) -> None:
        """Write and chain all remaining entries, and wait for that."""
        self.database.before_commit = self.database.on_change = None
        self._loop.stop()
        self._put(*map(_counted, self._refusals.counted(everything=True)))
        self._write_waiting()
        while seal(self.database):
            pass

    def finish(self, call: AuditedCall, code: int = 0, field: str = "") -> None:
        """End a request with this google.rpc code and faulty field: log the decisions that its transactions did not
        log."""
        status = {"code": code} | ({"message": field} if field else {}) if code else {}
        for key, decision in list(call.decisions.items()):
            if not decision.granted or (code and (decision.is_act or self.data_access)):
                if self._refusals.take(decision.principal, call.address, decision.project):
                    self._put(_row(call, decision, status if decision.granted else DENIED))
            elif not code and key not in call.written and decision.permission not in call.reported:
                is_act = decision.is_act and not decision.is_reported
                if is_act or self.data_access:
                    self._put(_row(call, decision, {}))
        call.decisions.clear()

    def signed_in(self, call: AuditedCall, how: str, principal: Principal) -> None:
        """Log that a token was issued."""
        resource = f"projects/-/serviceAccounts/{principal.email}" if principal.project else principal.member
        self._put(_row(call, Decision(principal.member, how, resource, principal.project, True), {}))

    def not_signed_in(self, call: AuditedCall, how: str) -> None:
        """Log an invalid sign-in or token of an unknown caller."""
        if self._refusals.take("", call.address, ""):
            self._put(_row(call, Decision("", how, "", "", False), UNKNOWN))

    def _put(self, *rows: dict[str, Any]) -> None:
        for row in rows:
            try:
                self._waiting.put_nowait(row)
            except Full:
                self._dropped += 1
        self._loop.wake()

    def _changed(self, connection: Connection, change: str, project: str, name: str) -> None:
        call = CURRENT.get() or AuditedCall("", "")
        decision = Decision(call.who.member, change, name, project, True)
        record(self.database, connection, call, decision)
        call.reported.add(change)

    def _with_the_act(self, connection: Connection) -> None:
        """Log changes in their transaction. For work on behalf of a member also its reads and refusals, since no
        response follows."""
        call = CURRENT.get()
        if call is None:
            return
        for key, decision in list(call.decisions.items()):  # several threads may work on one job
            is_act = decision.granted and decision.is_act and not decision.is_reported
            if (is_act or call.is_work) and key not in call.written:
                record(self.database, connection, call, decision)
                call.written.add(key)

    def _act(self) -> None:
        """Raises when the database is unreachable; waiting entries are retried."""
        self._put(*map(_counted, self._refusals.counted()))
        self._write_waiting()
        while seal(self.database) == MOST_SEALED:
            pass

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


@contextmanager
def by_command(database: Database, command: str) -> Iterator[None]:
    """Log changes that a command makes in the database itself, whether a server runs or not: as the service, for the
    user of this machine."""
    log = AuditLog(database, data_access=False)
    log.start()
    try:
        with on_behalf(SERVICE, f"localUser:{_local_user()}", command):
            yield
    finally:
        log.stop()


def _local_user() -> str:
    """The user according to the operating system, not to the environment."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # as in a container that runs as a bare number
        return str(os.getuid())


def seal(database: Database) -> int:
    """Chain unchained entries, oldest first; returns their number."""
    unsealed = sa.select(audit_entry.c.sequence, audit_entry.c.entry).where(audit_entry.c.position.is_(None))
    with database.reading() as connection:
        if connection.execute(unsealed.limit(1)).first() is None:
            return 0
    with database.transaction() as connection:
        database.lock(connection, Lock.SEAL)
        position, last = _end(connection)
        rows = connection.execute(unsealed.order_by(audit_entry.c.sequence).limit(MOST_SEALED)).all()
        changes = []
        for row in rows:
            position, last = position + 1, chained(last, position + 1, row.entry)
            changes.append({"of": row.sequence, "position": position, "hash": last})
        if changes:
            connection.execute(_SEAL, changes)
            put_point(connection, ANCHOR, f"{position}:{last}")
    return len(rows)


def chained(before: str, position: int, entry: str) -> str:
    return hashlib.sha256(f"{before}\n{position}\n{entry}".encode()).hexdigest()


def list_entries(
    database: Database, principal: Principal, project: str, page_size: int, page_token: str
) -> tuple[list[dict[str, Any]], str]:
    """A project's entries, newest first, and the token of the next page."""
    number = authorization.require(database, principal, "logging.logEntries.list", project).number
    page = pages.requested(page_size, page_token, "entries", number)
    query = sa.select(audit_entry).where(audit_entry.c.project == number)
    with database.reading() as connection:
        rows, more = page.read(connection, query, audit_entry.c.sequence)
    return [orjson.loads(row.entry) for row in rows], more


def _row(call: AuditedCall, decision: Decision, status: dict[str, Any]) -> dict[str, Any]:
    """A row whose entry has the resource once."""
    service, request = decision.permission.partition(".")[0], {"permission": decision.permission}
    payload = {
        "@type": PREFIX,
        "serviceName": f"{service}.googleapis.com",
        "methodName": method_name(decision.permission, call.version),
        "resourceName": _resource(decision),
        "authenticationInfo": _who(decision.principal, call.asked_by),
        "authorizationInfo": [request | {"granted": decision.granted}],
        "requestMetadata": {"callerIp": call.address} if call.address else {},
        "status": status,
    }
    return _entry(call.request, decision, payload)


def _counted(refusal: RefusalCount) -> dict[str, Any]:
    """An entry with the number of refusals that have no entry of their own."""
    decision = Decision(refusal.member, "", f"projects/{refusal.project or '-'}", refusal.project, False)
    payload = {
        "@type": PREFIX,
        "serviceName": "iam.googleapis.com",
        "methodName": "sarto.audit.MoreRefusals",
        "resourceName": _resource(decision),
        "authenticationInfo": _who(refusal.member),
        "requestMetadata": {"callerIp": refusal.address} if refusal.address else {},
        "status": {"code": DENIED["code"], "message": f"{refusal.count} more refusals"},
    }
    return _entry("", decision, payload)


def _who(member: str, asked_by: str = "") -> dict[str, Any]:
    who: dict[str, Any] = {"principalEmail": member.partition(":")[2], "principalSubject": member}
    return who | ({"serviceAccountDelegationInfo": [{"principalSubject": asked_by}]} if asked_by else {})


def _resource(decision: Decision) -> str:
    """The resource; buckets and objects without a project, as at Google, because all projects share their names."""
    name = decision.resource
    if decision.permission.startswith("storage.") and "/buckets/" in name:
        name = f"projects/_/buckets/{name.partition('/buckets/')[2]}"
    return name if len(name) <= MOST_RESOURCE else f"{name[: MOST_RESOURCE - 1]}…"


def _entry(request: str, decision: Decision, payload: dict[str, Any]) -> dict[str, Any]:
    kind = "data_access" if decision.permission and decision.is_data_access else "activity"
    severity = "ERROR" if payload["status"] else "NOTICE" if decision.is_act else "INFO"
    entry = {
        "logName": f"projects/{decision.project or '-'}/logs/cloudaudit.googleapis.com%2F{kind}",
        "severity": severity,
        "labels": {"request": request},
        "protoPayload": payload,
    }
    return {"project": decision.project, "entry": orjson.dumps(entry).decode()}


def _dated(entry: str, now: float) -> str:
    return f'{{"timestamp":"{timestamp(now)}",{entry[1:]}'


def record(database: Database, connection: Connection, call: AuditedCall, decision: Decision) -> None:
    """Write an entry in the transaction of its change."""
    row = _row(call, decision, {} if decision.granted else DENIED)
    row["entry"] = _dated(row["entry"], database.now(connection))
    connection.execute(_INSERT, row)


def _end(connection: Connection) -> tuple[int, str]:
    query = sa.select(audit_entry.c.position, audit_entry.c.hash).where(audit_entry.c.position.is_not(None))
    row = connection.execute(query.order_by(audit_entry.c.position.desc()).limit(1)).first()
    stored = connection.execute(sa.select(meta.c.value).where(meta.c.key == ANCHOR)).scalar()
    if stored and (row is None or int(stored.partition(":")[0]) > row.position):
        position, _, last = stored.partition(
            ":"
        )  # the tail was truncated: continue after it, so that the gap stays visible
        return int(position), last
    return (row.position, row.hash) if row else (0, FIRST)


def put_point(connection: Connection, key: str, point: str) -> None:
    """Store a `POSITION:HASH` of the chain: its end, or the end of the removed part."""
    changed = connection.execute(meta.update().where(meta.c.key == key).values(value=point))
    if not changed.rowcount:
        connection.execute(meta.insert().values(key=key, value=point))


_INSERT = audit_entry.insert()
_SEAL = (
    audit_entry.update()
    .where(audit_entry.c.sequence == sa.bindparam("of"))
    .values(position=sa.bindparam("position"), hash=sa.bindparam("hash"))
)
