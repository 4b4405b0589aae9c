"""boothctl plan: what it prints, and what it refuses."""

import json
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from booth_service import plan_report
from booth_service.plan import GB, Devices, Work, plan
from booth_service.plan_sizes import parameters_of, sizes_of_family, sizes_of_folder
from booth_service.plan_time import GPUS, estimate, step_floor_s


def test_a_plan_for_a_person(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--base-model", "sd15", "--gpus", "4", "--gpu-memory", "24", "--gpu-hour-price", "2"]
    assert plan_report.main(arguments) == 0
    shown = capsys.readouterr().out
    assert "2 ranks on GPUs for 2 rows a step, 1 each, ZeRO stage 1" in shown
    assert "an estimate, not measured" in shown
    assert "GPU hours, " in shown
    assert "at 2 a GPU hour" in shown


def test_a_plan_for_a_program(capsys: pytest.CaptureFixture[str]) -> None:
    assert plan_report.main(["--base-model", "sdxl", "--gpus", "8", "--train-batch-size", "4", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    layout, estimate = answer["plan"], answer["estimate"]
    assert answer["trained_parameters"] == 2_567_463_684 + 123_060_480 + 694_659_840
    assert layout["ranks"] * layout["micro_batch_size"] * layout["gradient_accumulation_steps"] == 8
    assert layout["needed_bytes"] <= layout["available_bytes"]
    assert estimate["measured"] is False
    parts = ("start_up_s", "class_images_s", "encoding_s", "training_s")
    assert estimate["total_s"] == pytest.approx(sum(estimate[part] for part in parts))


def test_the_step_of_one_instance_and_one_class_image_on_an_h100() -> None:
    """The floors by hand: 4.9 TFLOP / 798 + 0.983 G x (28 + 4 + 6) B / 3.0 TB/s = 6.1 + 12.4 = 18.6 ms."""
    work = Work(sizes_of_family("sd15"), 1, with_prior=True, resolution=512)
    layout = plan(Devices(1, 1, 80 * GB), work)
    assert step_floor_s(layout, work, GPUS["h100"]) == pytest.approx(18.6e-3, rel=0.01)
    answer = estimate(layout, work, GPUS["h100"], steps=800, num_class_images=200, num_photos=5, num_inference_steps=50)
    assert answer.step_s == pytest.approx(0.18 * 882 / 686), "the host launches kernels of 686 + 196 tensors"
    # 200 images x (50 steps x 2 x 0.803 + 2.515) TFLOP = 16.6 PFLOP
    assert answer.class_images_s == pytest.approx(2.5 * 16.6e15 / 798e12, rel=0.01)
    slow = estimate(layout, work, GPUS["l4"], steps=800, num_class_images=0, num_photos=5, num_inference_steps=50)
    # 4.9 TFLOP / 96.8 + 0.983 G x 38 B / 0.27 TB/s = 50.6 + 138.3 = 189 ms
    assert slow.step_s == pytest.approx(2.5 * 0.189, rel=0.01)


def test_fewer_class_images_and_frozen_encoders_cost_less(capsys: pytest.CaptureFixture[str]) -> None:
    def hours(*more: str) -> float:
        assert plan_report.main(["--base-model", "sd21", "--json", *more]) == 0
        return float(json.loads(capsys.readouterr().out)["estimate"]["gpu_hours"])

    whole = hours()
    assert hours("--no-prior") < hours("--class-images", "50") < whole
    assert hours("--freeze-text-encoder") < whole
    assert hours("--steps", "400") < whole < hours("--gpu", "l4")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--gpus", "1", "--gpu-memory", "3"], ["billion trained parameters", "bytes", "use GPUs with more memory"]),
        (["--gpus", "1", "--serving-gpus", "1"], ["serving holds 1"]),
        (["--base-model", "nowhere/at/all"], ["nowhere/at/all", "is no folder", "sd15"]),
        (["--resolution", "510"], ["510", "multiple of 8", "512"]),
    ],
)
def test_what_cannot_be_is_refused(capsys: pytest.CaptureFixture[str], arguments: list[str], words: list[str]) -> None:
    assert plan_report.main(arguments) == plan_report.REFUSED
    said = capsys.readouterr()
    assert said.out == ""
    assert all(word in said.err for word in words), said.err


@pytest.mark.parametrize("arguments", [["--gpus", "0"], ["--gpu-memory", "-1"], ["--gpu", "abacus"], ["--steps", "x"]])
def test_arguments_that_mean_nothing_are_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as left:
        plan_report.main(arguments)
    assert left.value.code == 2


def test_a_textual_inversion_fits_where_dreambooth_does_not(capsys: pytest.CaptureFixture[str]) -> None:
    devices = ["--base-model", "sdxl", "--gpu-memory", "24"]
    assert plan_report.main([*devices, "--method", "textual_inversion"]) == 0
    said = capsys.readouterr().out
    assert "sdxl: one token's embedding trained (2048 numbers), 3,469 M frozen" in said
    assert "3000 steps, batch 4, 1024 px, no prior" in said
    assert "optimizer in" not in said
    assert "states 0.0" in said
    assert plan_report.main([*devices, "--method", "dreambooth"]) == 0
    assert "optimizer in" in capsys.readouterr().out
    small = ["--base-model", "sdxl", "--gpu-memory", "8", "--method", "textual_inversion"]
    assert plan_report.main(small) == plan_report.REFUSED
    assert "the embedding of one token, trained through all other parts, at 1024 px" in capsys.readouterr().err


def test_the_table_has_a_line_for_every_row(capsys: pytest.CaptureFixture[str]) -> None:
    assert plan_report.main(["--table"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + 2 * 4 * 4


def test_it_needs_neither_torch_nor_numpy() -> None:
    program = (
        "import sys; from booth_service import plan_report; plan_report.main(['--gpus', '2']); "
        "assert not {'torch', 'numpy', 'ray', 'deepspeed'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)


def write_part(folder: Path, part: str, config: dict[str, object], tensors: dict[str, list[int]]) -> None:
    """A part of a diffusers folder whose weights are a header and nothing else."""
    (folder / part).mkdir(parents=True)
    (folder / part / "config.json").write_text(json.dumps(config))
    entries = {name: {"dtype": "F16", "shape": shape, "data_offsets": [0, 0]} for name, shape in tensors.items()}
    header = json.dumps({"__metadata__": {"format": "pt"}, **entries}).encode()
    (folder / part / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)


def test_a_folder_is_sized_from_its_headers(tmp_path: Path) -> None:
    unet = {"block_out_channels": [640, 1280], "sample_size": 32}
    write_part(tmp_path, "unet", unet, {"a.weight": [1000, 1000], "a.bias": [1000], "scalar": []})
    write_part(tmp_path, "vae", {"block_out_channels": [8, 8, 8, 8]}, {"w": [3, 3]})
    write_part(tmp_path, "text_encoder", {}, {"w": [10, 10]})
    write_part(tmp_path, "text_encoder_2", {"hidden_size": 20}, {"w": [20, 10]})
    sizes = sizes_of_folder(tmp_path)
    assert (sizes.unet_parameters, sizes.text_encoder_parameters, sizes.vae_parameters) == (1_001_001, (100, 200), 9)
    assert (sizes.vae_scale_factor, sizes.resolution_px, sizes.latent_cells(256)) == (8, 256, 1024)
    assert sizes.text_widths == (512, 20)
    assert sizes.scaled_from == "sd15"
    assert sizes.row_scale == pytest.approx(1920 / 3520)
    assert plan_report.main(["--base-model", str(tmp_path)]) == 0


def test_a_broken_header_is_named(tmp_path: Path) -> None:
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "x.safetensors").write_bytes(b"short")
    with pytest.raises(Exception, match="no readable safetensors header"):
        parameters_of(tmp_path, "unet")
    (tmp_path / "unet" / "x.safetensors").unlink()
    with pytest.raises(Exception, match="holds no safetensors weights"):
        parameters_of(tmp_path, "unet")
