"""Key rings, keys and their versions."""

import sqlalchemy as sa
from alembic import op

revision = "0004_customer_keys"
down_revision = "0003_webhooks"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "key_ring",
        sa.Column("project", sa.String(length=20), nullable=False),
        sa.Column("location", sa.String(length=32), nullable=False),
        sa.Column("id", sa.String(length=63), nullable=False),
        sa.Column("create_time", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("project", "location", "id"),
    )
    op.create_table(
        "crypto_key",
        sa.Column("project", sa.String(length=20), nullable=False),
        sa.Column("location", sa.String(length=32), nullable=False),
        sa.Column("ring", sa.String(length=63), nullable=False),
        sa.Column("id", sa.String(length=63), nullable=False),
        sa.Column("primary_version", sa.Integer(), nullable=False),
        sa.Column("resource", sa.Text(), nullable=False),
        sa.Column("next_rotation", sa.Float(), nullable=True),
        sa.Column("create_time", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("project", "location", "ring", "id"),
    )
    op.create_table(
        "crypto_key_version",
        sa.Column("project", sa.String(length=20), nullable=False),
        sa.Column("location", sa.String(length=32), nullable=False),
        sa.Column("ring", sa.String(length=63), nullable=False),
        sa.Column("key", sa.String(length=63), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("state", sa.String(length=20), nullable=False),
        sa.Column("create_time", sa.Float(), nullable=False),
        sa.Column("destroy_time", sa.Float(), nullable=True),
        sa.Column("destroyed_at", sa.Float(), nullable=True),
        sa.PrimaryKeyConstraint("project", "location", "ring", "key", "version"),
    )
    op.create_index("crypto_key_version_due", "crypto_key_version", ["state", "destroy_time"], unique=False)
