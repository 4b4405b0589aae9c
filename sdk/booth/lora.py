"""A fine-tuned model as a LoRA: what is fetched for it, and what its extraction said.

The linear algebra needs torch and lives in the service's package; it runs as a process of its own.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pydantic

from booth.contract.lora import Energy, ExtractionAnswer
from booth.contract.models import ModelFile
from booth.errors import FormatError, ValidationError

EXTRA = 'pip install "booth[lora]"'
_MODULES = ("torch", "safetensors", "numpy")
_EXTRACTION = "booth_service.publish.lora"


@dataclass(frozen=True)
class Lora(os.PathLike[str]):
    """A LoRA file, and by component how much of the training's change it keeps. Takes the place of its path."""

    path: Path
    rank: int
    energy: Mapping[str, Energy]

    def __fspath__(self) -> str:
        return str(self.path)

    __str__ = __fspath__  # diffusers makes a string of what it is given

    @property
    def kept(self) -> float:
        """The part of the change's energy that is in the file, 0 to 1: the change's squared norm, all parameters."""
        return sum(each.kept for each in self.energy.values()) / sum(each.total for each in self.energy.values())

    @property
    def kept_by_component(self) -> dict[str, float]:
        """The same for each component that was trained, such as "unet"."""
        return {component: each.kept / each.total for component, each in self.energy.items()}


def require_extra() -> None:
    """Raises FormatError, naming the remedy, where the packages of the extraction are not installed."""
    missing = [name for name in _MODULES if importlib.util.find_spec(name) is None]
    if missing:
        raise FormatError(f"A LoRA needs packages that are not installed: {', '.join(missing)}. Install them: {EXTRA}")


def changed(tuned: Sequence[ModelFile], base: Sequence[ModelFile]) -> tuple[list[ModelFile], list[ModelFile]]:
    """The weights of the components that training changed: the model's files, and the base model's."""
    before = {file.path: file.sha256 for file in base}
    components = {_component(file) for file in tuned if file.sha256 != before.get(file.path, file.sha256)}
    if not components:
        raise FormatError("The model has the weights of its base model, so there is nothing to make a LoRA of.")

    def weights(files: Sequence[ModelFile]) -> list[ModelFile]:
        return [file for file in files if file.path.endswith(".safetensors") and _component(file) in components]

    return weights(tuned), weights(base)


def extract(base: Path, tuned: Path, target: Path, rank: int) -> dict[str, Energy]:
    """The LoRA of `rank` lies in `target`; both folders hold component folders with weights. Its energy by component.

    Writes its progress to stderr. Raises ValidationError for a rank that no layer has, FormatError where it fails.
    """
    arguments = [str(base), str(tuned), str(target), "--rank", str(rank)]
    done = subprocess.run([sys.executable, "-m", _EXTRACTION, *arguments], stdout=subprocess.PIPE, check=False)
    try:
        answer = ExtractionAnswer.model_validate_json(done.stdout)
    except pydantic.ValidationError as error:
        raise FormatError(f"The LoRA's extraction ended with status {done.returncode}; its output says why.") from error
    if answer.problem is not None:
        raise ValidationError([answer.problem])
    if answer.error or not target.exists():
        raise FormatError(answer.error or "The LoRA's extraction wrote no file.")
    return answer.energy


def _component(file: ModelFile) -> str:
    return file.path.rpartition("/")[0]
