"""Which adapters a generator elsewhere must hold: those of all models on its base that have an endpoint. The database
is the only record; whoever restarts asks again."""

from __future__ import annotations

import orjson
import sqlalchemy as sa

from sarto.control.context import Control
from sarto.storage.tables import checkpoint, endpoint


def announced_adapters(control: Control, weights: str) -> list[tuple[str, str]]:
    """(digest, folder) of every adapter on these base weights, newest first. Those sealed under a customer key are left
    out: their key could not be taken from who holds them."""
    query = (
        sa.select(checkpoint.c.adapter_digest, checkpoint.c.adapter_folder, checkpoint.c.resource)
        .join(
            endpoint,
            (endpoint.c.project == checkpoint.c.project)
            & (endpoint.c.job == checkpoint.c.job)
            & (endpoint.c.checkpoint_id == checkpoint.c.checkpoint_id),
        )
        .order_by(checkpoint.c.create_time.desc())
    )
    with control.database.reading() as connection:
        rows = connection.execute(query).all()
    origins = [(row.adapter_digest, row.adapter_folder, orjson.loads(row.resource)) for row in rows]
    found = {d: folder for d, folder, origin in origins if origin["weights"] == weights and not origin.get("kmsKey")}
    return list(found.items())
