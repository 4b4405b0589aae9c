"""A model of Stable Diffusion 1.5's real size through publish, download, from_pretrained and one picture.

The weights are random and moved by one stateless step: AdamW's moments of that size do not fit 24 GB. All else is
real: SeaweedFS, the API over HTTP, two gloo ranks that publish, the SDK.
"""

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import uvicorn
from diffusers import StableDiffusionPipeline
from half_width import RECIPE
from miniature import ROOT, write_miniature
from own_s3 import own_s3
from safetensors import safe_open
from whole_weights import WholeWeights

import booth
from booth.contract.attempts import Brief, Published
from booth_service.app import create_app
from booth_service.beats import Line
from booth_service.control import auth, lifecycle, register
from booth_service.control.database import Database
from booth_service.control.plane import utc_now
from booth_service.control.records import Tenant, new_id
from booth_service.diffusion.components import load_components
from booth_service.publish.publisher import Export, publish_manifest
from booth_service.settings import Settings, settings
from booth_service.storage.base_model import materialize
from booth_service.storage.s3 import ObjectStore

RANKS, STEP = 2, 5e-6
COMPONENTS = {"unet": "diffusion_pytorch_model.safetensors", "text_encoder": "model.safetensors"}


def row(folder: Path) -> str:
    """What was seen. Raises where anything does not hold."""
    with own_s3(folder / "s3") as server:
        chosen = _settings(folder, server.empty_bucket(), server.region)
        with _api(chosen):
            return _way(folder, chosen)


def _way(folder: Path, chosen: Settings) -> str:
    base = write_miniature(folder / "base", divisor=1)
    (base / "booth_recipe.json").write_text(RECIPE.model_dump_json())
    assert register.main(["full", str(base), "--default"]) == 0
    database = Database(chosen.database_url)
    with database.write() as session:
        tenant = Tenant(id=new_id("tenant"), name="scale", created_at=utc_now())
        session.add(tenant)
        session.flush()
        _, key = auth.make_key(session, tenant.id, utc_now())
    client = booth.Client(chosen.api_url, key)
    job = client.personalize(ROOT / "examples" / "tinyworld" / "subjects" / "teapot", "sks", "teapot", seed=1)
    with database.write() as session:
        assert lifecycle.claim(session, job.id, utc_now()) is not None
    line = Line(chosen.api_url, chosen.stack_secret, job.id, 1)
    took = _publish(line, chosen)
    model = client.models.get(job.refresh().model_id)
    began = time.monotonic()
    published = model.download(folder / "model")
    downloaded_s = time.monotonic() - began
    count, moved = _compare(base, published)
    pipeline = StableDiffusionPipeline.from_pretrained(published, torch_dtype=torch.float32)
    picture = pipeline("a photo of sks teapot", height=128, width=128, num_inference_steps=2).images[0]
    assert picture.size == (128, 128)
    return (
        f"{count / 1e6:.0f} M parameters, {moved:.2f} of them moved in half precision; {RANKS} ranks published in "
        f"{took:.0f} s, downloaded in {downloaded_s:.0f} s, drew 128 px"
    )


def _publish(line: Line, chosen: Settings) -> float:
    """Seconds until all files were stored; the control plane has verified them afterwards."""
    brief = line.brief()
    store = ObjectStore(chosen.s3_bucket, chosen.s3_endpoint_url, chosen.s3_region)
    materialize(store, brief.base_files, chosen.scratch_dir)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    answers = mp.get_context("spawn").SimpleQueue()
    mp.spawn(_rank, args=(port, brief, store, chosen.scratch_dir, answers), nprocs=RANKS)
    files, took = answers.get()
    key, sha256 = publish_manifest(brief, files, store)
    line.published(Published(fence=brief.fence, manifest_key=key, manifest_sha256=sha256))
    return float(took)


def _rank(rank: int, port: int, brief: Brief, store: ObjectStore, scratch_dir: str, answers) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=RANKS)
    components = load_components(materialize(store, brief.base_files, scratch_dir))
    modules = {"unet": components.unet, "text_encoder": components.text_encoders[0]}
    parts = {name: {k: stepped(v.data) for k, v in part.named_parameters()} for name, part in modules.items()}
    dist.barrier()
    began = time.monotonic()
    files = Export(brief, store, scratch_dir)(WholeWeights(parts), lambda stored, total: None)
    if rank == 0:
        answers.put((files, time.monotonic() - began))
    dist.destroy_process_group()


def stepped(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor one step on, in place: every weight by STEP away from zero, as sign descent would."""
    return tensor.add_(torch.where(tensor < 0, -STEP, STEP))


def _compare(base: Path, published: Path) -> tuple[int, float]:
    """Parameters, and the share of them that moved. Raises unless each is the stepped base's in half precision."""
    count = moved = 0
    for part, name in COMPONENTS.items():
        with safe_open(base / part / name, "pt") as old, safe_open(published / part / name, "pt") as new:
            assert set(old.keys()) == set(new.keys())
            for key in old.keys():  # noqa: SIM118, it is no mapping
                before, after = old.get_tensor(key), new.get_tensor(key)
                assert after.equal(stepped(before.clone()).half()), f"{part}: {key}"
                count, moved = count + after.numel(), moved + int((after != before.half()).sum())
    return count, moved / count


def _settings(folder: Path, store: ObjectStore, region: str) -> Settings:
    """Of this process and of all that it starts."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.environ.update(
        BOOTH_DATABASE_URL=f"sqlite:///{folder}/booth.db",
        BOOTH_S3_BUCKET=store.bucket,
        BOOTH_S3_ENDPOINT_URL=store.client.meta.endpoint_url,
        BOOTH_S3_REGION=region,
        BOOTH_API_URL=f"http://127.0.0.1:{port}",
        BOOTH_STACK_SECRET="a scale test's",
        BOOTH_SCRATCH_DIR=str(folder / "scratch"),
    )
    return settings()


@contextmanager
def _api(chosen: Settings) -> Iterator[None]:
    """The API over HTTP; nothing starts the jobs that it stores."""
    port = int(chosen.api_url.rsplit(":", 1)[1])
    server = uvicorn.Server(uvicorn.Config(create_app(chosen, reconcile=False), port=port, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    try:
        yield
    finally:
        server.should_exit = True
        thread.join()
