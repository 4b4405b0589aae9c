"""The loop in a plain process and under torchrun: no Ray, no S3, the same losses."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file
from tiny_base import write_tiny_base
from tiny_job import PARAMS
from world import SUBJECTS, render

pytestmark = pytest.mark.ranks

PARAMS_3 = PARAMS.model_copy(
    update={"steps": 3, "checkpoint_interval_steps": 2, "sample_interval_steps": 2, "sample_prompts": ["a teapot"]}
)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("standalone")
    write_tiny_base(folder / "base")
    (folder / "params.json").write_text(PARAMS_3.model_dump_json())
    for name, subject in (("photos", 0), ("class", 1)):
        (folder / name).mkdir()
        for number, scene in enumerate(SUBJECTS[subject].scenes()):
            render(scene).save(folder / name / f"{number}.png")
    (folder / "photos" / "0.txt").write_text("a photo of sks teapot in the snow")
    return folder


def run(inputs: Path, out: Path, *arguments: str, ranks: int = 1) -> subprocess.CompletedProcess[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", str(ranks), "--master-port", port]
    launcher = torchrun if ranks > 1 else []
    given = ["--params", "params.json", "--base-model", "base", "--photos", "photos", "--class-images", "class"]
    command = [sys.executable, *launcher, "-m", "booth_service.training", *given, "--out", str(out), *arguments]
    environment = os.environ | {"MASTER_PORT": port}
    return subprocess.run(command, cwd=inputs, env=environment, capture_output=True, text=True)


def losses(done: subprocess.CompletedProcess[str]) -> dict[int, float]:
    assert done.returncode == 0, done.stderr[-3000:]
    said = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {line["step"]: line["loss"] for line in said if "loss" in line}


def test_a_plain_process_trains_saves_and_goes_on_under_torchrun(inputs: Path, tmp_path: Path) -> None:
    alone = losses(run(inputs, tmp_path / "alone"))
    assert sorted(alone) == [1, 2, 3]
    weights = load_file(tmp_path / "alone" / "model" / "unet" / "diffusion_pytorch_model.safetensors")
    base = load_file(inputs / "base" / "unet" / "diffusion_pytorch_model.safetensors")
    assert sum(not weights[name].equal(base[name]) for name in base) > 0.9 * len(base)
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path / "alone" / "model", safety_checker=None)
    assert pipeline("a teapot", num_inference_steps=1, output_type="np").images.shape == (1, 32, 32, 3)
    samples = sorted(path.name for path in (tmp_path / "alone" / "samples").iterdir())
    assert samples == ["00000000", "00000002", "00000003"]

    manifest = tmp_path / "alone" / "checkpoints" / "00000002" / "manifest.json"
    resumed = losses(run(inputs, tmp_path / "two", "--resume", str(manifest), "--zero-stage", "2", ranks=2))
    assert resumed == {3: pytest.approx(alone[3], rel=1e-5)}


def test_bad_input_is_named(inputs: Path, tmp_path: Path) -> None:
    refused = run(inputs, tmp_path, "--micro-batch-size", "3")
    assert refused.returncode == 1
    assert "error: a step has 4 rows, which 1 ranks in micro-batches of 3 do not divide" in refused.stderr
