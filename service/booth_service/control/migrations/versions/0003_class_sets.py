"""Leases of class-image sets, and the users' own class images of a job."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "class_set_leases",
        sa.Column("class_set", sa.Text(), nullable=False),
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("claimed_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["job_id", "attempt"],
            ["attempts.job_id", "attempts.n"],
        ),
        sa.PrimaryKeyConstraint("class_set"),
    )
    op.add_column("jobs", sa.Column("class_photos", sa.JSON(none_as_null=True), server_default="[]", nullable=False))


def downgrade() -> None:
    op.drop_column("jobs", "class_photos")
    op.drop_table("class_set_leases")
