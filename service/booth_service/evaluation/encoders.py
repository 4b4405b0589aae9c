"""A suite of encoders, loaded: pictures and texts to unit vectors, LPIPS distances and attribute labels.

N = pictures, D = width of a vector. Everything runs in fp32, in batches of at most BATCH, and gives the same numbers
for the same list on the same machine.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import AutoModel, CLIPModel

from booth.contract.encoders import Preprocessing, SuiteSpec
from booth_service.errors import EncoderError
from booth_service.evaluation import suite_folder
from booth_service.evaluation.lpips import AlexNetLpips, distances
from booth_service.evaluation.metrics import unit
from booth_service.evaluation.preprocessing import tensors

BATCH = 32
_VECTORS = {"cls": "first token of the last hidden state", "pooled": "pooled output"}


class Suite:
    """The encoders of one folder on one device. `load_suite` makes one."""

    def __init__(self, spec: SuiteSpec, folder: Path, device: torch.device) -> None:
        self.spec, self._device = spec, device
        pooled = spec.subject.vector == "pooled"
        self._subject = suite_folder.model(AutoModel, folder / spec.subject.folder, device, needs_pooler=pooled)
        self._clip = suite_folder.model(CLIPModel, folder / spec.clip.folder, device)
        self._tokenizer = suite_folder.tokenizer(folder / spec.clip.folder)
        self._perceptual = suite_folder.perceptual(spec, folder, device)
        self._heads = suite_folder.heads(spec, folder)
        if spec.attributes is not None:
            self._attributes = suite_folder.model(AutoModel, folder / spec.attributes.folder, device)

    def subject_vectors(self, images: Sequence[Image.Image]) -> Tensor:
        """(N, D) unit vectors of who is in the pictures; on the CPU."""
        is_cls = self.spec.subject.vector == "cls"

        def encode(pixels: Tensor) -> Tensor:
            output = self._subject(pixel_values=pixels)
            vectors: Tensor = output.last_hidden_state[:, 0] if is_cls else output.pooler_output.flatten(1)
            return vectors

        return unit(self._encoded(images, self.spec.subject, encode), "subject vectors")

    def clip_image_vectors(self, images: Sequence[Image.Image]) -> Tensor:
        """(N, D) unit vectors of the pictures in CLIP's space; on the CPU."""

        def encode(pixels: Tensor) -> Tensor:
            vectors: Tensor = self._clip.get_image_features(pixel_values=pixels).pooler_output
            return vectors

        return unit(self._encoded(images, self.spec.clip, encode), "CLIP vectors of pictures")

    def clip_text_vectors(self, texts: Sequence[str]) -> Tensor:
        """(N, D) unit vectors of the texts in CLIP's space; on the CPU. What is beyond its length is cut off."""
        vectors = []
        length = min(self._tokenizer.model_max_length, self._clip.config.text_config.max_position_embeddings)
        with self._exact():
            for start in range(0, len(texts), BATCH):
                tokens = self._tokenizer(
                    list(texts[start : start + BATCH]),
                    padding="max_length",  # a text's vector must not depend on what stands beside it
                    truncation=True,
                    max_length=length,
                    return_tensors="pt",
                ).to(self._device)
                output = self._clip.get_text_features(tokens["input_ids"], attention_mask=tokens["attention_mask"])
                vectors.append(output.pooler_output.cpu())
        return unit(torch.cat(vectors) if vectors else torch.empty(0, 0), "CLIP vectors of texts")

    def perceptual_distances(self, a: Sequence[Image.Image], b: Sequence[Image.Image]) -> Tensor:
        """LPIPS of a[i] and b[i], (N,); on the CPU. A picture that stands in several pairs of a batch is read once."""
        if len(a) != len(b):
            raise EncoderError(f"{len(a)} pictures beside {len(b)}; give as many on both sides")
        found = [torch.empty(0)]
        with self._exact():
            for start in range(0, len(a), BATCH):
                left, right = a[start : start + BATCH], b[start : start + BATCH]
                once = {id(image): image for image in [*left, *right]}
                place = {key: number for number, key in enumerate(once)}
                taps = self._perceptual.taps(tensors(list(once.values()), self.spec.perceptual).to(self._device))
                rows_a, rows_b = ([place[id(image)] for image in side] for side in (left, right))
                in_a, in_b = [tap[rows_a] for tap in taps], [tap[rows_b] for tap in taps]
                found.append(distances(in_a, in_b, self._perceptual.weights(taps)).cpu())
        return torch.cat(found)

    def attributes(self, images: Sequence[Image.Image]) -> dict[str, list[str]]:
        """For each head the label that it sees in each picture; {} where the suite has no heads."""
        if self.spec.attributes is None:
            return {}

        def encode(pixels: Tensor) -> Tensor:
            pooled: Tensor = self._attributes(pixel_values=pixels).pooler_output.flatten(1)
            return pooled

        pooled = self._encoded(images, self.spec.attributes, encode)
        seen = {}
        for name, head in self.spec.attributes.heads.items():
            weight, bias = self._heads[name]
            best = (pooled @ weight.T + bias).argmax(dim=1)
            seen[name] = [head.labels[int(label)] for label in best]
        return seen

    def phrases(self, head: str) -> dict[str, str]:
        """What a prompt has to say for each label of a head: phrase -> label; {} for a head that is not there."""
        heads = self.spec.attributes.heads if self.spec.attributes else {}
        return dict(heads[head].phrases) if head in heads else {}

    def describe(self) -> dict[str, str]:
        """The encoders and their preprocessing in words, for a report."""
        spec = self.spec
        told = {
            "suite": spec.name,
            "subject encoder": f"{_what(self._subject)}, {_VECTORS[spec.subject.vector]}; {_how(spec.subject)}",
            "clip": f"{_what(self._clip)}; {_how(spec.clip)}",
            "perceptual": f"{self._perceptual_name()}; {_how(spec.perceptual)}",
        }
        if spec.attributes is not None:
            heads = ", ".join(f"{name} ({len(head.labels)} labels)" for name, head in spec.attributes.heads.items())
            told["attributes"] = f"{_what(self._attributes)}, heads {heads}; {_how(spec.attributes)}"
        return told

    def _perceptual_name(self) -> str:
        if isinstance(self._perceptual, AlexNetLpips):
            return "LPIPS 0.1, AlexNet, learned weights"
        return f"LPIPS's formula over the hidden states of {_what(self._perceptual.model)}, all channels alike"

    def _encoded(self, images: Sequence[Image.Image], how: Preprocessing, encode: Callable[[Tensor], Tensor]) -> Tensor:
        """`encode` of all pictures, batch by batch, as one matrix on the CPU."""
        with self._exact():
            parts = [
                encode(tensors(images[start : start + BATCH], how).to(self._device)).float().cpu()
                for start in range(0, len(images), BATCH)
            ]
        return torch.cat(parts) if parts else torch.empty(0, 0)

    @contextmanager
    def _exact(self) -> Iterator[None]:
        """No gradients; on a GPU convolutions in true fp32, by one algorithm."""
        cudnn = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
        with torch.inference_mode(), cudnn:
            yield


def load_suite(folder: Path, device: str | torch.device = "cpu") -> Suite:
    """The suite that encoders.json in this folder describes, its networks on the device.

    Raises EncoderError, naming the file and what to do, where anything is missing, damaged or not as said.
    """
    return Suite(suite_folder.read_spec(folder), folder, torch.device(device))


def _what(model: Any) -> str:
    """The class and size of a network, and what its config calls itself."""
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    return f"{type(model).__name__} ({millions:.1f} M parameters)"


def _how(how: Preprocessing) -> str:
    return (
        f"shorter side scaled to {how.resize_px} px ({how.resample}, antialiased), centre {how.crop_px} px cut out, "
        f"mean {list(how.mean)}, std {list(how.std)}"
    )
