"""boothctl evaluate and evaluations: a model's scores as a table and a report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from booth import cli_output as out
from booth.cli_output import AsJson
from booth.cli_runs import detaching, follower, remove, show_id, show_listed, stop
from booth.client import Client
from booth.evaluations import Evaluation
from booth.reports import Report

app = typer.Typer()
evaluations_app = typer.Typer(help="List evaluations, newest first; `cancel`, `rm`.", invoke_without_command=True)

Limit = Annotated[int, typer.Option(min=1, help="The most evaluations to list.")]
FIGURES = ("dino", "clip_i", "clip_t", "pres", "div", "unseen_dino", "ceiling", "floor")


@app.command("evaluate")
def evaluate(
    model_id: Annotated[str, typer.Argument(metavar="MODEL", help="A model's id.")],
    prompts: Annotated[
        Path | None,
        typer.Option(
            exists=True, dir_okay=False, help='A UTF-8 file with a prompt in each line: "a {0} {1} in the snow".'
        ),
    ] = None,
    prompt_set: Annotated[
        str | None, typer.Option(help="objects, live, art, ...; the base model's recipe names one.")
    ] = None,
    description: Annotated[
        str | None, typer.Option(help="The subject in words, drawn by the frozen base in its place.")
    ] = None,
    compare: Annotated[
        list[str] | None, typer.Option(help="Another model of the same subject; may be given several times.")
    ] = None,
    num_images: Annotated[int, typer.Option("--num-images", "-n", help="Pictures for each prompt.")] = 4,
    num_class_images: Annotated[int, typer.Option(help="Pictures of the class, for PRES.")] = 16,
    clip_text: Annotated[
        str, typer.Option(help="What stands for the subject in CLIP-T: noun, identifier, dropped.")
    ] = "noun",
    seed: Annotated[int, typer.Option(help="Of each prompt's first picture, in every arm.")] = 0,
    guidance_scale: Annotated[float | None, typer.Option(help="How closely to follow the prompt.")] = None,
    num_inference_steps: Annotated[int | None, typer.Option(help="Denoising steps.")] = None,
    scheduler: Annotated[str, typer.Option(help="How noise is removed; the base model's own.")] = "base",
    suite: Annotated[str | None, typer.Option(help="The encoders; the base model's recipe names them.")] = None,
    subject: Annotated[int, typer.Option(help="The subject's number, of a model of several.")] = 0,
    unseen: Annotated[
        list[str] | None,
        typer.Option(help='A prompt\'s label, as "in the snow", that no photo shows; may be repeated.'),
    ] = None,
    evaluation: Annotated[str | None, typer.Option(help="Take this one up again, in place of a new one.")] = None,
    out_dir: Annotated[
        Path | None, typer.Option("--out-dir", "-o", file_okay=False, help="Where page, sheet and JSON go.")
    ] = None,
    idempotency_key: Annotated[str | None, typer.Option(help="Two calls with one key make one evaluation.")] = None,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Print the id and return at once.")] = False,
    as_json: AsJson = False,
) -> None:
    """Score a model beside its baselines with the paper's metrics, by a job on the cluster.

    After Ctrl-C it goes on; the same command with --evaluation takes it up again.
    """
    with Client() as client:
        if evaluation is not None:
            run = client.evaluations.get(evaluation)
            _check_model(run, model_id)
        else:
            run = client.models.get(model_id).evaluate(
                prompt_set,
                prompts,
                description=description,
                compare=compare or [],
                num_images=num_images,
                num_class_images=num_class_images,
                clip_text=clip_text,  # type: ignore[arg-type]  # the request checks it
                seed=seed,
                guidance_scale=guidance_scale,
                num_inference_steps=num_inference_steps,
                scheduler=scheduler,  # type: ignore[arg-type]
                suite=suite,
                subject=subject,
                unseen=unseen or [],
                idempotency_key=idempotency_key,
            )
        out.say(estimate(run))
        if detach:
            show_id(run, as_json)
        else:
            _follow(run, out_dir, as_json)


@evaluations_app.callback()
def evaluations(context: typer.Context, limit: Limit = 50, as_json: AsJson = False) -> None:
    """List evaluations, newest first; `cancel`, `rm`."""
    if context.invoked_subcommand is None:
        ls(limit, as_json)


@evaluations_app.command()
def ls(limit: Limit = 50, as_json: AsJson = False) -> None:
    """List evaluations, newest first."""
    with Client() as client:
        found = client.evaluations.list(limit)
    header = ("ID", "STATUS", "PICTURES", "MODEL", "CREATED")
    show_listed(found, header, _row, "no evaluations; `boothctl evaluate` makes one", as_json)


@evaluations_app.command()
def cancel(
    evaluation_id: Annotated[str, typer.Argument(metavar="EVALUATION", help="An evaluation's id.")],
    as_json: AsJson = False,
) -> None:
    """Ask an evaluation to stop."""
    with Client() as client:
        stop(client.evaluations.get(evaluation_id), as_json)


@evaluations_app.command()
def rm(
    evaluation_ids: Annotated[
        list[str], typer.Argument(metavar="EVALUATION...", help="Ids of evaluations.", show_default=False)
    ],
    as_json: AsJson = False,
) -> None:
    """Delete evaluations with their pictures and reports; what runs of them ends."""
    with Client() as client:
        remove(client.evaluations.get, evaluation_ids, as_json)


def estimate(run: Evaluation) -> str:
    """What it will cost, in a sentence."""
    about = "" if run.estimated_s is None else f", about {out.duration(run.estimated_s)} by the last one like it"
    return f"{run.id} is {run.status.value}: {run.total} pictures of all arms together{about}"


def table_of(report: Report) -> tuple[tuple[str, ...], list[list[str]]]:
    """Header and lines of a report's figures; columns that nothing was measured for are left out."""
    rows = report.table()
    heads = dict.fromkeys(name for row in rows for name in row if name.endswith("_right"))
    figures = [name for name in (*FIGURES, *heads) if any(row.get(name) is not None for row in rows)]
    several = len({row["subject"] for row in rows}) > 1
    named = [[*([row["subject"]] if several else []), row["arm"]] for row in rows]
    lines = [
        [*names, *(_figure(row.get(name)) for name in figures), str(row["memorised"])]
        for names, row in zip(named, rows, strict=True)
    ]
    return ((*(["SUBJECT"] if several else []), "ARM", *(name.upper() for name in figures), "MEMORISED"), lines)


def _row(each: Evaluation) -> list[str]:
    return [each.id, each.status.value, f"{each.done}/{each.total}", each.model_id, f"{each.created_at:%Y-%m-%d %H:%M}"]


def _figure(value: Any) -> str:
    return "-" if value is None else f"{value:.3f}"


def _check_model(run: Evaluation, model_id: str) -> None:
    if run.model_id != model_id:
        raise typer.BadParameter(f"{run.id} is of model {run.model_id}, not of {model_id}", param_hint="--evaluation")


def _follow(run: Evaluation, out_dir: Path | None, as_json: bool) -> None:
    """Its way is on stderr; at the end its table is on stdout, or JSON, and its files lie in the folder."""
    again = f"boothctl evaluate {run.model_id} --evaluation {run.id}" + (f" -o {out_dir}" if out_dir else "")
    with detaching(run, again, f"boothctl evaluations cancel {run.id}"), follower() as on_progress:
        run.wait(on_progress=on_progress)
    report = run.report()
    if out_dir is not None:
        out.say(f"{report.save(out_dir) / 'report.html'}")
    for text in report.warnings:
        out.say(f"warning: {text}")
    if as_json:
        out.show_json({"evaluation": run.record.model_dump(mode="json"), "table": report.table()})
    else:
        out.show_table(*table_of(report))
