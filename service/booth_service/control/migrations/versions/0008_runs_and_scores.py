"""Generations become runs, beside evaluations and groups of jobs; scores; suites of encoders."""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

SHARED = (
    "id, tenant_id, model_id, base_model_id, idempotency_key, request_sha256, prompts_sha256, prompts, is_stored, "
    "settings, block_size, state, status_detail, desired, attempt, fence, done, total, images_per_second, eta_s, "
    "manifest_key, manifest_sha256, error, not_before, created_at, started_at, finished_at, deleted_at"
)
OF_ATTEMPTS = (
    "n, fence, ray_submission_id, state, stop_reason, reason, detail, created_at, phase, step, from_step, "
    "submitted_at, last_beat_at, last_progress_at, first_at, ended_at, closed_at"
)


def text(name: str, *, nullable: bool = False) -> sa.Column[object]:
    return sa.Column(name, sa.Text(), nullable=nullable)


def number(name: str, *, nullable: bool = False) -> sa.Column[object]:
    return sa.Column(name, sa.Integer(), nullable=nullable)


def json(name: str, *, nullable: bool = False) -> sa.Column[object]:
    return sa.Column(name, sa.JSON(none_as_null=True), nullable=nullable)


def word(name: str, *, nullable: bool = False) -> sa.Column[object]:
    return sa.Column(name, sa.String(length=20), nullable=nullable)


def moment(name: str, *, nullable: bool = True) -> sa.Column[object]:
    return sa.Column(name, sa.DateTime(timezone=True), nullable=nullable)


def state_of_work() -> list[Any]:
    """What a table of runs has, whatever they are for."""
    return [
        sa.Column("tenant_id", sa.Text(), sa.ForeignKey("tenants.id"), nullable=False),
        text("model_id", nullable=True),
        sa.Column("base_model_id", sa.Text(), sa.ForeignKey("base_models.id"), nullable=False),
        text("idempotency_key"),
        text("request_sha256"),
        sa.Column("is_stored", sa.Boolean(), nullable=False),
        json("settings"),
        word("state"),
        text("status_detail"),
        word("desired"),
        number("attempt"),
        number("fence"),
        number("done"),
        number("total"),
        sa.Column("images_per_second", sa.Double(), nullable=True),
        sa.Column("eta_s", sa.Double(), nullable=True),
        text("manifest_key", nullable=True),
        text("manifest_sha256", nullable=True),
        json("error", nullable=True),
        moment("not_before"),
        moment("created_at", nullable=False),
        moment("started_at"),
        moment("finished_at"),
        moment("deleted_at"),
        sa.UniqueConstraint("tenant_id", "idempotency_key"),
    ]


def state_of_attempt() -> list[Any]:
    """What a table of their attempts has."""
    return [
        sa.Column("n", sa.Integer(), primary_key=True),
        number("fence"),
        text("ray_submission_id"),
        word("state"),
        word("stop_reason", nullable=True),
        word("reason", nullable=True),
        text("detail"),
        moment("created_at", nullable=False),
        text("phase"),
        number("step"),
        number("from_step"),
        *(moment(f"{name}_at") for name in ("submitted", "last_beat", "last_progress", "first", "ended", "closed")),
    ]


def index(table: str) -> None:
    op.create_index(f"ix_{table}_tenant_id_id", table, ["tenant_id", "id"])
    for column in ("model_id", "state", "deleted_at"):
        op.create_index(f"ix_{table}_{column}", table, [column])


def upgrade() -> None:
    op.create_table(
        "runs",
        sa.Column("id", sa.Text(), primary_key=True),
        text("kind"),
        *state_of_work(),
        text("prompts_sha256", nullable=True),
        number("prompts", nullable=True),
        number("block_size", nullable=True),
    )
    op.execute(f"INSERT INTO runs (kind, {SHARED}) SELECT 'generation', {SHARED} FROM generations")
    index("runs")
    op.create_table(
        "run_attempts",
        sa.Column("run_id", sa.Text(), sa.ForeignKey("runs.id"), primary_key=True),
        *state_of_attempt(),
    )
    op.execute(
        f"INSERT INTO run_attempts (run_id, {OF_ATTEMPTS}) SELECT generation_id, {OF_ATTEMPTS} FROM generation_attempts"
    )
    op.create_index("ix_run_attempts_state", "run_attempts", ["state"])
    op.drop_table("generation_attempts")
    op.drop_table("generations")
    with op.batch_alter_table("jobs") as jobs:
        jobs.add_column(sa.Column("group_id", sa.Text(), sa.ForeignKey("runs.id", name="jobs_group_id_fkey")))
        jobs.add_column(json("cell", nullable=True))
        jobs.add_column(number("selected_step", nullable=True))
        jobs.create_index("ix_jobs_group_id", ["group_id"])
    op.create_table(
        "scores",
        sa.Column("job_id", sa.Text(), sa.ForeignKey("jobs.id"), primary_key=True),
        sa.Column("step", sa.Integer(), primary_key=True),
        number("attempt"),
        json("score"),
        text("key"),
        text("sha256"),
    )
    op.create_table(
        "encoder_suites",
        sa.Column("id", sa.Text(), primary_key=True),
        text("name"),
        json("spec"),
        json("files"),
        text("source"),
        moment("created_at", nullable=False),
        moment("replaced_at"),
    )
    op.create_index(
        "ix_encoder_suites_current",
        "encoder_suites",
        ["name"],
        unique=True,
        sqlite_where=sa.text("replaced_at IS NULL"),
        postgresql_where=sa.text("replaced_at IS NULL"),
    )


def downgrade() -> None:
    """Evaluations, groups, scores and suites are lost; their jobs and models stay."""
    op.drop_table("encoder_suites")
    op.drop_table("scores")
    with op.batch_alter_table("jobs") as jobs:
        jobs.drop_index("ix_jobs_group_id")
        jobs.drop_constraint("jobs_group_id_fkey", type_="foreignkey")
        jobs.drop_column("group_id")
        jobs.drop_column("cell")
        jobs.drop_column("selected_step")
    op.create_table(
        "generations",
        sa.Column("id", sa.Text(), primary_key=True),
        *state_of_work(),
        text("prompts_sha256"),
        number("prompts"),
        number("block_size"),
    )
    op.execute(f"INSERT INTO generations ({SHARED}) SELECT {SHARED} FROM runs WHERE kind = 'generation'")
    index("generations")
    op.create_table(
        "generation_attempts",
        sa.Column("generation_id", sa.Text(), sa.ForeignKey("generations.id"), primary_key=True),
        *state_of_attempt(),
    )
    op.execute(
        f"INSERT INTO generation_attempts (generation_id, {OF_ATTEMPTS}) SELECT run_id, {OF_ATTEMPTS} "
        "FROM run_attempts WHERE run_id IN (SELECT id FROM generations)"
    )
    op.create_index("ix_generation_attempts_state", "generation_attempts", ["state"])
    op.drop_table("run_attempts")
    op.drop_table("runs")
