"""Move the administrator's account from its project to the service's own. Key files with its old address stay valid."""

import sqlalchemy as sa
from alembic import op

revision = "0009_system_project"
down_revision = "0008_held_objects"
branch_labels = None
depends_on = None

NEW = "sarto-admin@sys.iam.gserviceaccount.com"
FIND = """
select email, project from service_account join binding on member = 'serviceAccount:' || email
where resource = 'service' and role = 'roles/sarto.admin' and email like 'sarto-admin@%'
order by service_account.create_time limit 1
"""
"""The account with a role on the service, which no call of a project's user can grant."""


def upgrade() -> None:
    op.add_column("service_account_key", sa.Column("former_email", sa.String(length=128), nullable=True))
    row = op.get_bind().execute(sa.text(FIND)).first()
    if row is None:
        return
    names = {"new": NEW, "old": row.email}
    members = {"new": f"serviceAccount:{NEW}", "old": f"serviceAccount:{row.email}"}
    policy = {"old": f"projects/{row.project}/serviceAccounts/{row.email}"}
    for statement, values in (
        ("update service_account set email = :new, project = '1' where email = :old", names),
        ("update service_account_key set email = :new, former_email = :old where email = :old", names),
        ("update binding set member = :new where member = :old", members),
        ("delete from binding where resource = :old", policy),
    ):
        op.get_bind().execute(sa.text(statement), values)
