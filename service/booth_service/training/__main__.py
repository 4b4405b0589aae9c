"""The training loop outside Ray and S3: one process, or several under torchrun, to profile it and to debug it.

python -m booth_service.training --params params.json --base-model FOLDER --photos FOLDER --out FOLDER
torchrun --nproc-per-node 2 -m booth_service.training ...

`params.json` is the `params` of a job, as `boothctl get JOB --json` shows them. With the job's own photos and class
images it repeats the job.
"""

import argparse
import json
import sys
import time
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from PIL import Image
from torch import Tensor

from booth.contract.jobs import Params, Progress
from booth_service.data.dataset import Picture
from booth_service.diffusion.components import Components, load_components, refuse_not_finite
from booth_service.diffusion.placeholder import put_in_place
from booth_service.errors import ServiceError
from booth_service.plan import Plan
from booth_service.settings import torchrun_place
from booth_service.training import checkpoint
from booth_service.training.engine import Ema, Engine, gather
from booth_service.training.samples import draw_samples
from booth_service.training.stored_pictures import instance_prompts
from booth_service.training.worker import Task, Trained, train

PICTURES = {".png", ".jpg", ".jpeg", ".webp"}


def main(argv: list[str] | None = None) -> int:
    """Train and write the whole pipeline to --out; losses go to stdout as JSON lines."""
    arguments = _parser().parse_args(argv)
    try:
        params = Params.model_validate_json(arguments.params.read_bytes())
        rank, ranks, local_rank = torchrun_place()
        use_gpu = torch.cuda.is_available()
        if use_gpu:
            torch.cuda.set_device(local_rank)
        dist.init_process_group("nccl" if use_gpu else "gloo", rank=rank, world_size=ranks)
        run(arguments, params, layout(arguments, params, ranks, use_gpu))
        dist.destroy_process_group()
    except (ServiceError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def layout(arguments: argparse.Namespace, params: Params, ranks: int, use_gpu: bool) -> Plan:
    """The layout asked for. Raises ValueError where ranks or micro-batches do not divide the rows of a step."""
    rows = params.train_batch_size * (2 if params.num_class_images else 1)
    micro = arguments.micro_batch_size or max(1, rows // ranks)
    if rows % (ranks * micro):
        raise ValueError(
            f"a step has {rows} rows, which {ranks} ranks in micro-batches of {micro} do not divide; "
            "choose --micro-batch-size and the number of ranks so that they do"
        )
    stage = (0 if ranks == 1 else 1) if arguments.zero_stage is None else arguments.zero_stage
    why = f"{ranks} ranks, micro-batches of {micro}, ZeRO stage {stage}, as asked"
    return Plan(ranks, use_gpu, 1.0, micro, rows // ranks // micro, stage, why)


def run(arguments: argparse.Namespace, params: Params, plan: Plan) -> None:
    """Train by the plan; rank 0 saves the pipeline."""
    components = load_components(arguments.base_model)
    refuse_not_finite(components)  # nobody has looked at this folder before
    subject = params.subjects[0]
    photos = pictures(arguments.photos, instance_prompts(params))
    class_images = pictures(arguments.class_images, [subject.class_prompt]) if params.num_class_images else []
    desk = FolderDesk(params, arguments)
    trained = train(Task(params, plan, components, photos, class_images[: params.num_class_images]), desk)
    weights = whole_weights(trained)
    if dist.get_rank() == 0:
        base = load_components(arguments.base_model)  # a fresh one: sharded modules no longer hold whole tensors
        for component, tensors in weights.items():
            put_in_place(getattr(base.pipeline, component), tensors)
        base.pipeline.save_pretrained(arguments.out / "model")
        print(json.dumps({"model": str(arguments.out / "model")}), flush=True)
    dist.barrier()


def whole_weights(trained: Trained) -> dict[str, dict[str, Tensor]]:
    """Component folder -> name -> trained tensor, or its average; whole on rank 0, but all must call.

    A row that was trained is by itself, under the name that `placeholder.row_of` reads.
    """
    flats = trained.ema.flats if trained.ema else trained.engine.flats("fp32")
    weights: dict[str, dict[str, Tensor]] = {}
    for name, tensor in gather(trained.engine, flats, torch.float32):
        component, own_name = name.split(".", 1)
        if dist.get_rank() == 0:
            weights.setdefault(component, {})[own_name] = tensor
    return weights


def pictures(folder: Path | None, prompts: list[str]) -> list[Picture]:
    """The pictures of a folder by name, all with these prompts but where a .txt beside one says another."""
    if folder is None:
        raise ValueError("params ask for class images: give their folder with --class-images")
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in PICTURES)
    if not files:
        raise ValueError(f"{folder} holds no pictures ({', '.join(sorted(PICTURES))})")
    made = []
    for path in files:
        caption = path.with_suffix(".txt")
        with Image.open(path) as image:
            size = (image.height, image.width)
        prompt, *others = [caption.read_text().strip()] if caption.exists() else prompts
        made.append(Picture(partial(_load, path), size, prompt, more_prompts=tuple(others)))
    return made


class FolderDesk:
    """Implements `Desk` with a folder and stdout."""

    def __init__(self, params: Params, arguments: argparse.Namespace) -> None:
        self.params, self.arguments, self.out = params, arguments, arguments.out
        self.began_s = time.monotonic()

    def say(self, progress: Progress, note: str | None = None) -> None:
        if dist.get_rank() == 0:
            line = {"s": round(time.monotonic() - self.began_s, 3), **progress.model_dump(exclude_none=True)}
            print(json.dumps(line | ({"note": note} if note else {})), flush=True)

    def wants_stop(self) -> bool:
        return False

    def has_enough(self) -> bool:
        return False

    def resume(self, engine: Engine, ema: Ema | None) -> int:
        if self.arguments.resume is None:
            return 0
        return checkpoint.read(engine, ema, str(self.arguments.resume), checkpoint.identity(self.params), _get)

    def checkpoint(self, engine: Engine, ema: Ema | None, step: int) -> None:
        def put(name: str, body: bytes) -> str:
            path = self.out / "checkpoints" / f"{step:08d}" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(body)
            return str(path)

        checkpoint.write(engine, ema, step, 0, checkpoint.identity(self.params), put)

    def draw_samples(self, components: Components, device: torch.device, step: int) -> None:
        prompts = self.params.sample_prompts
        images = draw_samples(
            components,
            prompts,
            [self.params.seed + k for k in range(len(prompts))],
            guidance_scale=self.arguments.guidance_scale,
            num_inference_steps=self.arguments.num_inference_steps,
            resolution=self.params.resolution,
            device=device,
        )
        folder = self.out / "samples" / f"{step:08d}"
        folder.mkdir(parents=True, exist_ok=True)
        for number, image in enumerate(images if dist.get_rank() == 0 else []):
            image.save(folder / f"{number:02d}.png")


def _get(path: str, _sha256: str | None) -> bytes:
    return Path(path).read_bytes()


def _load(path: Path) -> Image.Image:
    return Image.open(path).convert("RGB")


def _parser() -> argparse.ArgumentParser:
    summary = (__doc__ or "").split("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m booth_service.training", description=summary)
    parser.add_argument("--params", type=Path, required=True, help="JSON file: the params of a job")
    parser.add_argument("--base-model", type=Path, required=True, help="diffusers folder")
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--class-images", type=Path, help="folder of class images; needed where params ask for them")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--zero-stage", type=int, choices=range(4), help="default: none on one rank, 1 on more")
    parser.add_argument("--micro-batch-size", type=int, default=0, help="rows of one forward; default: all of a rank's")
    parser.add_argument("--guidance-scale", type=float, default=7.5, help="of sample pictures")
    parser.add_argument("--num-inference-steps", type=int, default=25, help="of sample pictures")
    parser.add_argument("--resume", type=Path, help="a checkpoint's manifest.json")
    return parser


if __name__ == "__main__":
    sys.exit(main())
