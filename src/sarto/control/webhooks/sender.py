"""Delivers queued webhook messages, with retries after growing pauses.

Messages are signed as in Standard Webhooks: HMAC-SHA256 over `ID.TIMESTAMP.BODY`. Any number of senders share a
database. A message is claimed by moving its next attempt ahead; when its sender dies, it is sent again under the same
id. Each project has one call at a time and takes turns, so that a slow receiver delays only its own project.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import http.client
import time

import sqlalchemy as sa

from sarto.control.context import AnyRow, Control
from sarto.control.turns import ProjectTurns
from sarto.control.webhooks.subscriptions import DELIVERED, FAILED, PENDING, SECRET_PREFIX
from sarto.errors import SartoError
from sarto.storage.database.tables import webhook, webhook_delivery
from sarto.system import outbound_http
from sarto.system.loop import Loop

LOOK_SECONDS, IDLE_SECONDS, LEAST_SECONDS = 0.5, 2.0, 0.1
"""Between looks while messages are due, between looks for those of other servers, and at least: a commit of this
process wakes the loop."""
CALL_SECONDS = 10.0
TAKEN_SECONDS = 60.0
MOST_ATTEMPTS = 8
SENDERS, MOST_CALLS = 4, 1
"""Concurrent calls, and those of one project."""
PAUSE_FACTOR = 4.0
KEPT_SECONDS = 30 * 86_400.0
_HOOK = sa.and_(webhook.c.project == webhook_delivery.c.project, webhook.c.id == webhook_delivery.c.webhook)


class WebhookSender:
    """Call `start` and `stop` once each; works in threads of its own, for which `stop` does not wait: a message whose
    call is interrupted is sent again."""

    def __init__(self, control: Control) -> None:
        self._control = control
        self._turns = ProjectTurns(MOST_CALLS)
        self._loop = Loop("webhooks", self._act, IDLE_SECONDS, least=LEAST_SECONDS, threads=SENDERS)

    def start(self) -> None:
        self._control.database.watch(self._loop.wake)
        self._loop.start()

    def stop(self) -> None:
        self._loop.stop(0.0)

    def tell_next(self) -> bool:
        """Send one due message; False when there is none for a project without a call in progress."""
        row = self._turns.take(self._waiting, self._claim)
        if row is None:
            return False
        self._loop.wake()  # while this thread calls, another looks
        try:
            self._send(row)
        finally:
            self._turns.give_back(row)
        return True

    def _send(self, row: AnyRow) -> None:
        outcome, is_told = self._tell(row)
        attempts = row.attempts + 1
        with self._control.database.transaction() as connection:
            now = self._control.database.now(connection)
            state = DELIVERED if is_told else FAILED if attempts >= MOST_ATTEMPTS else PENDING
            pause = self._control.pauses.webhook_retry_seconds * PAUSE_FACTOR ** (attempts - 1)
            values = {"state": state, "attempts": attempts, "outcome": outcome, "not_before": now + pause}
            # A sender that took longer than the claim lasts changes nothing: by then another has the message.
            ours = _is(row), webhook_delivery.c.not_before == row.claimed_until
            connection.execute(webhook_delivery.update().where(*ours).values(**values))

    def _waiting(self) -> list[str]:
        """The projects with due messages, the one with the oldest message first."""
        database, columns = self._control.database, webhook_delivery.c
        with database.reading() as connection:
            is_due = columns.state == PENDING, columns.not_before <= database.now(connection)
            query = sa.select(columns.project).join(webhook, _HOOK).where(*is_due).group_by(columns.project)
            return list(connection.execute(query.order_by(sa.func.min(columns.not_before))).scalars())

    def _claim(self, project: str) -> AnyRow | None:
        """The project's oldest message, with its webhook."""
        database, columns = self._control.database, webhook_delivery.c
        with database.transaction() as connection:
            now = database.now(connection)
            until = sa.literal(now + TAKEN_SECONDS).label("claimed_until")
            oldest = (
                sa.select(webhook_delivery, webhook.c.uri, webhook.c.secret, until)
                .join_from(webhook_delivery, webhook, _HOOK)
                .where(columns.project == project, columns.state == PENDING, columns.not_before <= now)
                .order_by(columns.not_before)
                .limit(1)
                .with_for_update(of=webhook_delivery, skip_locked=True)
            )
            row = connection.execute(oldest).first()
            if row is not None:
                connection.execute(webhook_delivery.update().where(_is(row)).values(not_before=row.claimed_until))
            old = columns.create_time < now - KEPT_SECONDS
            connection.execute(webhook_delivery.delete().where(old, columns.state != PENDING))
        return row

    def _tell(self, row: AnyRow) -> tuple[str, bool]:
        """The result as text, and whether the message was delivered."""
        is_private_allowed = self._control.limits.webhook_private_addresses
        body = row.body.encode()
        stamp = str(int(time.time()))
        headers = {
            "content-type": "application/json",
            "user-agent": "sarto",
            "webhook-id": row.id,
            "webhook-timestamp": stamp,
            "webhook-signature": sign(row.secret, row.id, stamp, body),
        }
        try:
            target = outbound_http.parse(row.uri, "webhook.uri", is_private_allowed)
            status = outbound_http.post(target, body, headers, CALL_SECONDS).status
        except SartoError as error:
            return error.message, False
        except (OSError, http.client.HTTPException) as error:
            return f"{type(error).__name__}: {error}"[:200], False
        return f"HTTP {status}", 200 <= status < 300

    def _act(self) -> float | None:
        """Seconds to the next look."""
        if self.tell_next():
            return 0.0
        database, columns = self._control.database, webhook_delivery.c
        with database.reading() as connection:
            query = sa.select(sa.func.min(columns.not_before)).where(columns.state == PENDING)
            due = connection.execute(query).scalar()
            return None if due is None else max(LOOK_SECONDS, due - database.now(connection))


def _is(row: AnyRow) -> sa.ColumnElement[bool]:
    return webhook_delivery.c.sequence == sa.literal(row.sequence)


def sign(secret: str, message_id: str, stamp: str, body: bytes) -> str:
    """The `webhook-signature` header."""
    key = base64.b64decode(secret.removeprefix(SECRET_PREFIX))
    digest = hmac.new(key, f"{message_id}.{stamp}.".encode() + body, hashlib.sha256).digest()
    return f"v1,{base64.b64encode(digest).decode()}"
