"""The principal that requested work which the service does later."""

import sqlalchemy as sa
from alembic import op

revision = "0010_asked_by"
down_revision = "0009_system_project"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for table in ("tuning_job", "batch_prediction_job", "model_export", "dataset_evaluation"):
        op.add_column(table, sa.Column("asked_by", sa.String(length=320), nullable=False, server_default=""))
