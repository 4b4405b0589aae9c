"""What publishing a base model untrained would give, for models that are stored as differences to it."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("base_models", sa.Column("reference_files", sa.JSON(), nullable=False, server_default="{}"))


def downgrade() -> None:
    op.drop_column("base_models", "reference_files")
