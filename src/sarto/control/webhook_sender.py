"""Tells webhooks what was enqueued for them, again and again with longer pauses, until they answer or it is given up.

Signed as Standard Webhooks has it: HMAC-SHA256 over `ID.TIMESTAMP.BODY`. Any number of senders share a database: a
message is taken by moving its next attempt ahead, so one that died with its sender is told again, under the same id.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import http.client
import logging
import threading
import time

import sqlalchemy as sa

from sarto.control import addresses
from sarto.control.context import AnyRow, Control
from sarto.control.webhooks import DELIVERED, FAILED, PENDING, SECRET_PREFIX
from sarto.errors import SartoError
from sarto.storage.tables import webhook, webhook_delivery

logger = logging.getLogger(__name__)

LOOK_SECONDS = 0.5
CALL_SECONDS = 10.0
TAKEN_SECONDS = 60.0
MOST_ATTEMPTS = 8
PAUSE_FACTOR = 4.0
KEPT_SECONDS = 30 * 86_400.0


class WebhookSender:
    """`start` and `stop` once each; works in a thread of its own."""

    def __init__(self, control: Control) -> None:
        self._control = control
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="webhooks", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()

    def tell_next(self) -> bool:
        """One message that is due; False when there is none."""
        row = self._take()
        if row is None:
            return False
        outcome, is_told = self._tell(row)
        attempts = row.attempts + 1
        with self._control.database.transaction() as connection:
            now = self._control.database.now(connection)
            state = DELIVERED if is_told else FAILED if attempts >= MOST_ATTEMPTS else PENDING
            pause = self._control.limits.webhook_retry_seconds * PAUSE_FACTOR ** (attempts - 1)
            values = {"state": state, "attempts": attempts, "outcome": outcome, "not_before": now + pause}
            ours = webhook_delivery.c.sequence == row.sequence
            connection.execute(webhook_delivery.update().where(ours).values(**values))
        return True

    def _take(self) -> AnyRow | None:
        database = self._control.database
        due = (
            sa.select(webhook_delivery, webhook.c.uri, webhook.c.secret)
            .join_from(
                webhook_delivery,
                webhook,
                sa.and_(webhook.c.project == webhook_delivery.c.project, webhook.c.id == webhook_delivery.c.webhook),
            )
            .where(webhook_delivery.c.state == PENDING)
            .order_by(webhook_delivery.c.not_before)
            .limit(1)
        )
        with database.reading() as connection:
            late = webhook_delivery.c.not_before <= database.now(connection)
            if connection.execute(due.where(late)).first() is None:
                return None
        with database.transaction() as connection:
            now = database.now(connection)
            late = webhook_delivery.c.not_before <= now
            row = connection.execute(due.where(late).with_for_update(of=webhook_delivery, skip_locked=True)).first()
            if row is not None:
                ours = webhook_delivery.c.sequence == row.sequence
                connection.execute(webhook_delivery.update().where(ours).values(not_before=now + TAKEN_SECONDS))
            old = webhook_delivery.c.create_time < now - KEPT_SECONDS
            connection.execute(webhook_delivery.delete().where(old, webhook_delivery.c.state != PENDING))
        return row

    def _tell(self, row: AnyRow) -> tuple[str, bool]:
        """What came of it, in words, and whether the message was taken."""
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
            target = addresses.parse(row.uri, "webhook.uri", is_private_allowed)
            status = addresses.post(target, body, headers, CALL_SECONDS).status
        except SartoError as error:
            return error.message, False
        except (OSError, http.client.HTTPException) as error:
            return f"{type(error).__name__}: {error}"[:200], False
        return f"HTTP {status}", 200 <= status < 300

    def _loop(self) -> None:
        while not self._stopping.is_set():
            try:
                if self.tell_next():
                    continue
            except Exception:
                logger.exception("webhook delivery failed")
            self._stopping.wait(LOOK_SECONDS)


def sign(secret: str, message_id: str, stamp: str, body: bytes) -> str:
    """The `webhook-signature` header."""
    key = base64.b64decode(secret.removeprefix(SECRET_PREFIX))
    digest = hmac.new(key, f"{message_id}.{stamp}.".encode() + body, hashlib.sha256).digest()
    return f"v1,{base64.b64encode(digest).decode()}"
