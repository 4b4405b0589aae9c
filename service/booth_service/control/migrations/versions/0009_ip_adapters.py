"""Files of a base model's IP-Adapter, beside the base model's own."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("base_models", sa.Column("adapter_files", sa.JSON(), nullable=False, server_default="[]"))


def downgrade() -> None:
    op.drop_column("base_models", "adapter_files")
