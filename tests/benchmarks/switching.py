"""C10 and C15: from one tenant's model to another's first picture, at Stable Diffusion 1.5's real size.

C10: the model lies in host memory; ours copies it into the live pipeline, the plain way is `from_pretrained` of its
folder. C15: the model lies in S3 alone; what that costs beyond the transfer itself, over a model that is resident. The
transfer is measured in the same turns, as plain ranged reads of the same bytes in as many threads, hashing nothing.
Weights are random; half precision in files and host memory, fp32 in the live pipeline, as on every CPU.
"""

import base64
import hashlib
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from fetch import PART_BYTES, digests_of
from figure import at_least, at_most, line
from miniature import ROOT, make_parts
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(ROOT / "tests"))
from own_s3 import own_s3
from stored_base import store_base
from tiny_job import PARAMS

from booth.contract.attempts import Manifest, StoredFile
from booth.contract.digests import part_ranges, sha256_of_parts
from booth.contract.serving import Draw, DrawRequest, ModelRef
from booth.pictures import opened
from booth_service.inference.engine import Engine
from booth_service.settings import Settings
from booth_service.storage.fetch import THREADS
from booth_service.storage.s3 import ObjectStore

TURNS = 5
PROMPT, SIDE_PX, STEPS, GUIDANCE = "a photo of a teapot", 128, 2, 7.5
TRAINED = ("unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors")
SWITCH, COLD = at_least(3.0), at_most(1.2)


@dataclass(frozen=True)
class Scene:
    """Two models of one base: as folders, as the store has them, and an engine that has drawn with both."""

    store: ObjectStore
    engine: Engine
    folders: list[Path]
    models: list[ModelRef]


def report_switch(name: str) -> bool:
    """Measure and print C10, and C10s without the drawing; True where C10 reaches its goal."""
    ours, plain, drawing = [], [], []
    with scene() as here:
        for turn in range(TURNS):
            which = turn % 2
            if turn % 2:
                plain.append(seconds(lambda which=which: plain_picture(here.folders[which])))
            ours.append(seconds(lambda which=which: picture(here.engine, here.models[which])))
            drawing.append(seconds(lambda which=which: picture(here.engine, here.models[which])))
            if not turn % 2:
                plain.append(seconds(lambda which=which: plain_picture(here.folders[which])))
        refuse_other_pictures(here)
    ratios = [a / b for a, b in zip(plain, ours, strict=True)]
    middles = [statistics.median(each) for each in (plain, ours, drawing)]
    said = "from_pretrained + first picture {:.1f} s, switch + first picture {:.1f} s, drawing alone {:.1f} s"
    print(line(name, ratios, SWITCH, said.format(*middles)), flush=True)
    alone = (middles[0] - middles[2]) / max(middles[1] - middles[2], 0.01)
    print(line(f"{name}s", [alone], None, "the same without the drawing, of the medians"), flush=True)
    return SWITCH.is_reached(statistics.median(ratios))


def report_cold(name: str) -> bool:
    """Measure and print C15; True where it reaches its goal."""
    with scene() as here:
        total = sum(file.bytes for file in manifest_of(here.store, here.models[0]).changed)
        ratios, rates = [], []
        for turn in range(TURNS):
            cold_model = under_another_name(here.store, here.models[turn % 2], turn)
            moved = seconds(lambda: read_plainly(here.store, here.models[turn % 2]))
            cold = seconds(lambda model=cold_model: picture(here.engine, model))
            resident = seconds(lambda: picture(here.engine, here.models[(turn + 1) % 2]))
            rates.append(total / moved)
            ratios.append((cold - moved) / resident)
    moved_at = f"{total / 1e9:.1f} GB at {statistics.median(rates) / 1e9:.2f} GB/s"
    title = f"cold model in S3 to first picture, less {moved_at}, over a resident one"
    print(line(name, ratios, COLD, title), flush=True)
    return COLD.is_reached(statistics.median(ratios))


def seconds(act: Callable[[], object]) -> float:
    """Wall seconds of one call; what it made is dropped after the clock has stopped."""
    began = time.perf_counter()
    made = act()
    took = time.perf_counter() - began
    del made
    return took


def picture(engine: Engine, model: ModelRef) -> str:
    """One picture by the engine, PNG in base64."""
    draws = [Draw(prompt=PROMPT, negative_prompt="", seed=1)]
    asked = DrawRequest(
        model=model, draws=draws, guidance_scale=GUIDANCE, num_inference_steps=STEPS, width=SIDE_PX, height=SIDE_PX
    )
    return engine.submit(asked).future.result().pictures[0].png_base64


def plain_picture(folder: Path) -> np.ndarray:
    """The same picture by a pipeline that is loaded for it."""
    pipeline = StableDiffusionPipeline.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    answer = pipeline(
        PROMPT, generator=torch.Generator("cpu").manual_seed(1), guidance_scale=GUIDANCE, num_inference_steps=STEPS,
        width=SIDE_PX, height=SIDE_PX,
    )  # fmt: skip
    return np.asarray(answer.images[0], float)


def refuse_other_pictures(here: Scene) -> None:
    """Raise unless both ways draw the same, for each model, and the models differ."""
    ours = [np.asarray(opened(base64.b64decode(picture(here.engine, model))), float) for model in here.models]
    for mine, folder in zip(ours, here.folders, strict=True):
        assert np.abs(mine - plain_picture(folder)).max() <= 1, folder
    assert np.abs(ours[0] - ours[1]).max() > 1


def read_plainly(store: ObjectStore, model: ModelRef) -> list[bytearray]:
    """The model's bytes in memory, by plain ranged reads, checked by nobody."""
    files = manifest_of(store, model).changed
    memory = [bytearray(file.bytes) for file in files]

    def read(file: StoredFile, view: memoryview, start: int, length: int) -> None:
        wanted = f"bytes={start}-{start + length - 1}"
        body = store.client.get_object(Bucket=store.bucket, Key=file.key, Range=wanted)["Body"]
        at = start
        for piece in body.iter_chunks(2**20):
            view[at : at + len(piece)] = piece
            at += len(piece)

    with ThreadPoolExecutor(THREADS) as pool:
        jobs = [
            pool.submit(read, file, memoryview(each), *piece)
            for file, each in zip(files, memory, strict=True)
            for piece in part_ranges(file.bytes, PART_BYTES)
        ]
        for job in jobs:
            job.result()
    return memory


def manifest_of(store: ObjectStore, model: ModelRef) -> Manifest:
    return Manifest.model_validate_json(store.get(model.manifest_key or ""))


def under_another_name(store: ObjectStore, model: ModelRef, number: int) -> ModelRef:
    """The same model to the store, another one to every cache."""
    body = store.get(model.manifest_key or "") + b" " * (number + 1)
    key = f"{model.manifest_key}-{number}"
    store.put(key, body)
    return model.model_copy(
        update={"model_id": key, "manifest_key": key, "manifest_sha256": hashlib.sha256(body).hexdigest()}
    )


@contextmanager
def scene(divisor: int = 1) -> Iterator[Scene]:
    """Everything is there, both models are resident, and the pipeline has drawn once with each."""
    torch.set_num_threads(os.cpu_count() or 1)
    with tempfile.TemporaryDirectory(prefix="booth-switch-") as place:
        folder = Path(place)
        (folder / "s3").mkdir()
        with own_s3(folder / "s3") as server:
            store = server.empty_bucket()
            base, folders = write_models(folder, divisor)
            files = store_base(store, base)
            models = [stored(store, each, ModelRef(model_id="", base_model="b", base_files=files)) for each in folders]
            limits = Settings(model_cache_bytes=9 * 2**30, serving_batch_size=1, scratch_dir=str(folder / "scratch"))
            engine = Engine.from_settings(limits, store, "cpu")
            try:
                for model in models:
                    picture(engine, model)
                yield Scene(store, engine, folders, models)
            finally:
                engine.close()


def write_models(folder: Path, divisor: int) -> tuple[Path, list[Path]]:
    """A random base in half precision, and two models of it with all trained weights moved."""
    torch.manual_seed(0)
    parts = make_parts(divisor)
    pipeline = StableDiffusionPipeline(
        **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )
    pipeline.to(torch.float16).save_pretrained(folder / "base")
    del parts, pipeline
    folders = []
    for number in (1, 2):
        model = folder / f"model-{number}"
        for path in sorted((folder / "base").rglob("*")):
            if path.is_file():
                target = model / path.relative_to(folder / "base")
                target.parent.mkdir(parents=True, exist_ok=True)
                if str(path.relative_to(folder / "base")) in TRAINED:
                    save_file({name: t + 1e-3 * number for name, t in load_file(path).items()}, target)
                else:
                    target.hardlink_to(path)
        folders.append(model)
    return folder / "base", folders


def stored(store: ObjectStore, folder: Path, base: ModelRef) -> ModelRef:
    """The model as publishing leaves it: its files by their parts, and a manifest that names them."""
    changed = []
    for path in TRAINED:
        key = f"{folder.name}/{path}"
        store.upload(folder / path, key)
        digests = list(digests_of(folder / path))
        changed.append(
            StoredFile(
                path=path, key=key, bytes=(folder / path).stat().st_size, sha256=sha256_of_parts(digests),
                part_bytes=PART_BYTES, part_sha256=digests,
            )
        )  # fmt: skip
    manifest = Manifest(job_id="j", attempt=1, fence=1, base_model="b", changed=changed, unchanged=[], params=PARAMS)
    body = manifest.model_dump_json().encode()
    store.put(f"{folder.name}/manifest.json", body)
    return base.model_copy(
        update={
            "model_id": folder.name,
            "manifest_key": f"{folder.name}/manifest.json",
            "manifest_sha256": hashlib.sha256(body).hexdigest(),
        }
    )
