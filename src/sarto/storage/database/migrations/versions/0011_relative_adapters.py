"""Rows name the folders of adapters relative to the data folder, wherever that is."""

import json
import re
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0011_relative_adapters"
down_revision = "0010_asked_by"
branch_labels = None
depends_on = None

ABSOLUTE = re.compile(r"/(?:.*/)?(adapters/[^/]+)")
"""Every adapter is in `adapters/` of the data folder. The rows of a home that was moved may have the old path."""
CHECKPOINT = ("project", "job", "checkpoint_id")
KEYS = {
    "tuning_job": ("project", "id"),
    "batch_prediction_job": ("project", "id"),
    "model_export": ("project", "operation"),
    "dataset_evaluation": ("project", "operation"),
}
AT_ONCE = 500


def upgrade() -> None:
    _rewrite("checkpoint", CHECKPOINT, "adapter_folder", _name)
    for table, keys in KEYS.items():
        _rewrite(table, keys, "run", _run)


def _rewrite(table: str, keys: tuple[str, ...], column: str, change: Any) -> None:
    rows = sa.table(table, *(sa.column(name) for name in (*keys, column)))
    connection, value = op.get_bind(), rows.c[column]
    query = sa.select(rows).where(value.like("%/adapters/%"))
    records = [dict(row._mapping) for row in connection.execute(query)]
    update = rows.update().where(*(rows.c[name] == sa.bindparam(f"key_{name}") for name in keys))
    update = update.values({column: sa.bindparam("changed")})
    for start in range(0, len(records), AT_ONCE):
        values = [
            {**{f"key_{name}": row[name] for name in keys}, "changed": change(row[column])}
            for row in records[start : start + AT_ONCE]
        ]
        connection.execute(update, values)


def _name(path: str) -> str:
    match = ABSOLUTE.fullmatch(path)
    return match[1] if match else path


def _run(text: str) -> str:
    """Of a job or operation: the adapters that its work reads, each in a field of its own."""
    run: dict[str, Any] = json.loads(text)
    for record in (run, *run.get("targets", {}).values()):
        for field in ("parent_adapter", "adapterFolder", "adapter_folder"):
            if field in record:
                record[field] = _name(record[field])
    for name, (weights, folder, digest) in run.get("judges", {}).items():
        run["judges"][name] = [weights, _name(folder), digest]
    return json.dumps(run)
