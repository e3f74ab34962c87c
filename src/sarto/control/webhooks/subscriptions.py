"""Webhook subscriptions to job states: create, get, list, delete, and the list of deliveries.

`enqueue` stores a message in the transaction that changes the state. So there is a message for every change, and none
without a change. `sender` delivers it.
"""

from __future__ import annotations

import base64
import secrets
from typing import Any

import orjson
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from sarto.control.access import authorization, quoting
from sarto.control.access.principal import Principal
from sarto.control.aip import pages
from sarto.control.aip.times import timestamp
from sarto.control.context import AnyRow, Control
from sarto.errors import InvalidArgument, NotFound, ResourceExhausted, Unavailable
from sarto.names import LocationName, ResourceName, new_id
from sarto.storage.database.database import report
from sarto.storage.database.tables import webhook, webhook_delivery
from sarto.system import outbound_http

MOST_OF_A_PROJECT = 20
SECRET_PREFIX = "whsec_"
PENDING, DELIVERED, FAILED = "PENDING", "DELIVERED", "FAILED"


def create(control: Control, principal: Principal, parent: LocationName, uri: str, display_name: str) -> dict[str, Any]:
    """Create a webhook; the response has its secret, only this once. Raises InvalidArgument for an address that may not
    be called."""
    project = authorization.require(control.database, principal, "aiplatform.webhooks.create", parent.project).number
    is_private_allowed = control.limits.webhook_private_addresses
    try:
        outbound_http.resolve(outbound_http.parse(uri, "webhook.uri", is_private_allowed))
    except Unavailable as error:
        raise InvalidArgument.field("webhook.uri", error.message) from None
    name = ResourceName(project, parent.location, "webhooks", new_id())
    secret = SECRET_PREFIX + base64.b64encode(secrets.token_bytes(24)).decode()
    with control.database.transaction() as connection:
        ours = sa.select(sa.func.count()).select_from(webhook).where(webhook.c.project == project)
        if connection.execute(ours).scalar_one() >= MOST_OF_A_PROJECT:
            raise ResourceExhausted(f"A project has at most {MOST_OF_A_PROJECT} webhooks; delete one first.")
        now = control.database.now(connection)
        resource = {"name": str(name), "displayName": display_name, "uri": uri, "createTime": timestamp(now)}
        connection.execute(
            webhook.insert().values(
                project=project,
                id=name.id,
                location=name.location,
                uri=uri,
                secret=secret,
                resource=orjson.dumps({key: value for key, value in resource.items() if value}).decode(),
                create_time=now,
            )
        )
        report(connection, "aiplatform.webhooks.create", project, str(name))
    return {**resource, "secret": secret}


def get(control: Control, principal: Principal, name: ResourceName) -> dict[str, Any]:
    project = authorization.require(control.database, principal, "aiplatform.webhooks.get", name.project).number
    with control.database.reading() as connection:
        resource: dict[str, Any] = orjson.loads(_find(connection, project, name).resource)
    return resource


def list_subscriptions(
    control: Control, principal: Principal, parent: LocationName, page_size: int = 0, page_token: str = ""
) -> tuple[list[dict[str, Any]], str]:
    """Webhooks, oldest first, without their secrets."""
    project = authorization.require(control.database, principal, "aiplatform.webhooks.list", parent.project).number
    page = pages.requested(page_size, page_token, "webhooks", project, parent.location)
    query = sa.select(webhook).where(pages.within(webhook, project, parent.location))
    with control.database.reading() as connection:
        rows, more = page.read(connection, query, webhook.c.id, ascending=True)
    return [orjson.loads(row.resource) for row in rows], more


def delete(control: Control, principal: Principal, name: ResourceName) -> None:
    """Delete a webhook; no further message is sent to it. Raises NotFound."""
    project = authorization.require(control.database, principal, "aiplatform.webhooks.delete", name.project).number
    with control.database.transaction() as connection:
        _find(connection, project, name)
        for table, column in ((webhook, webhook.c.id), (webhook_delivery, webhook_delivery.c.webhook)):
            connection.execute(table.delete().where(table.c.project == project, column == name.id))


def deliveries(
    control: Control, principal: Principal, name: ResourceName, page_size: int = 0, page_token: str = ""
) -> tuple[list[dict[str, Any]], str]:
    """Sent and pending messages of a webhook, newest first. Raises NotFound."""
    project = authorization.require(control.database, principal, "aiplatform.webhooks.get", name.project).number
    page = pages.requested(page_size, page_token, "deliveries", project, name.id)
    ours = webhook_delivery.c.project == project, webhook_delivery.c.webhook == name.id
    with control.database.reading() as connection:
        _find(connection, project, name)
        rows, more = page.read(connection, sa.select(webhook_delivery).where(*ours), webhook_delivery.c.sequence)
    return [_as_wire(row) for row in rows], more


def enqueue(connection: Connection, row: AnyRow, now: float, resource: dict[str, Any]) -> None:
    """Queue a message about the job's new state for every webhook of its project and location."""
    query = sa.select(webhook.c.id).where(webhook.c.project == row.project, webhook.c.location == row.location)
    for receiver in connection.execute(query).all():
        state = resource["state"].removeprefix("JOB_STATE_").lower()
        shown = quoting.without_quotes(resource)  # the receiver of a webhook may not have the right to read the data
        data = {key: shown[key] for key in ("name", "state", "error", "tunedModel", "labels") if key in shown}
        body = {"type": f"tuning_job.{state}", "timestamp": timestamp(now), "data": data}
        connection.execute(
            webhook_delivery.insert().values(
                id=f"msg_{new_id()}",
                project=row.project,
                webhook=receiver.id,
                job=row.id,
                state=PENDING,
                attempts=0,
                not_before=now,
                body=orjson.dumps(body).decode(),
                outcome="",
                create_time=now,
            )
        )


def _find(connection: Connection, project: str, name: ResourceName) -> AnyRow:
    query = sa.select(webhook).where(webhook.c.project == project, webhook.c.id == name.id)
    row = connection.execute(query.where(webhook.c.location == name.location)).first()
    if row is None:
        raise NotFound(f"Webhook {name} is not found.")
    return row


def _as_wire(row: AnyRow) -> dict[str, Any]:
    written = {
        "id": row.id,
        "state": row.state,
        "attempts": row.attempts,
        "outcome": row.outcome,
        "createTime": timestamp(row.create_time),
        "message": orjson.loads(row.body),
    }
    if row.state == PENDING:
        written["nextAttemptTime"] = timestamp(row.not_before)
    return {key: value for key, value in written.items() if value != ""}
