"""boothctl scores: what a job's weights came to, step by step."""

from __future__ import annotations

from collections.abc import Sequence

import typer

from booth import cli_output as out
from booth.cli_output import AsJson, JobId
from booth.client import Client
from booth.contract.scores import Score
from booth.jobs import Job

_COLUMNS = {
    "DINO": "dino",
    "CLIP-I": "clip_i",
    "CLIP-T": "clip_t",
    "PRES": "pres",
    "DIV": "div",
    "UNSEEN": "unseen_dino",
}

app = typer.Typer()


@app.command("scores")
def show_scores(job_id: JobId, as_json: AsJson = False) -> None:
    """Print the scores of a job's weights: a line for each step, 0 is the frozen base, * the step that is published."""
    with Client() as client:
        job = client.jobs.get(job_id)
        scores = job.scores()
    if as_json:
        told = [score.model_dump(mode="json") for score in scores]
        out.show_json({"scores": told, "selected_step": job.selected_step})
    elif not scores:
        out.say(_none_yet(job))
    else:
        out.show_table(*_table(scores, job.selected_step))
        for line in _beside(scores):
            out.say(line)


def _table(scores: Sequence[Score], selected_step: int | None) -> tuple[list[str], list[list[str]]]:
    """Header and rows; of figures that no step has, no column."""
    columns = {name: field for name, field in _COLUMNS.items() if any(getattr(s, field) is not None for s in scores)}
    heads = sorted({head for score in scores for head in score.accuracies})
    rows = [
        [
            str(score.step),
            *(_figure(getattr(score, field)) for field in columns.values()),
            *(_figure(score.accuracies.get(head)) for head in heads),
            str(len(score.like_a_photo)),
            "*" if score.step == selected_step else "",
        ]
        for score in scores
    ]
    return ["STEP", *columns, *(head.upper() for head in heads), "MEMORISED", "PUBLISHED"], rows


def _beside(scores: Sequence[Score]) -> list[str]:
    """What is to be read beside the table: the ceiling of the photos, and what warns of a figure."""
    ceiling = next((score for score in scores if score.ceiling_dino is not None), None)
    said = []
    if ceiling is not None:
        said.append(
            f"the photos among themselves: DINO {_figure(ceiling.ceiling_dino)}, "
            f"CLIP-I {_figure(ceiling.ceiling_clip_i)}; encoders: {ceiling.suite}"
        )
    return said + [f"warning: step {score.step}: {warning}" for score in scores for warning in score.warnings]


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _none_yet(job: Job) -> str:
    if job.params.scoring is None:
        return "the job is not scored; submit with options.scoring to have scores"
    return "no scores yet; they come after training"
