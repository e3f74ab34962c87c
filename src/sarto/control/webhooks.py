"""Webhooks: who is told of a job's new state. Create, get, list, delete, and what was delivered.

`enqueue` writes what is to be told in the transaction that changes the state, so nothing is told that did not happen,
and nothing that happened is forgotten. `webhook_sender` does the telling.
"""

from __future__ import annotations

import base64
import secrets
from typing import Any

import orjson
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from sarto.control import addresses, iam, paging
from sarto.control.auth import Principal
from sarto.control.context import AnyRow, Control
from sarto.control.events import timestamp
from sarto.errors import NotFound, ResourceExhausted
from sarto.names import LocationName, ResourceName, new_id
from sarto.storage.tables import webhook, webhook_delivery

MOST_OF_A_PROJECT = 20
SECRET_PREFIX = "whsec_"
PENDING, DELIVERED, FAILED = "PENDING", "DELIVERED", "FAILED"


def create(control: Control, principal: Principal, parent: LocationName, uri: str, display_name: str) -> dict[str, Any]:
    """The webhook, and this once its secret. Raises InvalidArgument for an address that may not be called."""
    project = iam.require(control.database, principal, "aiplatform.webhooks.create", parent.project).number
    is_private_allowed = control.limits.webhook_private_addresses
    addresses.resolve(addresses.parse(uri, "webhook.uri", is_private_allowed))
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
    return {**resource, "secret": secret}


def get(control: Control, principal: Principal, name: ResourceName) -> dict[str, Any]:
    project = iam.require(control.database, principal, "aiplatform.webhooks.get", name.project).number
    with control.database.reading() as connection:
        resource: dict[str, Any] = orjson.loads(_find(connection, project, name).resource)
    return resource


def list_(
    control: Control, principal: Principal, parent: LocationName, page_size: int = 0, page_token: str = ""
) -> tuple[list[dict[str, Any]], str]:
    """Oldest first, without their secrets."""
    project = iam.require(control.database, principal, "aiplatform.webhooks.list", parent.project).number
    size, scope = paging.page_size(page_size), ("webhooks", project, parent.location)
    after = paging.start(page_token, *scope) or ""
    query = sa.select(webhook).where(webhook.c.project == project, webhook.c.id > after).order_by(webhook.c.id)
    if parent.location != "-":
        query = query.where(webhook.c.location == parent.location)
    with control.database.reading() as connection:
        rows = connection.execute(query.limit(size + 1)).all()
    more = paging.token(rows[size - 1].id, *scope) if len(rows) > size else ""
    return [orjson.loads(row.resource) for row in rows[:size]], more


def delete(control: Control, principal: Principal, name: ResourceName) -> None:
    """Nothing is told to it any more. Raises NotFound."""
    project = iam.require(control.database, principal, "aiplatform.webhooks.delete", name.project).number
    with control.database.transaction() as connection:
        _find(connection, project, name)
        for table, column in ((webhook, webhook.c.id), (webhook_delivery, webhook_delivery.c.webhook)):
            connection.execute(table.delete().where(table.c.project == project, column == name.id))


def deliveries(
    control: Control, principal: Principal, name: ResourceName, page_size: int = 0, page_token: str = ""
) -> tuple[list[dict[str, Any]], str]:
    """What was or is to be told to a webhook, newest first. Raises NotFound."""
    project = iam.require(control.database, principal, "aiplatform.webhooks.get", name.project).number
    size, scope = paging.page_size(page_size), ("deliveries", project, name.id)
    before = int(paging.start(page_token, *scope) or 2**62)
    query = (
        sa.select(webhook_delivery)
        .where(webhook_delivery.c.project == project, webhook_delivery.c.webhook == name.id)
        .where(webhook_delivery.c.sequence < before)
        .order_by(webhook_delivery.c.sequence.desc())
        .limit(size + 1)
    )
    with control.database.reading() as connection:
        _find(connection, project, name)
        rows = connection.execute(query).all()
    more = paging.token(str(rows[size - 1].sequence), *scope) if len(rows) > size else ""
    return [_as_wire(row) for row in rows[:size]], more


def enqueue(connection: Connection, row: AnyRow, now: float, resource: dict[str, Any]) -> None:
    """Have every webhook of the job's project and location told of its new state."""
    told = sa.select(webhook.c.id).where(webhook.c.project == row.project, webhook.c.location == row.location)
    for found in connection.execute(told).all():
        state = resource["state"].removeprefix("JOB_STATE_").lower()
        data = {key: resource[key] for key in ("name", "state", "error", "tunedModel", "labels") if key in resource}
        body = {"type": f"tuning_job.{state}", "timestamp": timestamp(now), "data": data}
        connection.execute(
            webhook_delivery.insert().values(
                id=f"msg_{new_id()}",
                project=row.project,
                webhook=found.id,
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
