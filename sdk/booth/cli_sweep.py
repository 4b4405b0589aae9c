"""boothctl sweep and benchmark: many jobs compared in one report; what they cost is said first."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from booth import benchmark as benchmarks
from booth import cli_groups, cost, sweep_file
from booth import cli_output as out
from booth import sweep as sweeps
from booth.cli_output import AsJson
from booth.client import Client
from booth.contract.jobs import ScoringOptions
from booth.errors import APIError
from booth.groups import Group
from booth.subjects import Subject

app = typer.Typer()

FILE_SUFFIXES = (".yaml", ".yml", ".json")
PACE_FROM = 20  # finished jobs that are looked at for their pace

OutDir = Annotated[Path | None, typer.Option("--out-dir", "-o", file_okay=False, help="Where the report's files go.")]
GroupId = Annotated[str | None, typer.Option("--group", help="Take this group up again, in place of a new one.")]
Key = Annotated[
    str | None, typer.Option(help="Another one makes a new group of what has been asked before; else that is taken up.")
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask whether it may cost that much.")]
Detach = Annotated[bool, typer.Option("--detach", "-d", help="Print the group's id and return at once.")]
Seeds = Annotated[str, typer.Option(help="Training seeds, such as 0,1,2: each cell once with each.")]
BaseModel = Annotated[str | None, typer.Option(help="What to start from.")]
AtOnce = Annotated[int | None, typer.Option(help="At most so many jobs side by side; one on each device.")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", help="A dial of all jobs, such as steps=400; may be given several times.")
]


@app.command("sweep")
def sweep(
    photos: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PHOTOS | FILE", help="Photos of one subject; or a YAML or JSON file of the whole sweep."
        ),
    ] = None,
    class_noun: Annotated[str, typer.Option("--class", "--class-noun", help='What the subject is, as "dog".')] = "",
    token: Annotated[str | None, typer.Option(help="The word that names the subject; a rare one is picked.")] = None,
    vary: Annotated[
        list[str] | None,
        typer.Option(help="A dial with its values, such as learning_rate=1e-6,5e-6; every combination is an arm."),
    ] = None,
    settings: Settings = None,
    base_model: BaseModel = None,
    score_steps: Annotated[
        str | None, typer.Option(help="Score these steps' weights, such as 0,200,400; -1 is the end, 0 the base.")
    ] = None,
    prompt_set: Annotated[str | None, typer.Option(help="Scored prompts; the base model's recipe names a set.")] = None,
    images: Annotated[int | None, typer.Option(help="Scored pictures of each prompt.")] = None,
    seeds: Seeds = "0",
    baseline: Annotated[str | None, typer.Option(help="The arm that others are compared with; the first.")] = None,
    name: Annotated[str | None, typer.Option(help="What to call it.")] = None,
    cells_at_once: AtOnce = None,
    group: GroupId = None,
    idempotency_key: Key = None,
    out_dir: OutDir = None,
    yes: Yes = False,
    detach: Detach = False,
    as_json: AsJson = False,
) -> None:
    """Train one subject, or several, with different settings, and compare them by the paper's metrics.

    The same command again goes on where it was.
    """
    with Client() as client:
        if group is not None:
            return cli_groups.show(client.groups.get(group), out_dir, detach=detach, as_json=as_json)
        asked = _of_file(photos) if _is_file(photos) else _of_photos(photos, class_noun, token)
        key = idempotency_key or asked.pop("idempotency_key", None)
        dials = {**asked.pop("dials", {}), **_dials(settings or [])}
        if base_model is not None:
            dials["base_model"] = base_model
        if vary:
            asked["vary"] = {**asked.get("vary", {}), **dict(_varied(each) for each in vary)}
        scoring = _scoring(asked.pop("scoring", None), score_steps, prompt_set, images)
        given = {"baseline": baseline, "name": name, "cells_at_once": cells_at_once}
        asked |= {option: value for option, value in given.items() if value is not None}
        asked.setdefault("seeds", _numbers(seeds, "--seeds"))
        planned = sweeps.plan("sweep", dials=dials, scoring=scoring, **asked)
        begun = _submitted(client, planned, key, yes=yes)
        cli_groups.show(begun, out_dir, detach=detach, as_json=as_json)


@app.command("benchmark")
def benchmark(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Subjects in the layout of google/dreambooth.", show_default=False)
    ],
    subjects: Annotated[str | None, typer.Option(help="Some of them, such as dog,cat; all.")] = None,
    methods: Annotated[
        str, typer.Option(help="dreambooth,textual_inversion,ip_adapter or some of them.")
    ] = "dreambooth",
    base_model: BaseModel = None,
    token: Annotated[str | None, typer.Option(help="The word that names each subject; a rare one is picked.")] = None,
    images: Annotated[int, typer.Option(help="Pictures of each prompt.")] = 4,
    prompts: Annotated[int | None, typer.Option(help="Only the first so many of the 25 prompts.")] = None,
    prompt_set: Annotated[str | None, typer.Option(help="Other prompts than the folder's own.")] = None,
    settings: Settings = None,
    seeds: Seeds = "0",
    cells_at_once: AtOnce = None,
    group: GroupId = None,
    idempotency_key: Key = None,
    out_dir: OutDir = None,
    yes: Yes = False,
    detach: Detach = False,
    as_json: AsJson = False,
) -> None:
    """Run the paper's evaluation: a job for each subject, its pictures scored, one table beside the paper's.

    The same command again goes on where it was.
    """
    with Client() as client:
        if group is not None:
            return cli_groups.show(client.groups.get(group), out_dir, detach=detach, as_json=as_json)
        planned = benchmarks.plan(
            folder,
            client.base_models.named(base_model),
            None if subjects is None else _words(subjects),
            _words(methods),  # type: ignore[arg-type]  # each job's spec checks its method
            token=token,
            prompt_set=prompt_set,
            num_prompts=prompts,
            num_images=images,
            dials=_dials(settings or []),
            seeds=_numbers(seeds, "--seeds"),
            cells_at_once=cells_at_once,
        )
        begun = _submitted(client, planned, idempotency_key, yes=yes)
        cli_groups.show(begun, out_dir, detach=detach, as_json=as_json)


def _submitted(client: Client, planned: sweeps.Plan, key: str | None, *, yes: bool) -> Group:
    """The group, after its cost was said and, on a terminal, agreed to."""
    out.say(str(cost_of(client, planned)))
    if not yes and sys.stdin.isatty() and not typer.confirm("Go on?", default=True, err=True):
        raise typer.Exit(out.INTERRUPTED)
    begun = client.groups.submit(
        planned, key, lambda done, total, file: out.say(f"sent {file} ({done / 2**20:.1f}/{total / 2**20:.1f} MiB)")
    )
    again = "; it was made before: another --idempotency-key makes a new one" if begun.status.is_final else ""
    out.say(f"{begun.id} is {begun.status.value}: {begun.total} jobs, {begun.done} over{again}")
    return begun


def cost_of(client: Client, planned: sweeps.Plan) -> cost.Cost:
    """What it comes to, with the pace of the last jobs where there were some."""
    try:
        finished = [job.record for job in client.jobs.list("succeeded", PACE_FROM)]
    except APIError:
        finished = []
    return cost.of_group(planned.spec, client.base_models.list(), finished)


def _is_file(photos: list[str] | None) -> bool:
    return photos is not None and len(photos) == 1 and Path(photos[0]).suffix.lower() in FILE_SUFFIXES


def _of_file(photos: list[str] | None) -> dict[str, Any]:
    assert photos is not None
    path = Path(photos[0])
    if not path.is_file():
        raise typer.BadParameter(f"there is no file {path}", param_hint="FILE")
    return sweep_file.read(path)


def _of_photos(photos: list[str] | None, class_noun: str, token: str | None) -> dict[str, Any]:
    if not photos:
        raise typer.BadParameter("Give photos of the subject, or a file of the sweep.", param_hint="PHOTOS")
    if not class_noun:
        raise typer.BadParameter("Give what the subject is, such as dog.", param_hint="--class")
    return {"subjects": Subject(list(photos), token, class_noun)}


def _scoring(
    of_file: ScoringOptions | None, steps: str | None, prompt_set: str | None, images: int | None
) -> ScoringOptions | None:
    """The file's scoring with what the command line says; none where neither says anything."""
    update: dict[str, Any] = {}
    if steps is not None:
        update["steps"] = _numbers(steps, "--score-steps")
    update |= {name: value for name, value in (("prompt_set", prompt_set), ("num_images", images)) if value is not None}
    if not update:
        return of_file
    return (of_file or ScoringOptions()).model_copy(update=update)


def _dials(given: Sequence[str]) -> dict[str, Any]:
    """name=value pairs with their values read as JSON, else as text."""
    return {name: _value(text) for name, text in (_pair(each, "--set") for each in given)}


def _varied(given: str) -> tuple[str, list[Any]]:
    name, text = _pair(given, "--vary")
    return name, [_value(each) for each in text.split(",")]


def _pair(given: str, option: str) -> tuple[str, str]:
    name, equals, text = given.partition("=")
    if not (name and equals and text):
        raise typer.BadParameter(f"{given!r} is not of the form dial=value", param_hint=option)
    return name.strip(), text


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text.strip()


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _numbers(text: str, option: str) -> list[int]:
    try:
        return [int(word) for word in _words(text)]
    except ValueError:
        raise typer.BadParameter(f"{text!r} is no list of whole numbers such as 0,200,400", param_hint=option) from None
