"""What all arms of a duel train: a base model, the job's parameters, photos and class images, in one folder."""

from dataclasses import dataclass
from pathlib import Path

from miniature import ROOT, write_miniature
from PIL import Image

from booth.contract.jobs import Params
from booth_service.data.dataset import Picture
from booth_service.training.__main__ import pictures

TINYWORLD = ROOT / "examples" / "tinyworld"


@dataclass(frozen=True)
class Workload:
    """A folder with params.json, photos/ and class_images/; `base` is a diffusers folder."""

    folder: Path
    base: Path

    @property
    def params(self) -> Params:
        return Params.model_validate_json((self.folder / "params.json").read_bytes())

    def photos(self) -> list[Picture]:
        """Decoded when they are used, as those of a job are."""
        return pictures(self.folder / "photos", [self.params.instance_prompt])

    def class_images(self) -> list[Picture]:
        return pictures(self.folder / "class_images", [self.params.class_prompt])


def write(folder: Path, base: Path, resolution: int, steps: int, train_batch_size: int = 1) -> Workload:
    """Write a workload with tinyworld's teapot as the subject and its cat and dog for the class.

    Pictures are stored at the training resolution, so that scaling them is no work for any arm. Both learning rates
    are equal because the reference has but one.
    """
    params = Params(
        base_model="benchmark",
        token="sks",
        class_noun="teapot",
        instance_prompt="a photo of sks teapot",
        class_prompt="a photo of a teapot",
        steps=steps,
        learning_rate=1e-4,
        text_encoder_learning_rate=1e-4,
        prior_loss_weight=1.0,
        num_class_images=10,
        train_text_encoder=True,
        resolution=resolution,
        train_batch_size=train_batch_size,
        seed=11,
        weight_decay=0.01,
        max_grad_norm=1.0,
        lr_warmup_steps=0,
        random_flip=False,
        checkpoint_interval_steps=10**6,
    )
    for name, subjects in (("photos", ["teapot"]), ("class_images", ["cat", "dog"])):
        (folder / name).mkdir(parents=True)
        for subject in subjects:
            for path in sorted((TINYWORLD / "subjects" / subject).glob("*.png")):
                with Image.open(path) as image:
                    scaled = image.convert("RGB").resize((resolution, resolution), Image.Resampling.LANCZOS)
                scaled.save(folder / name / f"{subject}-{path.name}")
    (folder / "params.json").write_text(params.model_dump_json())
    return Workload(folder, base)


def miniature(folder: Path, steps: int) -> Workload:
    """Stable Diffusion 1.5's topology at an eighth of its widths, 128 px, one instance and one class row a step."""
    return write(folder, write_miniature(folder / "base"), 128, steps)


def tinyworld(folder: Path, steps: int) -> Workload:
    """The offline base model with its recipe's four and four rows of 64 px."""
    return write(folder, TINYWORLD / "base_model", 64, steps, train_batch_size=4)
