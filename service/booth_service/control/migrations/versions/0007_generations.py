"""Generations: many pictures by a job on the cluster, and its attempts."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def moment(name: str) -> sa.Column[object]:
    return sa.Column(name, sa.DateTime(timezone=True), nullable=True)


def upgrade() -> None:
    op.create_table(
        "generations",
        sa.Column("id", sa.Text(), primary_key=True),
        sa.Column("tenant_id", sa.Text(), sa.ForeignKey("tenants.id"), nullable=False),
        sa.Column("model_id", sa.Text(), nullable=True),
        sa.Column("base_model_id", sa.Text(), sa.ForeignKey("base_models.id"), nullable=False),
        sa.Column("idempotency_key", sa.Text(), nullable=False),
        sa.Column("request_sha256", sa.Text(), nullable=False),
        sa.Column("prompts_sha256", sa.Text(), nullable=False),
        sa.Column("prompts", sa.Integer(), nullable=False),
        sa.Column("is_stored", sa.Boolean(), nullable=False),
        sa.Column("settings", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("block_size", sa.Integer(), nullable=False),
        sa.Column("state", sa.String(length=20), nullable=False),
        sa.Column("status_detail", sa.Text(), nullable=False),
        sa.Column("desired", sa.String(length=20), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("fence", sa.Integer(), nullable=False),
        sa.Column("done", sa.Integer(), nullable=False),
        sa.Column("total", sa.Integer(), nullable=False),
        sa.Column("images_per_second", sa.Double(), nullable=True),
        sa.Column("eta_s", sa.Double(), nullable=True),
        sa.Column("manifest_key", sa.Text(), nullable=True),
        sa.Column("manifest_sha256", sa.Text(), nullable=True),
        sa.Column("error", sa.JSON(none_as_null=True), nullable=True),
        moment("not_before"),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        moment("started_at"),
        moment("finished_at"),
        moment("deleted_at"),
        sa.UniqueConstraint("tenant_id", "idempotency_key"),
    )
    op.create_index("ix_generations_tenant_id_id", "generations", ["tenant_id", "id"])
    for column in ("model_id", "state", "deleted_at"):
        op.create_index(f"ix_generations_{column}", "generations", [column])
    op.create_table(
        "generation_attempts",
        sa.Column("generation_id", sa.Text(), sa.ForeignKey("generations.id"), primary_key=True),
        sa.Column("n", sa.Integer(), primary_key=True),
        sa.Column("fence", sa.Integer(), nullable=False),
        sa.Column("ray_submission_id", sa.Text(), nullable=False),
        sa.Column("state", sa.String(length=20), nullable=False),
        sa.Column("stop_reason", sa.String(length=20), nullable=True),
        sa.Column("reason", sa.String(length=20), nullable=True),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("phase", sa.Text(), nullable=False),
        sa.Column("step", sa.Integer(), nullable=False),
        sa.Column("from_step", sa.Integer(), nullable=False),
        *(moment(f"{name}_at") for name in ("submitted", "last_beat", "last_progress", "first", "ended", "closed")),
    )
    op.create_index("ix_generation_attempts_state", "generation_attempts", ["state"])


def downgrade() -> None:
    op.drop_table("generation_attempts")
    op.drop_table("generations")
