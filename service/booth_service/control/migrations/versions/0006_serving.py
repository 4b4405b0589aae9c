"""Whether inference may hold devices: one row, of one stack."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "serving",
        sa.Column("id", sa.Text(), primary_key=True),
        sa.Column("state", sa.String(length=20), nullable=False),
        sa.Column("job_id", sa.Text(), nullable=True),
        sa.Column("since", sa.DateTime(timezone=True), nullable=False),
    )


def downgrade() -> None:
    op.drop_table("serving")
