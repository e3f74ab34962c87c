"""Holds: versions of objects that running work still reads."""

import sqlalchemy as sa
from alembic import op

revision = "0008_held_objects"
down_revision = "0007_dataset_evaluations"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "held_object",
        sa.Column("project", sa.String(length=20), nullable=False),
        sa.Column("holder", sa.String(length=64), nullable=False),
        sa.Column("uri", sa.Text(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("resource", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("project", "holder", "uri"),
    )
    op.create_index("ix_held_object_sha256", "held_object", ["sha256"])
