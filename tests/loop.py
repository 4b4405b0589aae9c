"""Runs the real training loop on gloo ranks, without Ray and without S3: pictures in memory, checkpoints in a folder.

One spawn runs many cases one after the other: starting processes costs more than tiny cases do.
"""

import json
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import load_file, save_file
from tiny_job import PARAMS
from torch import Tensor
from world import SUBJECTS, render

from booth.contract.jobs import Params, Progress
from booth_service.data.dataset import Picture
from booth_service.diffusion.components import Components, load_components
from booth_service.errors import ServiceError
from booth_service.plan import Plan
from booth_service.publish import layout as layouts
from booth_service.publish.export import pieces_of
from booth_service.publish.gang import Gang
from booth_service.publish.upload import upload_files
from booth_service.storage.s3 import StoredPart, Upload
from booth_service.training import checkpoint
from booth_service.training.cache import CacheKey
from booth_service.training.engine import Ema, Engine, gather
from booth_service.training.final_weights import FinalWeights
from booth_service.training.samples import draw_samples
from booth_service.training.stored_pictures import instance_prompts
from booth_service.training.worker import Task, train

FORMATS = (torch.float16, torch.bfloat16)
PART_BYTES = 2**13  # so that tiny files have parts for all ranks


def layout(ranks: int = 1, zero_stage: int = 0, *, rows: int = 4, micro: int | None = None, **changes: Any) -> Plan:
    """A plan for `rows` rows a step on `ranks` ranks, in micro-batches of `micro` (default: all of a rank's rows)."""
    micro = micro or rows // ranks
    return Plan(ranks, False, 0.9, micro, rows // ranks // micro, zero_stage, f"stage {zero_stage}", **changes)


@dataclass(frozen=True)
class Case:
    """One run. `base` is a diffusers folder; `resume` names another case's folder, whose last checkpoint it takes.

    `wide`: every second photo is twice as wide as high. `poisoned_class_image`: its moments are not finite.
    `publishes`: what the run ended with is published too, in both formats and in many small parts, into its folder.
    """

    name: str
    base: Path
    plan: Plan
    params: Params = PARAMS
    photos: int = 4
    class_images: int = 3
    resume: str | None = None
    stop_at: int | None = None
    enough_at: int | None = None
    subjects: int = 1
    masks: bool = False
    wide: bool = False
    poisoned_class_image: int | None = None
    publishes: bool = False


@dataclass
class Outcome:
    """What a run left, or the error that all its ranks ended with."""

    progress: dict[int, dict[str, Any]] = field(default_factory=dict)
    weights: dict[str, Tensor] = field(default_factory=dict)
    error: str | None = None
    drawn: list[int] = field(default_factory=list)
    published: dict[torch.dtype, dict[str, Tensor]] = field(default_factory=dict)

    def losses(self) -> dict[int, tuple[float, float, float | None]]:
        return {step: (p["loss"], p["instance_loss"], p["prior_loss"]) for step, p in self.progress.items()}


def assert_published_as_cast(outcome: Outcome) -> None:
    """What was published is what the run ended with, cast; equal bit for bit."""
    assert outcome.error is None
    assert len(outcome.published) == len(FORMATS)
    for dtype, published in outcome.published.items():
        assert published.keys() == outcome.weights.keys()
        for name, tensor in outcome.weights.items():
            assert torch.equal(published[name].view(torch.int16), tensor.to(dtype).view(torch.int16)), (name, dtype)


def run(cases: list[Case], folder: Path) -> dict[str, Outcome]:
    """Run the cases in order, each on the ranks of its plan; cases with equal ranks share their processes."""
    groups: list[list[Case]] = []
    for case in cases:
        if groups and groups[-1][0].plan.ranks == case.plan.ranks:
            groups[-1].append(case)
        else:
            groups.append([case])
    for group in groups:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        ranks = group[0].plan.ranks
        mp.spawn(_rank, args=(group, port, str(folder)), nprocs=ranks)
    return {case.name: _outcome(folder / case.name) for case in cases}


def pictures(
    params: Params, count: int, subjects: int, is_class: bool, masks: bool, wide: bool = False
) -> list[Picture]:
    """`count` pictures of each subject, from tinyworld's renderer."""
    made = []
    for subject in range(subjects):
        prompt, *others = [params.subjects[subject].class_prompt] if is_class else instance_prompts(params, subject)
        scenes = list(SUBJECTS[(subject + is_class * 2) % len(SUBJECTS)].scenes())
        for k in range(count):
            image = render(scenes[k % len(scenes)])
            mask = image.convert("L").point(lambda value: 255 if value > 127 else 0)
            if wide and k % 2:
                image = image.resize((2 * image.width, image.height))
                mask = mask.resize(image.size)
            made.append(
                Picture(
                    image.copy,
                    (image.height, image.width),
                    prompt,
                    subject,
                    mask.copy if masks and not is_class and k % 2 else None,
                    tuple(others),
                )
            )
    return made


class FolderDesk:
    """Keeps what a run says in a folder."""

    def __init__(self, case: Case, folder: Path) -> None:
        self.case, self.folder, self.progress, self.drawn = case, folder, {}, []
        self.root = folder.parent

    def say(self, progress: Progress, note: str | None = None) -> None:
        if progress.loss is not None:
            self.progress[progress.step] = progress.model_dump()

    def wants_stop(self) -> bool:
        return self.case.stop_at is not None and len(self.progress) >= self.case.stop_at

    def has_enough(self) -> bool:
        return self.case.enough_at is not None and len(self.progress) >= self.case.enough_at

    def resume(self, engine: Engine, ema: Ema | None) -> int:
        if self.case.resume is None:
            return 0
        key = (self.root / self.case.resume / "last").read_text()
        step = checkpoint.read(engine, ema, key, self._run(), lambda key, _: Path(key).read_bytes())
        self._write(engine, ema, step, "restored")
        return step

    def checkpoint(self, engine: Engine, ema: Ema | None, step: int) -> None:
        (self.folder / "last").write_text(self._write(engine, ema, step, f"checkpoint-{step}"))

    def _write(self, engine: Engine, ema: Ema | None, step: int, place: str) -> str:
        def put(name: str, body: bytes) -> str:
            path = self.folder / place / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(body)
            return str(path)

        return checkpoint.write(engine, ema, step, 1, self._run(), put)

    def draw_samples(self, components: Components, device: torch.device, step: int) -> None:
        images = draw_samples(
            components,
            self.case.params.sample_prompts,
            [self.case.params.seed] * len(self.case.params.sample_prompts),
            guidance_scale=3.0,
            num_inference_steps=2,
            resolution=self.case.params.resolution,
            device=device,
        )
        for number, image in enumerate(images):
            image.save(self.folder / f"sample-{step}-{number}.png")
        self.drawn.append(step)

    def _run(self) -> str:
        return f"{self.case.base} {self.case.params.learning_rate}"


def _rank(rank: int, cases: list[Case], port: int, folder: str) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), LOCAL_RANK=str(rank))
    os.environ["WORLD_SIZE"] = str(cases[0].plan.ranks)
    dist.init_process_group("gloo", rank=rank, world_size=cases[0].plan.ranks)
    for case in cases:
        place = Path(folder, case.name)
        place.mkdir(parents=True, exist_ok=True)
        desk = FolderDesk(case, place)
        error = None
        try:
            run_case(case, desk, place if rank == 0 else None)
        except (ServiceError, RuntimeError, ValueError) as failure:
            error = f"{type(failure).__name__}: {failure}"
        if rank == 0:
            (place / "said.json").write_text(json.dumps([desk.progress, error, desk.drawn]))
        elif error:
            (place / f"error-{rank}").write_text(error)
        dist.barrier()
    dist.destroy_process_group()


def run_case(case: Case, desk: FolderDesk, place: Path | None) -> None:
    """Train; the whole weights go to `place` on rank 0."""
    params = case.params
    task = Task(
        params,
        case.plan,
        load_components(case.base),
        pictures(params, case.photos, case.subjects, False, case.masks, case.wide),
        pictures(params, case.class_images, case.subjects, True, False),
        _poison(case),
    )
    trained = train(task, desk)
    flats = trained.ema.flats if trained.ema else trained.engine.flats("fp32")
    weights = dict(gather(trained.engine, flats, torch.float32))
    if place:
        save_file({name: tensor.contiguous() for name, tensor in weights.items()}, place / "weights.safetensors")
    if case.publishes:
        layouts.part_bytes_of = lambda total_bytes: PART_BYTES  # in this process alone
        for dtype in FORMATS:
            final = FinalWeights(trained)
            pieces = pieces_of(final, case.base, dtype)
            keys = [str(desk.folder / str(dtype) / file.layout.path) for file in pieces]
            upload_files(pieces, keys, FolderStore(), Gang(final.device), lambda *_: None)  # type: ignore[arg-type]


class FolderStore:
    """Where parts go that S3 would refuse for their size. Keys are paths."""

    def begin_upload(self, key: str) -> Upload:
        Path(key).parent.mkdir(parents=True, exist_ok=True)
        return Upload(key, "")

    def put_part(self, upload: Upload, number: int, body: memoryview, sha256: str) -> StoredPart:
        Path(f"{upload.key}.{number}").write_bytes(body)
        return StoredPart(number, "", sha256)

    def complete(self, upload: Upload, parts: Sequence[StoredPart], total_bytes: int) -> None:
        assert len(parts) > dist.get_world_size()
        Path(upload.key).write_bytes(b"".join(Path(f"{upload.key}.{part.number}").read_bytes() for part in parts))


def _poison(case: Case) -> dict[CacheKey, Tensor] | None:
    if case.poisoned_class_image is None:
        return None
    side = case.params.resolution
    return {(True, case.poisoned_class_image, False, (side, side)): torch.full((2, 3, side // 2, side // 2), torch.nan)}


def _outcome(place: Path) -> Outcome:
    progress, error, drawn = json.loads((place / "said.json").read_text())
    weights = load_file(place / "weights.safetensors") if error is None else {}
    outcome = Outcome({int(step): said for step, said in progress.items()}, weights, error, drawn)
    for dtype in FORMATS:
        for file in (place / str(dtype)).rglob("*.safetensors"):
            tensors = {f"{file.parent.name}.{name}": tensor for name, tensor in load_file(file).items()}
            outcome.published.setdefault(dtype, {}).update(tensors)
    return outcome
