"""Rights as bindings of roles to members, and the audit log; the former role of an account becomes a binding."""

import sqlalchemy as sa
from alembic import op

revision = "0002_rights"
down_revision = "0001"
branch_labels = None
depends_on = None

AGENT = "gcp-sa-vertex-tune.iam.gserviceaccount.com"


def upgrade() -> None:
    op.create_table(
        "binding",
        sa.Column("resource", sa.String(length=512), nullable=False),
        sa.Column("role", sa.String(length=64), nullable=False),
        sa.Column("member", sa.String(length=320), nullable=False),
        sa.PrimaryKeyConstraint("resource", "role", "member"),
    )
    op.create_index("binding_of", "binding", ["member"], unique=False)
    op.create_table(
        "audit_entry",
        sa.Column("sequence", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False, autoincrement=True),
        sa.Column("position", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=True),
        sa.Column("project", sa.String(length=20), nullable=False),
        sa.Column("entry", sa.Text(), nullable=False),
        sa.Column("hash", sa.String(length=64), nullable=True),
        sa.PrimaryKeyConstraint("sequence"),
        sa.UniqueConstraint("position"),
    )
    op.create_index("audit_entry_of", "audit_entry", ["project", "sequence"], unique=False)
    op.execute(
        "insert into binding (resource, role, member) select case when role = 'roles/sarto.admin' then 'service' "
        "else 'projects/' || project end, role, 'serviceAccount:' || email from service_account"
    )
    op.execute(
        "insert into binding (resource, role, member) select 'projects/' || number, 'roles/storage.objectAdmin', "
        "'serviceAccount:' || email from service_account, project where service_account.project = project.number "
        "and role in ('roles/aiplatform.admin', 'roles/aiplatform.user')"
    )
    for role in ("roles/aiplatform.tuningServiceAgent", "roles/storage.objectAdmin"):
        op.execute(
            "insert into binding (resource, role, member) select 'projects/' || number, "
            f"'{role}', 'serviceAccount:service-' || number || '@{AGENT}' from project"
        )
    op.drop_column("service_account", "role")
    op.add_column("service_account_key", sa.Column("valid_after", sa.Float(), nullable=True))
