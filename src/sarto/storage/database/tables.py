"""Every table, as SQLAlchemy Core. A resource is one JSON document; a column exists only to search or fence by it.

`project` columns have the project number as text. Times are seconds since 1970. `migrations/` upgrades a database to
this schema.
"""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy import (
    Boolean,
    Column,
    Float,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

metadata = MetaData()
Big = sa.BigInteger().with_variant(Integer, "sqlite")
ObjectName = String(1024).with_variant(String(1024, collation="C"), "postgresql")  # ordered by bytes, as in SQLite

meta = Table("meta", metadata, Column("key", String(64), primary_key=True), Column("value", Text, nullable=False))

# Who there is

project = Table(
    "project",
    metadata,
    Column("number", String(20), primary_key=True),
    Column("id", String(64), nullable=False, unique=True),
    Column("create_time", Float, nullable=False),
)
service_account = Table(
    "service_account",
    metadata,
    Column("email", String(128), primary_key=True),
    Column("project", String(20), nullable=False, index=True),
    Column("unique_id", String(32), nullable=False, unique=True),
    Column("display_name", String(128), nullable=False),
    Column("disabled", Boolean, nullable=False),
    Column("create_time", Float, nullable=False),
)
service_account_key = Table(
    "service_account_key",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("email", String(128), nullable=False, index=True),
    Column("public_key", Text, nullable=False),
    Column("disabled", Boolean, nullable=False),
    Column("create_time", Float, nullable=False),
    Column("valid_after", Float),
    Column("expire_time", Float),
    Column("former_email", String(128)),
)
api_key = Table(
    "api_key",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("email", String(128), nullable=False, index=True),
    Column("project", String(20), nullable=False),
    Column("digest", String(64), nullable=False, unique=True),
    Column("display_name", String(128), nullable=False),
    Column("create_time", Float, nullable=False),
    Column("expire_time", Float),
)
binding = Table(
    "binding",
    metadata,
    Column("resource", String(512), primary_key=True),
    Column("role", String(64), primary_key=True),
    Column("member", String(320), primary_key=True),
    Index("binding_of", "member"),
)
audit_entry = Table(
    "audit_entry",
    metadata,
    Column("sequence", Big, primary_key=True, autoincrement=True),
    Column("position", Big, unique=True),
    Column("project", String(20), nullable=False),
    Column("entry", Text, nullable=False),
    Column("hash", String(64)),
    Index("audit_entry_of", "project", "sequence"),
)

# Embedded buckets

bucket = Table(
    "bucket",
    metadata,
    Column("name", String(222), primary_key=True),
    Column("project", String(20), nullable=False, index=True),
    Column("resource", Text, nullable=False),
    Column("create_time", Float, nullable=False),
)
stored_object = Table(
    "object",
    metadata,
    Column("bucket", String(222), primary_key=True),
    Column("name", ObjectName, primary_key=True),
    Column("generation", Big, nullable=False),
    Column("metageneration", Big, nullable=False),
    Column("size", Big, nullable=False),
    Column("sha256", String(64), nullable=False, index=True),
    Column("md5", String(32), nullable=False),
    Column("crc32c", String(16), nullable=False),
    Column("content_type", String(255), nullable=False),
    Column("resource", Text, nullable=False),
    Column("create_time", Float, nullable=False),
    Column("update_time", Float, nullable=False),
)
held_object = Table(
    "held_object",
    metadata,
    Column("project", String(20), primary_key=True),
    Column("holder", String(64), primary_key=True),
    Column("uri", Text, primary_key=True),
    Column("sha256", String(64), nullable=False, index=True),
    Column("resource", Text, nullable=False),
)
upload_session = Table(
    "upload_session",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("kind", String(16), nullable=False),
    Column("bucket", String(222), nullable=False),
    Column("name", String(1024), nullable=False),
    Column("resource", Text, nullable=False),
    Column("create_time", Float, nullable=False),
)

# Tuning jobs

tuning_job = Table(
    "tuning_job",
    metadata,
    Column("project", String(20), primary_key=True),
    Column("id", String(64), primary_key=True),
    Column("location", String(32), nullable=False),
    Column("state", String(32), nullable=False),
    Column("base_model", String(256), nullable=False),
    Column("display_name", String(128), nullable=False),
    Column("create_time", Float, nullable=False),
    Column("resource", Text, nullable=False),
    Column("run", Text, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("not_before", Float, nullable=False),
    Column("cancel_requested", Boolean, nullable=False),
    Column("asked_by", String(320), nullable=False, server_default=""),
    Column("lease_owner", String(64)),
    Column("lease_epoch", Integer, nullable=False),
    Column("lease_until", Float),
    Index("tuning_job_list", "project", "location", "id"),
    Index("tuning_job_all", "project", "id"),
    Index("tuning_job_runnable", "state", "project", "create_time"),
    Index("tuning_job_leased", "lease_owner", "lease_until"),
)
project_turn = Table(
    "project_turn",
    metadata,
    Column("project", String(20), primary_key=True),
    Column("time", Float, nullable=False),
)
project_quota = Table(
    "project_quota",
    metadata,
    Column("project", String(20), primary_key=True),
    Column("concurrent_jobs", Integer, nullable=False),
)
server = Table(
    "server",
    metadata,
    Column("owner", String(64), primary_key=True),
    Column("host", String(253), nullable=False),
    Column("memory_bytes", Big, nullable=False),
    Column("until", Float, nullable=False),
)
experiment = Table(
    "experiment",
    metadata,
    Column("project", String(20), primary_key=True),
    Column("id", String(64), primary_key=True),
    Column("location", String(32), nullable=False),
    Column("job", String(64), nullable=False),
)
job_label = Table(
    "job_label",
    metadata,
    Column("project", String(20), primary_key=True),
    Column("job", String(64), primary_key=True),
    Column("key", String(64), primary_key=True),
    Column("value", String(64), nullable=False),
    Index("job_label_find", "project", "key", "value", "job"),
)
job_event = Table(
    "job_event",
    metadata,
    Column("sequence", Big, primary_key=True, autoincrement=True),
    Column("project", String(20), nullable=False),
    Column("job", String(64), nullable=False),
    Column("epoch", Integer, nullable=False),
    Column("time", Float, nullable=False),
    Column("kind", String(32), nullable=False),
    Column("message", Text, nullable=False),
    Column("data", Text, nullable=False),
    Index("job_event_of", "project", "job", "sequence"),
)
request_id = Table(
    "request_id",
    metadata,
    Column("project", String(20), primary_key=True),
    Column("id", String(64), primary_key=True),
    Column("body_digest", String(64), nullable=False),
    Column("resource_name", String(256), nullable=False),
    Column("create_time", Float, nullable=False),
)
metric_point = Table(
    "metric_point",
    metadata,
    Column("project", String(20), primary_key=True),
    Column("job", String(64), primary_key=True),
    Column("name", String(96), primary_key=True),
    Column("step", Big, primary_key=True),
    Column("value", Float, nullable=False),
    Column("time", Float, nullable=False),
)

# Registry

model = Table(
    "model",
    metadata,
    Column("project", String(20), primary_key=True),
    Column("id", String(64), primary_key=True),
    Column("location", String(32), nullable=False),
    Column("default_version", Integer, nullable=False),
    Column("create_time", Float, nullable=False),
    Index("model_list", "project", "location", "id"),
)
model_version = Table(
    "model_version",
    metadata,
    Column("project", String(20), primary_key=True),
    Column("model", String(64), primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("job", String(64), nullable=False),
    Column("base", String(128), nullable=False),
    Column("default_checkpoint", String(32), nullable=False),
    Column("resource", Text, nullable=False),
    Column("create_time", Float, nullable=False),
    UniqueConstraint("project", "job", name="one_version_per_job"),
)
checkpoint = Table(
    "checkpoint",
    metadata,
    Column("project", String(20), primary_key=True),
    Column("job", String(64), primary_key=True),
    Column("checkpoint_id", String(32), primary_key=True),
    Column("epoch", Integer, nullable=False),
    Column("step", Big, nullable=False),
    Column("endpoint", String(64), nullable=False),
    Column("artifact_uri", Text, nullable=False),
    Column("adapter_folder", Text, nullable=False),
    Column("adapter_digest", String(64), nullable=False),
    Column("resource", Text, nullable=False),
    Column("create_time", Float, nullable=False),
)
endpoint = Table(
    "endpoint",
    metadata,
    Column("project", String(20), primary_key=True),
    Column("id", String(64), primary_key=True),
    Column("location", String(32), nullable=False),
    Column("job", String(64), nullable=False),
    Column("model", String(64), nullable=False),
    Column("version", Integer, nullable=False),
    Column("checkpoint_id", String(32), nullable=False),
    Column("resource", Text, nullable=False),
    Column("create_time", Float, nullable=False),
    Index("endpoint_list", "project", "location", "id"),
    Index("endpoint_of", "project", "job"),
)
operation = Table(
    "operation",
    metadata,
    Column("project", String(20), primary_key=True),
    Column("id", String(64), primary_key=True),
    Column("location", String(32), nullable=False),
    Column("parent", String(256), nullable=False),
    Column("done", Boolean, nullable=False),
    Column("resource", Text, nullable=False),
    Column("create_time", Float, nullable=False),
)


def _queue(name: str) -> Table:
    """A table of long-running operations, each executed by the server that holds its lease."""
    return Table(
        name,
        metadata,
        Column("project", String(20), primary_key=True),
        Column("operation", String(64), primary_key=True),
        Column("run", Text, nullable=False),
        Column("asked_by", String(320), nullable=False, server_default=""),
        Column("lease_owner", String(64)),
        Column("lease_epoch", Integer, nullable=False),
        Column("lease_until", Float),
        Column("create_time", Float, nullable=False),
    )


model_export = _queue("model_export")
dataset_evaluation = _queue("dataset_evaluation")
batch_prediction_job = Table(
    "batch_prediction_job",
    metadata,
    Column("project", String(20), primary_key=True),
    Column("id", String(64), primary_key=True),
    Column("location", String(32), nullable=False),
    Column("state", String(32), nullable=False),
    Column("display_name", String(128), nullable=False),
    Column("resource", Text, nullable=False),
    Column("run", Text, nullable=False),
    Column("cancel_requested", Boolean, nullable=False),
    Column("asked_by", String(320), nullable=False, server_default=""),
    Column("lease_owner", String(64)),
    Column("lease_epoch", Integer, nullable=False),
    Column("lease_until", Float),
    Column("create_time", Float, nullable=False),
    Index("batch_prediction_job_list", "project", "location", "id"),
    Index("batch_prediction_job_runnable", "state", "create_time"),
)
secret = Table(
    "secret",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("value", LargeBinary, nullable=False),
)

# Webhooks and their messages

webhook = Table(
    "webhook",
    metadata,
    Column("project", String(20), primary_key=True),
    Column("id", String(64), primary_key=True),
    Column("location", String(32), nullable=False),
    Column("uri", Text, nullable=False),
    Column("secret", String(64), nullable=False),
    Column("resource", Text, nullable=False),
    Column("create_time", Float, nullable=False),
)
webhook_delivery = Table(
    "webhook_delivery",
    metadata,
    Column("sequence", Big, primary_key=True, autoincrement=True),
    Column("id", String(64), nullable=False),
    Column("project", String(20), nullable=False),
    Column("webhook", String(64), nullable=False),
    Column("job", String(64), nullable=False),
    Column("state", String(16), nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("not_before", Float, nullable=False),
    Column("body", Text, nullable=False),
    Column("outcome", Text, nullable=False),
    Column("create_time", Float, nullable=False),
    Index("webhook_delivery_due", "state", "not_before"),
    Index("webhook_delivery_of", "project", "webhook", "sequence"),
)

# Customer keys

key_ring = Table(
    "key_ring",
    metadata,
    Column("project", String(20), primary_key=True),
    Column("location", String(32), primary_key=True),
    Column("id", String(63), primary_key=True),
    Column("create_time", Float, nullable=False),
)
crypto_key = Table(
    "crypto_key",
    metadata,
    Column("project", String(20), primary_key=True),
    Column("location", String(32), primary_key=True),
    Column("ring", String(63), primary_key=True),
    Column("id", String(63), primary_key=True),
    Column("primary_version", Integer, nullable=False),
    Column("resource", Text, nullable=False),
    Column("next_rotation", Float),
    Column("create_time", Float, nullable=False),
)
crypto_key_version = Table(
    "crypto_key_version",
    metadata,
    Column("project", String(20), primary_key=True),
    Column("location", String(32), primary_key=True),
    Column("ring", String(63), primary_key=True),
    Column("key", String(63), primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("state", String(20), nullable=False),
    Column("create_time", Float, nullable=False),
    Column("destroy_time", Float),
    Column("destroyed_at", Float),
    Index("crypto_key_version_due", "state", "destroy_time"),
)
