"""A sweep on all the real parts, its actor and then its driver killed -9: models, scores and a report
all the same."""

import time
from collections.abc import Callable
from pathlib import Path

import psutil
from one_machine import OneMachine

import booth

TEAPOT = Path(__file__).parents[2] / "examples" / "tinyworld" / "subjects" / "teapot"
STEPS, INTERVAL, WITHIN_S = 120, 20, 400
SCORING = booth.ScoringOptions(
    prompts=["a photo of {0} {1} in the city"], num_images=1, num_class_images=1, num_inference_steps=2
)


def row(folder: Path) -> str:
    """Kill the actor in its first cell, then the group's driver; look at what both cells and the report came to."""
    machine = OneMachine(folder / "data")
    machine.start()
    try:
        with booth.Client(machine.base_url, machine.api_key) as client:
            group = swept(client)
            first = group.cells()[0].job
            until(lambda: stored_steps(first) >= INTERVAL, f"{first} never came so far")
            kill(machine, "ray::CellProcess")
            until(lambda: first.refresh().record.attempt == 2 and trains(first), f"no second attempt: {first}")
            kill(machine, "booth_service.cells", group.id)
            group.wait(timeout_s=WITHIN_S)
            assert swept(client).id == group.id, "the same request takes the same group up"
            return seen(client, group, folder)
    finally:
        machine.stop()


def swept(client: booth.Client) -> booth.Group:
    """The sweep: of one subject, two learning rates, one cell at a time."""
    return client.sweep(
        booth.Subject(TEAPOT, "sks", "teapot"),
        vary={"learning_rate": [1e-4, 2e-4]},
        dials={
            "steps": STEPS,
            "num_class_images": 8,
            "train_batch_size": 1,
            "options": booth.TrainingOptions(checkpoint_interval_steps=INTERVAL),
        },
        scoring=SCORING,
        cells_at_once=1,
    )


def seen(client: booth.Client, group: booth.Group, folder: Path) -> str:
    """Both cells with models and scores, their set of class images made once, each attempt resumed; and the report."""
    assert (group.states, group.record.attempt) == ({"succeeded": 2}, 2)
    cells = group.cells()
    assert all(cell.scores()[-1].step == STEPS and cell.scores()[-1].dino is not None for cell in cells)
    assert {cell.model_id for cell in cells} <= {model.id for model in client.models.list()}
    told = logs_of(cells[0].job)
    assert any("A training process died." in message for message in told), "by the group's driver"
    assert any("The Ray cluster that ran the job is gone." in message for message in told), "with the group's driver"
    resumed = [int(message.rpartition("from step ")[2].split()[0]) for message in told if "from step" in message]
    assert resumed
    assert all(step >= INTERVAL and step % INTERVAL == 0 for step in resumed), resumed
    made = [message for cell in cells for message in logs_of(cell.job) if message.startswith("class images: 0 reused")]
    assert len(made) == 1, "the class's set is made once"
    report = group.report()
    assert [table.title for table in report.data.tables] == [
        "Means over 1 subject",
        "Differences to learning_rate=0.0001",
        "By subject",
    ]
    assert {path.name for path in report.save(folder / "report").iterdir()} >= {"report.html", "report.json"}
    return f"2 cells of {STEPS} steps, gone on from steps {', '.join(map(str, resumed))}, one set of class images"


def logs_of(job: booth.Job) -> list[str]:
    return [event.message for event in job.events()]


def stored_steps(job: booth.Job) -> int:
    """Steps of which a checkpoint is surely stored."""
    progress = job.refresh().progress
    return progress.step - INTERVAL if progress.phase == "training" else 0


def trains(job: booth.Job) -> bool:
    return job.progress.phase == "training" and job.progress.step > 0


def until(is_so: Callable[[], bool], otherwise: str) -> None:
    deadline = time.monotonic() + WITHIN_S
    while not is_so():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.1)


def kill(machine: OneMachine, *words: str) -> None:
    """Every process of the stack whose command line holds all these words is killed."""
    found = [process for process in machine.processes() if all(word in line_of(process) for word in words)]
    for process in found:
        process.kill()
    assert found, f"the stack has no process {words}"


def line_of(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""
