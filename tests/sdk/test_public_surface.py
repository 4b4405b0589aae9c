"""What `import booth` promises: light, exactly the public names, and a small set of dials."""

import inspect
import subprocess
import sys

import booth
from booth import errors

JOB_FIELDS = {
    "created_at",
    "error",
    "finished_at",
    "id",
    "model_id",
    "name",
    "params",
    "progress",
    "record",
    "selected_step",
    "started_at",
    "status",
    "status_detail",
    "warnings",
}
JOB_CALLS = {"cancel", "events", "logs", "refresh", "report", "sample_strip", "samples", "scores", "wait"}
DIALS = [
    "images",
    "token",
    "class_noun",
    "base_model",
    "steps",
    "learning_rate",
    "method",
    "prior_loss_weight",
    "num_class_images",
    "class_images",
    "class_prompt",
    "train_text_encoder",
    "resolution",
    "train_batch_size",
    "seed",
    "name",
    "idempotency_key",
    "more_subjects",
    "options",
    "on_upload",
]


def test_import_is_light() -> None:
    heavy = "{'torch', 'ray', 'boto3', 'numpy', 'diffusers', 'transformers', 'typer', 'PIL', 'yaml'}"
    code = f"import booth, sys; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_command_line_loads_nothing_of_the_service() -> None:
    heavy = "{'torch', 'ray', 'boto3', 'numpy', 'diffusers', 'transformers', 'booth_service', 'yaml'}"
    code = f"import booth.cli, sys; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_all_names_exactly_what_is_there() -> None:
    public = {name for name, value in vars(booth).items() if not name.startswith("_") and not inspect.ismodule(value)}
    assert public == set(booth.__all__)
    assert booth.__all__ == sorted(booth.__all__)


def test_every_exception_is_public_and_drawn_in_the_tree() -> None:
    kinds = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Warning)}
    kinds |= {
        name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, errors.BoothError)
    }
    assert kinds <= set(booth.__all__)
    assert all(name in (errors.__doc__ or "") for name in kinds)


def test_what_a_job_can_do_is_frozen() -> None:
    public = {name: value for name, value in vars(booth.Job).items() if not name.startswith("_")}
    assert {name for name, value in public.items() if isinstance(value, property)} == JOB_FIELDS
    assert {name for name, value in public.items() if callable(value)} == JOB_CALLS


def test_the_dials_are_frozen() -> None:
    names = [name for name in inspect.signature(booth.Client.personalize).parameters if name != "self"]
    assert names == DIALS
    assert len(names) == 20
