"""What a job would take on given devices, before anything is spent: python -m booth_service.plan_report --help

`boothctl plan` starts it. It needs no GPU, no torch and no running service. Exit status 0 where a plan fits, 6 where
none does, 2 for arguments that mean nothing.
"""

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from booth.contract.jobs import Method
from booth.contract.models import Recipe
from booth_service.errors import BaseModelError, ServiceError
from booth_service.plan import GB, Devices, Plan, Work, plan
from booth_service.plan_memory import usable_bytes
from booth_service.plan_sizes import ModelSizes, measured_families, sizes_of_family, sizes_of_folder
from booth_service.plan_time import ABOVE_FLOOR, GPUS, HOST_S_PER_TENSOR, Estimate, estimate

FITS, USAGE, REFUSED = 0, 2, 6
RECIPES = Path(__file__).with_name("recipes")
DIALS_OF = "sd15"  # the recipe for a base model that has none of its own
METHODS: tuple[Method, ...] = ("dreambooth", "textual_inversion")
TABLE_FAMILIES = ("sd15", "sdxl")
TABLE_MEMORY_GB = (16, 24, 40, 80)
TABLE_GPUS = (1, 2, 4, 8)
TABLE_BATCH = 4


@dataclass(frozen=True)
class Question:
    """What is asked: a job's dials and the devices, every default filled in."""

    work: Work
    devices: Devices
    serving_gpus: float
    max_ranks: int
    gpu: str
    steps: int
    num_class_images: int
    num_photos: int
    num_inference_steps: int
    gpu_hour_price: float | None


def main(arguments: list[str] | None = None) -> int:
    """Answer the question of the command line on stdout; errors go to stderr."""
    options = parser().parse_args(arguments)
    try:
        if options.table:
            print("\n".join(table_lines()))
            return FITS
        question = asked(options)
        layout = plan(question.devices, question.work, serving_gpus=question.serving_gpus, max_ranks=question.max_ranks)
    except ServiceError as error:
        print(f"error: {error}", file=sys.stderr)
        return REFUSED
    answer = estimated(question, layout)
    print(json.dumps(document(question, layout, answer), indent=2) if options.json else text(question, layout, answer))
    return FITS


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="boothctl plan", description="Ranks, ZeRO stage, memory, time and cost of a job, without running it."
    )
    made.add_argument("--base-model", default="sd15", help="sd15, sd21, sdxl, or a diffusers folder")
    made.add_argument("--gpus", type=_count, default=1, help="GPUs of the cluster (1)")
    made.add_argument("--gpu-memory", type=_amount, help="GB (10^9 bytes) of each; else those of --gpu")
    made.add_argument("--gpu", choices=sorted(GPUS), default="h100", help="whose rates the times are for (h100)")
    made.add_argument("--serving-gpus", type=float, default=0, help="GPUs that inference holds (0)")
    made.add_argument("--max-ranks", type=_count, default=0, help="no more ranks than this")
    made.add_argument("--train-batch-size", type=_count, help="instance rows of a step; else the recipe's")
    made.add_argument("--resolution", type=_count, help="px; else the recipe's")
    made.add_argument("--steps", type=_count, help="optimizer steps; else the recipe's")
    made.add_argument("--class-images", type=int, help="how many; else the recipe's")
    made.add_argument("--photos", type=_count, default=5, help="photos of the subject (5)")
    made.add_argument("--no-prior", action="store_true", help="without class images")
    made.add_argument("--method", choices=METHODS, default=METHODS[0], help="how the subject is learned (dreambooth)")
    made.add_argument("--freeze-text-encoder", action="store_true", help="train the UNet alone")
    made.add_argument("--precision", choices=["auto", "bf16", "fp32"], default="auto", help="of the network (auto)")
    made.add_argument("--optimizer", choices=["adamw", "adamw_8bit"], default="adamw", help="adamw, or 8-bit moments")
    made.add_argument("--ema", action="store_true", help="keep a moving average of the weights")
    made.add_argument("--gpu-hour-price", type=_amount, help="what one GPU costs an hour, in any currency")
    made.add_argument("--json", action="store_true", help="write JSON to stdout")
    made.add_argument("--table", action="store_true", help="plans of sd15 and sdxl over 16-80 GB and 1-8 GPUs")
    return made


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return number


def _amount(text: str) -> float:
    number = float(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return number


def asked(options: argparse.Namespace) -> Question:
    """The question, with what the recipe says where the command line is silent. Raises BaseModelError."""
    sizes = sizes_of(options.base_model)
    recipe, resolution = dials_of(sizes)
    inverts_token = options.method == "textual_inversion"
    if inverts_token:
        recipe = inverted(recipe)
    check_resolution(options.resolution or resolution, sizes.vae_scale_factor)
    class_images = recipe.num_class_images if options.class_images is None else max(0, options.class_images)
    class_images = 0 if options.no_prior else class_images
    work = Work(
        sizes=sizes,
        train_batch_size=options.train_batch_size or recipe.train_batch_size,
        with_prior=class_images > 0,
        resolution=options.resolution or resolution,
        train_text_encoder=recipe.train_text_encoder and not options.freeze_text_encoder,
        precision=options.precision,
        optimizer=options.optimizer,
        ema=options.ema,
        inverts_token=inverts_token,
    )
    memory_gb = options.gpu_memory or GPUS[options.gpu].memory_gb
    return Question(
        work=work,
        devices=Devices(cpus=options.gpus, gpus=options.gpus, gpu_memory_bytes=round(memory_gb * GB)),
        serving_gpus=options.serving_gpus,
        max_ranks=options.max_ranks,
        gpu=options.gpu,
        steps=options.steps or recipe.steps,
        num_class_images=class_images,
        num_photos=options.photos,
        num_inference_steps=recipe.class_num_inference_steps,
        gpu_hour_price=options.gpu_hour_price,
    )


def inverted(recipe: Recipe) -> Recipe:
    """The recipe's dials for Textual Inversion, which has no class images and trains no weight of the text encoder."""
    return recipe.model_copy(
        update={
            "steps": recipe.inversion_steps or recipe.steps,
            "train_batch_size": recipe.inversion_train_batch_size or recipe.train_batch_size,
            "num_class_images": 0,
            "train_text_encoder": False,
        }
    )


def sizes_of(base_model: str) -> ModelSizes:
    """The sizes of a measured family or of a folder. Raises BaseModelError."""
    if base_model in measured_families():
        return sizes_of_family(base_model)
    if not Path(base_model).is_dir():
        raise BaseModelError(f"{base_model} is no folder and none of {', '.join(measured_families())}")
    return sizes_of_folder(Path(base_model))


def check_resolution(resolution: int, multiple: int) -> None:
    """Raises BaseModelError where the latent would not have whole cells."""
    if resolution % multiple:
        near = max(1, round(resolution / multiple)) * multiple
        raise BaseModelError(f"resolution {resolution} is not a multiple of {multiple}; take {near}")


def dials_of(sizes: ModelSizes) -> tuple[Recipe, int]:
    """The recipe that stands for a base model, and a resolution: the recipe's own, or what its UNet is made for."""
    path = RECIPES / f"{sizes.name}.json"
    if path.is_file():
        recipe = Recipe.model_validate_json(path.read_text())
        return recipe, recipe.resolution
    return Recipe.model_validate_json((RECIPES / f"{DIALS_OF}.json").read_text()), sizes.resolution_px


def estimated(question: Question, layout: Plan) -> Estimate:
    """Time of the whole job."""
    return estimate(
        layout,
        question.work,
        GPUS[question.gpu],
        steps=question.steps,
        num_class_images=question.num_class_images,
        num_photos=question.num_photos,
        num_inference_steps=question.num_inference_steps,
    )


def text(question: Question, layout: Plan, answer: Estimate) -> str:
    """The answer for a person."""
    work, gpu = question.work, GPUS[question.gpu]
    prior = f"{question.num_class_images} class images" if work.with_prior else "no prior"
    frozen = work.sizes.vae_parameters + work.frozen_parameters
    trained = f"{_millions(work.trained_parameters)} parameters trained"
    if work.inverts_token:
        trained = f"one token's embedding trained ({work.trained_parameters} numbers)"
    lines = [
        f"base model  {work.sizes.name}: {trained}, {_millions(frozen)} frozen",
        f"job         {question.steps} steps, batch {work.train_batch_size}, {work.resolution} px, {prior}",
        f"devices     {question.devices.gpus:g} GPUs of {_gb(question.devices.gpu_memory_bytes)} GB, "
        f"serving holds {question.serving_gpus:g}",
        f"plan        {layout.why}",
        *([f"            {layout.fewer_ranks_than_rows}"] if layout.fewer_ranks_than_rows else []),
        f"memory      of a rank, in GB: states {_gb(layout.state_bytes)}, activations {_gb(layout.activation_bytes)}, "
        f"frozen parts {_gb(layout.frozen_bytes)}, buckets {_gb(layout.buffer_bytes)}; "
        f"{_gb(layout.needed_bytes)} of {_gb(layout.available_bytes)} that training may fill",
        f"time        {_minutes(answer.total_s)}: start-up {_minutes(answer.start_up_s)}, "
        f"class images {_minutes(answer.class_images_s)}, encoding {_minutes(answer.encoding_s)}, "
        f"training {_minutes(answer.training_s)} ({answer.step_s * 1000:.0f} ms a step)",
        f"            an estimate, not measured: {ABOVE_FLOOR} times the physical floors of {question.gpu.upper()} "
        f"({gpu.source}),",
        f"            a step no less than {HOST_S_PER_TENSOR * 1000:.2f} ms of the host for each trained tensor; "
        "class images that are there already cost nothing",
        f"cost        {answer.gpu_hours:.2f} GPU hours" + _price(question, answer),
    ]
    return "\n".join(lines)


def document(question: Question, layout: Plan, answer: Estimate) -> dict[str, Any]:
    """The answer for a program."""
    price = question.gpu_hour_price
    return {
        "base_model": question.work.sizes.name,
        "scaled_from": question.work.sizes.scaled_from,
        "trained_parameters": question.work.trained_parameters,
        "plan": {**asdict(layout), "needed_bytes": layout.needed_bytes},
        "estimate": {
            **asdict(answer),
            "total_s": answer.total_s,
            "measured": False,
            "times_the_floor": ABOVE_FLOOR,
            "gpu": question.gpu,
            "gpu_source": GPUS[question.gpu].source,
            "price": None if price is None else price * answer.gpu_hours,
        },
    }


def table_lines() -> list[str]:
    """Plans over families, memories and numbers of GPUs, at the families' own resolutions."""
    lines = [f"{TABLE_BATCH} instance and {TABLE_BATCH} class rows a step, all trained, bf16, AdamW, GB = 10^9 bytes"]
    for name in TABLE_FAMILIES:
        sizes = sizes_of_family(name)
        work = Work(sizes, TABLE_BATCH, with_prior=True, resolution=sizes.resolution_px)
        for memory_gb in TABLE_MEMORY_GB:
            for gpus in TABLE_GPUS:
                devices = f"{memory_gb} GB x {gpus}"
                lines.append(f"{name}  {sizes.resolution_px:4d} px  {devices}  {_cell(work, memory_gb, gpus)}")
    return lines


def _cell(work: Work, memory_gb: int, gpus: int) -> str:
    try:
        layout = plan(Devices(gpus, gpus, memory_gb * GB), work)
    except ServiceError:
        return f"does not fit in {_gb(usable_bytes(memory_gb * GB))} GB"
    return layout.why


def _price(question: Question, answer: Estimate) -> str:
    if question.gpu_hour_price is None:
        return "; --gpu-hour-price makes it money"
    return f", {question.gpu_hour_price * answer.gpu_hours:.2f} at {question.gpu_hour_price:g} a GPU hour"


def _gb(count: int) -> str:
    return f"{count / GB:.1f}"


def _millions(count: int) -> str:
    return f"{count / 1e6:,.0f} M"


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.1f} min"


if __name__ == "__main__":
    raise SystemExit(main())
