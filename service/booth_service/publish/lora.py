"""A fine-tuned model as a LoRA: python -m booth_service.publish.lora BASE_FOLDER TUNED_FOLDER OUT --rank 32

Of every matrix that training changed the nearest matrix of the asked rank is kept (Eckart and Young 1936), as two
factors under the names that diffusers and peft load. Biases, norms and embeddings cannot be kept; they count as lost.
Needs torch, safetensors and numpy alone: no Ray, no S3, no diffusers. Answers on stdout, an ExtractionAnswer in JSON.
"""

# m, n = rows and columns of a layer's matrix, n = input channels x kernel for a convolution;  r = rank

import argparse
import math
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from booth.contract.lora import Energy, ExtractionAnswer
from booth.contract.problems import FieldProblem
from booth_service.errors import BadWeights

REFUSED, FAILED = 6, 1
EXACT_SIDE = 384  # up to here the exact decomposition takes less time than the randomised one, measured on two cores
OVERSAMPLING, POWER_ITERATIONS = 16, 4  # of Halko et al. 2011: keeps 0.9999 of what the exact one keeps at rank 32
FILE_DTYPE = torch.float16
# What diffusers' load_lora_weights puts a LoRA on in a text encoder (loaders/lora_base.py); in a UNet it is any layer.
_TEXT_LAYER = re.compile(r"\.(q_proj|k_proj|v_proj|out_proj|fc1|fc2)\.weight$")


@dataclass(frozen=True)
class Change:
    """A tensor of a component that training may have changed: its name in the file, its values after and before."""

    name: str
    tuned: Tensor
    base: Tensor

    @property
    def delta(self) -> Tensor:
        """fp32. The base is rounded as the tuned one was, so that what training never moved is zero."""
        return self.tuned.float() - self.base.to(self.tuned.dtype).float()


def factors(delta: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """`down` (r, n) and `up` (m, r) in fp32 whose product is the nearest matrix of rank r to `delta` (m, n).

    r is at most min(m, n). Both have the same norms: the singular values' roots are in each.
    """
    if delta.shape[0] > delta.shape[1]:
        up, down = factors(delta.T, rank)
        return down.T, up.T
    side = delta.shape[0]
    if side <= EXACT_SIDE or 4 * rank > side:
        exact = delta.double()  # the Gram matrix squares what rounding does to the small singular values
        left = torch.linalg.eigh(exact @ exact.T).eigenvectors[:, -rank:].float()
    else:
        left = torch.svd_lowrank(delta, q=min(rank + OVERSAMPLING, side), niter=POWER_ITERATIONS)[0][:, :rank]
    down = left.T @ delta
    root = down.norm(dim=1, keepdim=True).sqrt().clamp_min(torch.finfo(torch.float32).tiny)
    return down / root, left * root.T


def is_loadable(component: str, name: str, shape: torch.Size) -> bool:
    """True for a linear or convolutional layer that `load_lora_weights` puts a LoRA on."""
    if component.startswith("text_encoder"):
        return _TEXT_LAYER.search(name) is not None
    return component == "unet" and len(shape) in (2, 4) and name.endswith(".weight")


def lora_name(component: str, name: str, factor: str) -> str:
    """The name of a layer's factor, "lora_A" (down) or "lora_B" (up); text encoders' have `text_model.` in front."""
    layer = name.removesuffix(".weight")
    if component.startswith("text_encoder"):
        layer = "text_model." + layer.removeprefix("text_model.")
    return f"{component}.{layer}.{factor}.weight"


def extract(base_folder: Path, tuned_folder: Path, out: Path, rank: int) -> dict[str, Energy]:
    """The LoRA lies in `out`; returns the energy of each component that differs.

    Every component folder of `tuned_folder` that holds weights must be in `base_folder` too. Raises BadWeights where
    the folders do not fit, or where nothing differs that a LoRA can hold.
    """
    torch.manual_seed(0)  # of the randomised decomposition: equal folders make equal files
    tensors: dict[str, Tensor] = {}
    energy = {}
    for component in components(tuned_folder):
        kept, total = 0.0, 0.0
        for change in _said(component, changes(base_folder / component, tuned_folder / component)):
            delta = change.delta
            total += _squared_norm(delta)
            if is_loadable(component, change.name, delta.shape) and delta.any():
                down, up, squared = _layer(delta, rank)
                kept += squared
                tensors[lora_name(component, change.name, "lora_A")] = down
                tensors[lora_name(component, change.name, "lora_B")] = up
        if total:
            energy[component] = Energy(kept=kept, total=total)
    if not tensors:
        raise BadWeights("no layer that a LoRA can be put on differs from the base model's")
    save_file(tensors, out, metadata={"format": "pt"})
    return energy


def largest_rank(tuned_folder: Path) -> int:
    """The rank from which on nothing is gained: that of the largest layer; smaller layers take what they have."""
    sides = [
        min(shape[0], math.prod(shape[1:]))
        for component in components(tuned_folder)
        for path in sorted((tuned_folder / component).glob("*.safetensors"))
        for name, shape in _shapes(path)
        if is_loadable(component, name, shape)
    ]
    return max(sides, default=0)


def components(folder: Path) -> list[str]:
    """The component folders that hold weights, sorted."""
    return sorted({path.parent.name for path in folder.glob("*/*.safetensors")})


def changes(base: Path, tuned: Path) -> Iterator[Change]:
    """Every tensor of a component's files with the base model's, whichever file it lies in, one at a time."""
    homes = {name: path for path in sorted(base.glob("*.safetensors")) for name, _ in _shapes(path)}
    for path in sorted(tuned.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in sorted(file.keys()):
                if name not in homes:
                    raise BadWeights(f"{tuned.name} has a tensor {name} that the base model's has not")
                with safe_open(homes[name], "pt") as base_file:
                    change = Change(name, file.get_tensor(name), base_file.get_tensor(name))
                if change.tuned.shape != change.base.shape:
                    shapes = f"{tuple(change.tuned.shape)}, the base {tuple(change.base.shape)}"
                    raise BadWeights(f"{tuned.name}: {name} has shape {shapes}")
                if change.tuned.is_floating_point():
                    yield change


def main(arguments: list[str] | None = None) -> int:
    """Extract as the command line says; the answer goes to stdout, progress to stderr."""
    parser = argparse.ArgumentParser(prog="python -m booth_service.publish.lora", description=__doc__)
    parser.add_argument("base_folder", type=Path)
    parser.add_argument("tuned_folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--rank", type=int, default=32)
    asked = parser.parse_args(arguments)
    answer = _answer(asked.base_folder, asked.tuned_folder, asked.out, asked.rank)
    print(answer.model_dump_json())
    return REFUSED if answer.problem else FAILED if answer.error else 0


def _answer(base_folder: Path, tuned_folder: Path, out: Path, rank: int) -> ExtractionAnswer:
    try:
        largest = largest_rank(tuned_folder)
        if not 1 <= rank <= largest:
            message = f"The largest layer of this model has rank {largest}."
            remedy = f"Choose 1 to {largest}; 8 to 128 are usual."
            problem = FieldProblem(field="rank", value=str(rank), message=message, remedy=remedy)
            return ExtractionAnswer(problem=problem)
        return ExtractionAnswer(energy=extract(base_folder, tuned_folder, out, rank))
    except (BadWeights, SafetensorError, OSError) as error:
        return ExtractionAnswer(error=f"The LoRA could not be extracted: {error}.")


def _layer(delta: Tensor, rank: int) -> tuple[Tensor, Tensor, float]:
    """A layer's factors as peft shapes them, and the energy that they keep."""
    matrix = delta.flatten(1)
    down, up = factors(matrix, min(rank, *matrix.shape))
    kept = _squared_norm(down.norm(dim=1) * up.norm(dim=0))  # one of the two is orthogonal
    if delta.dim() == 4:
        down, up = down.reshape(-1, *delta.shape[1:]), up[:, :, None, None]
    return down.to(FILE_DTYPE).contiguous(), up.to(FILE_DTYPE).contiguous(), kept


def _squared_norm(tensor: Tensor) -> float:
    return float(tensor.square().sum(dtype=torch.float64))


def _shapes(path: Path) -> Iterator[tuple[str, torch.Size]]:
    with safe_open(path, "pt") as file:
        for name in sorted(file.keys()):
            yield name, torch.Size(file.get_slice(name).get_shape())


def _said(component: str, changes: Iterator[Change]) -> Iterator[Change]:
    """The same, with a line on stderr every hundred tensors."""
    for number, change in enumerate(changes, start=1):
        if number % 100 == 0:
            print(f"{component}: {number} tensors", file=sys.stderr, flush=True)
        yield change


if __name__ == "__main__":
    sys.exit(main())
