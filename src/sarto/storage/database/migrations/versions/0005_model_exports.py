"""Long-running exports of models."""

import sqlalchemy as sa
from alembic import op

revision = "0005_model_exports"
down_revision = "0004_customer_keys"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "model_export",
        sa.Column("project", sa.String(length=20), nullable=False),
        sa.Column("operation", sa.String(length=64), nullable=False),
        sa.Column("run", sa.Text(), nullable=False),
        sa.Column("lease_owner", sa.String(length=64), nullable=True),
        sa.Column("lease_epoch", sa.Integer(), nullable=False),
        sa.Column("lease_until", sa.Float(), nullable=True),
        sa.Column("create_time", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("project", "operation"),
    )
