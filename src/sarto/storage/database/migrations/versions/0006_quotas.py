"""Quotas of projects, and the servers that share a database."""

import sqlalchemy as sa
from alembic import op

revision = "0006_quotas"
down_revision = "0005_model_exports"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "project_quota",
        sa.Column("project", sa.String(length=20), nullable=False),
        sa.Column("concurrent_jobs", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("project"),
    )
    op.create_table(
        "server",
        sa.Column("owner", sa.String(length=64), nullable=False),
        sa.Column("host", sa.String(length=253), nullable=False),
        sa.Column("memory_bytes", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("until", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("owner"),
    )
