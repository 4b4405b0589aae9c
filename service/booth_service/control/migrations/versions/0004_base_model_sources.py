"""Where base models came from; rows of deleted models go with their objects."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("base_models", sa.Column("source", sa.Text(), nullable=False, server_default=""))
    op.add_column("base_models", sa.Column("revision", sa.Text(), nullable=True))
    op.execute("DELETE FROM models WHERE purged_at IS NOT NULL")
    op.drop_column("models", "purged_at")


def downgrade() -> None:
    op.add_column("models", sa.Column("purged_at", sa.DateTime(timezone=True), nullable=True))
    op.drop_column("base_models", "revision")
    op.drop_column("base_models", "source")
