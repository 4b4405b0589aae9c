"""A suite of encoders: the networks that scores are made with, as `encoders.json` of a suite's folder names them."""

from datetime import datetime
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from booth.contract import limits
from booth.contract.base import Record, Request

SUITE_FILE = "encoders.json"
LPIPS_FILE = "lpips.safetensors"
HEADS_FILE = "heads.safetensors"
CLIP_TOKENIZER_FILES = (("tokenizer.json",), ("vocab.json", "merges.txt"))  # either will do

# Every tensor of lpips.safetensors: AlexNet's convolutions as torchvision names them, LPIPS's channel weights.
LPIPS_TENSORS: dict[str, tuple[int, ...]] = {
    "features.0.weight": (64, 3, 11, 11),
    "features.0.bias": (64,),
    "features.3.weight": (192, 64, 5, 5),
    "features.3.bias": (192,),
    "features.6.weight": (384, 192, 3, 3),
    "features.6.bias": (384,),
    "features.8.weight": (256, 384, 3, 3),
    "features.8.bias": (256,),
    "features.10.weight": (256, 256, 3, 3),
    "features.10.bias": (256,),
    "lin.0.weight": (64,),
    "lin.1.weight": (192,),
    "lin.2.weight": (384,),
    "lin.3.weight": (256,),
    "lin.4.weight": (256,),
}

Folder = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}$")]
Channels = tuple[float, float, float]
Positive = Annotated[float, Field(gt=0)]
SidePx = Annotated[int, Field(ge=8, le=limits.MAX_RESOLUTION_PX)]


class Preprocessing(Request):
    """How any picture, real or generated, becomes an encoder's input.

    Its shorter side is scaled to `resize_px` (Pillow's filter, which smooths when it makes smaller), the middle
    `crop_px` square is cut out, and (value / 255 - mean) / std is taken of each of red, green and blue.
    """

    resize_px: SidePx
    crop_px: SidePx
    resample: Literal["bilinear", "bicubic", "lanczos"] = "bicubic"
    mean: Channels
    std: tuple[Positive, Positive, Positive]

    @model_validator(mode="after")
    def _crop_lies_within(self) -> Self:
        if self.crop_px > self.resize_px:
            raise ValueError(f"crop_px ({self.crop_px}) is above resize_px ({self.resize_px}); make it that or less")
        return self


class SubjectEncoder(Preprocessing):
    """A transformers `AutoModel` folder. The vector of a picture is the first token of the last hidden state, or the
    pooled output."""

    folder: Folder
    vector: Literal["cls", "pooled"]


class ClipEncoder(Preprocessing):
    """A transformers `CLIPModel` folder with its tokenizer."""

    folder: Folder


class PerceptualEncoder(Preprocessing):
    """LPIPS: a folder with lpips.safetensors ("lpips-alexnet"), or an `AutoModel` folder ("backbone")."""

    folder: Folder
    kind: Literal["lpips-alexnet", "backbone"]

    @model_validator(mode="after")
    def _scales_as_lpips_does(self) -> Self:
        half = (0.5, 0.5, 0.5)
        if self.kind == "lpips-alexnet" and (self.mean, self.std) != (half, half):
            raise ValueError("lpips-alexnet takes pictures in [-1, 1]: its mean and std must be [0.5, 0.5, 0.5]")
        return self


class AttributeHead(Request):
    """What a head tells apart. `phrases` gives the label that a phrase of a prompt asks for."""

    labels: Annotated[list[str], Field(min_length=2)]
    phrases: dict[Annotated[str, Field(min_length=1)], str] = {}

    @model_validator(mode="after")
    def _phrases_lead_to_labels(self) -> Self:
        if len(set(self.labels)) < len(self.labels):
            raise ValueError(f"a label stands twice in {self.labels}")
        for phrase, label in self.phrases.items():
            if label not in self.labels:
                raise ValueError(f"the phrase {phrase!r} leads to {label!r}, which is none of the labels {self.labels}")
        return self


class AttributeEncoder(Preprocessing):
    """An `AutoModel` folder with heads.safetensors: `<head>.weight` (labels, width) and `<head>.bias` (labels,)."""

    folder: Folder
    heads: Annotated[dict[str, AttributeHead], Field(min_length=1)]


class SuiteSpec(Request):
    """What encoders.json says. Folders lie beside it."""

    name: Annotated[str, Field(min_length=1, max_length=limits.MAX_TEXT_CHARS)]
    subject: SubjectEncoder
    clip: ClipEncoder
    perceptual: PerceptualEncoder
    attributes: AttributeEncoder | None = None

    @property
    def folders(self) -> list[str]:
        """Every folder that it names, each once."""
        named = [self.subject.folder, self.clip.folder, self.perceptual.folder]
        return list(dict.fromkeys([*named, self.attributes.folder] if self.attributes else named))


class EncoderSuiteRecord(Record):
    """A registered suite: what scores are measured with. `source` names encoders of the hub, with their commits."""

    name: str
    bytes: int
    source: str = ""
    heads: list[str] = []
    created_at: datetime


class EncoderSuitePage(Record):
    """All suites, by name."""

    suites: list[EncoderSuiteRecord]
