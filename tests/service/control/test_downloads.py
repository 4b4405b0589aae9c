"""The client's downloads from a real control plane and a real object store: what a job published, in every format."""

import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from control_plane import HOST, RECIPE, Driver, PlaneAndStore, User, started
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file
from stored_base import store_base
from tiny_base import write_tiny_base

from booth import Client, Model
from booth_service.control import base_models
from booth_service.control.plane import Plane

UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """A base model, and what a job makes of it."""
    base = write_tiny_base(tmp_path / "base")
    tuned = shutil.copytree(base, tmp_path / "tuned")
    torch.manual_seed(1)
    moved = {
        name: (tensor + 0.02 * torch.randn(tensor.shape)).half() for name, tensor in load_file(base / UNET).items()
    }
    save_file(moved, tuned / UNET, metadata={"format": "pt"})
    return base, tuned


@pytest.fixture
def model(plane: Plane, user: User, folders: tuple[Path, Path]) -> Iterator[Model]:
    driver = published(plane, user, *folders)
    key = user.http.headers["Authorization"].removeprefix("Bearer ")
    client = Client(f"http://{HOST}", key, http=PlaneAndStore(user.http._transport))
    yield client.models.get(driver.job["model_id"])
    client.close()


def published(plane: Plane, user: User, base: Path, tuned: Path) -> Driver:
    stored = store_base(plane.store, base)
    with plane.database.write() as session:
        base_models.register(session, "tiny", RECIPE, stored, default=True, now=plane.now())
    driver = started(plane, user)
    body = (tuned / UNET).read_bytes()

    def of_the_folder(manifest):
        [unet] = [file for file in manifest.changed if file.path == UNET]
        unet = unet.model_copy(update={"bytes": len(body), "sha256": hashlib.sha256(body).hexdigest()})
        unchanged = [file for file in stored if file.path != UNET]
        return manifest.model_copy(update={"changed": [unet], "unchanged": unchanged})

    assert driver.publish(body, of_the_folder).json() == {}
    return driver


def test_a_published_model_comes_in_every_format(model: Model, folders: tuple[Path, Path], tmp_path: Path) -> None:
    base, tuned = folders
    folder = model.download(tmp_path / "folder")
    assert (folder / UNET).read_bytes() == (tuned / UNET).read_bytes()
    file = model.download(tmp_path / "original.safetensors", "original")
    read = StableDiffusionPipeline.from_single_file(file, config=str(folder), local_files_only=True)
    expected = load_file(tuned / UNET)
    assert all(torch.equal(tensor.half(), expected[name]) for name, tensor in read.unet.state_dict().items())
    lora = model.download(tmp_path / "lora.safetensors", "lora", 64)
    pipeline = StableDiffusionPipeline.from_pretrained(base, local_files_only=True)
    pipeline.load_lora_weights(lora)
    pipeline.fuse_lora(components=["unet"])
    pipeline.unload_lora_weights()
    name = "up_blocks.0.resnets.1.conv1.weight"
    assert torch.allclose(pipeline.unet.state_dict()[name], expected[name].float(), rtol=0, atol=1e-3)
    assert 0.9 < lora.kept < 1
