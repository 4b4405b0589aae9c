"""A model's files on disk: as a diffusers folder, one file of the original layout, a LoRA, or an embedding."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import quote

from booth import lora, original_layout
from booth.contract.attempts import LEARNED_EMBEDDINGS
from booth.contract.digests import Check
from booth.contract.ip_adapter import EMBEDS_PATH
from booth.contract.models import ModelFile, ModelFiles
from booth.contract.problems import FieldProblem
from booth.differences import put_together
from booth.errors import FormatError, TransferError, ValidationError
from booth.transport import FIRST_PAUSE_S, MAX_RETRIES, Transport

FORMATS = ("diffusers", "original", "lora", "embedding")
DEFAULT_RANK = 32
PARALLEL_DOWNLOADS = 4
SUFFIX = ".safetensors"


def check_format(format: str, rank: int | None) -> None:
    """Raises ValidationError unless the format is known and the rank means something for it."""
    if format not in FORMATS:
        raise _refused("format", format, "There is no such format.", f"Choose one of {', '.join(FORMATS)}.")
    if rank is not None and format != "lora":
        raise _refused("rank", str(rank), f"The format {format!r} has no rank.", "Leave it out, or choose 'lora'.")
    if rank is not None and rank < 1:
        raise _refused("rank", str(rank), "A LoRA's rank is at least 1.", f"{DEFAULT_RANK} is a good start.")


def download_folder(transport: Transport, model_id: str, path: Path) -> Path:
    """The model's diffusers folder lies at `path`, which is new or was empty."""
    _check_free_folder(path)
    source = Source(transport, model_id)
    with _partial(path) as partial:
        source.fetch(source.files(), partial)
        if path.exists():
            path.rmdir()
        partial.rename(path)
    return path


def download_original(transport: Transport, model_id: str, path: Path) -> Path:
    """The model lies in the new file `path`, in the original layout. Takes twice the file's size on disk meanwhile."""
    _check_free_file(path)
    source = Source(transport, model_id)
    files = source.files()
    _refuse_photo(files, "the original layout has no place for the layers that read it")
    with _partial(path) as partial:
        source.fetch([file for file in files if original_layout.is_needed(file.path)], partial / "folder")
        original_layout.write_original(partial / "folder", partial / path.name)
        (partial / path.name).rename(path)
    return path


def download_lora(transport: Transport, model_id: str, path: Path, rank: int) -> lora.Lora:
    """The nearest LoRA of `rank` to the model's change lies in the new file `path`."""
    _check_free_file(path)
    model, base = Source(transport, model_id), Source(transport, model_id, "base-files")
    files = model.files()
    _refuse_photo(files, "no weight differs from the base model's, so a LoRA would be empty")
    if model.embedding() is not None:
        raise FormatError("A textual inversion changes no layer that a LoRA has. Its format is 'embedding'.")
    lora.require_extra()
    with _partial(path) as partial:
        after, before = lora.changed(files, base.files())
        model.fetch(after, partial / "tuned")
        base.fetch(before, partial / "base")
        energy = lora.extract(partial / "base", partial / "tuned", partial / path.name, rank)
        (partial / path.name).rename(path)
    return lora.Lora(path, rank, energy)


def download_embedding(transport: Transport, model_id: str, path: Path) -> Path:
    """What a textual inversion learned lies in the new file `path`. Raises FormatError for models of other methods."""
    _check_free_file(path)
    source = Source(transport, model_id)
    file = source.embedding()
    if file is None:
        raise FormatError("The model is no textual inversion, so it has no embedding. Its formats are the others.")
    with _partial(path) as partial:
        source.fetch_file(file, partial)
        (partial / file.path).rename(path)
    return path


@dataclass(frozen=True)
class Source:
    """A model's own files, or with "base-files" those of the base model that it was trained from."""

    transport: Transport
    model_id: str
    kind: str = "files"

    def files(self) -> list[ModelFile]:
        """All of the diffusers folder, with links that work for a few minutes."""
        return self._listed().files

    def embedding(self) -> ModelFile | None:
        """The file beside the folder with what a textual inversion learned."""
        return next((file for file in self._listed().artefacts if file.path == LEARNED_EMBEDDINGS), None)

    def fetch(self, files: Iterable[ModelFile], folder: Path) -> None:
        """All these files lie in the folder with the recorded content, several fetched at a time."""
        with ThreadPoolExecutor(PARALLEL_DOWNLOADS) as pool:
            list(pool.map(lambda file: self.fetch_file(file, folder), files))

    def fetch_file(self, file: ModelFile, folder: Path) -> None:
        """One file lies in the folder, with the recorded content.

        A download that breaks off is begun again with a new link: the first may have run out on a slow line.
        """
        relative = PurePosixPath(file.path)
        if relative.is_absolute() or ".." in relative.parts or "\\" in file.path:
            raise TransferError(
                f"The service names a file outside the model's folder, {file.path!r}. Nothing was written."
            )
        target = folder / relative
        target.parent.mkdir(parents=True, exist_ok=True)
        have: set[int] = set()
        for attempt in range(MAX_RETRIES + 1):
            try:
                if file.delta is not None:
                    return put_together(self.transport, file, target, have)
                return _fetch_once(self.transport, file, target)
            except TransferError:
                if attempt == MAX_RETRIES:
                    raise
                self.transport.sleep(FIRST_PAUSE_S * 2**attempt)
                file = self._with_new_link(file)

    def _with_new_link(self, file: ModelFile) -> ModelFile:
        listed = self._listed()
        every = [*listed.files, *listed.artefacts]
        return next((each for each in every if (each.path, each.sha256) == (file.path, file.sha256)), file)

    def _listed(self) -> ModelFiles:
        return self.transport.get(f"/v1/models/{quote(self.model_id, safe='')}/{self.kind}", ModelFiles)


def _fetch_once(transport: Transport, file: ModelFile, target: Path) -> None:
    check = Check(file.sha256, file.part_bytes, file.part_sha256)
    with transport.get_link(file.url) as pieces, target.open("wb") as out:
        for piece in pieces:
            check.update(piece)
            out.write(piece)
    if not check.is_right():
        raise TransferError(f"{file.path} arrived with other bytes than were published (SHA-256). Try again.")


@contextmanager
def _partial(target: Path) -> Iterator[Path]:
    """A path beside the target for what is not whole yet, on the same disk; gone afterwards, whatever happens."""
    partial = target.parent / f".{target.name}.{secrets.token_hex(4)}.partial"
    try:
        yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _refuse_photo(files: Iterable[ModelFile], reason: str) -> None:
    """Raises FormatError for a model of the method "ip_adapter", which only a whole folder can hold."""
    if any(file.path == EMBEDS_PATH for file in files):
        raise FormatError(
            f'The model is a photo beside the prompt (method "ip_adapter"), and {reason}. Download it as "diffusers".'
        )


def _check_free_folder(target: Path) -> None:
    """Raises ValidationError unless `target` is a new path or an empty folder."""
    if target.is_dir() and not any(target.iterdir()):
        return
    if target.exists():
        message = "It exists already and is not an empty folder."
        raise _refused("path", repr(str(target)), message, "Choose a new folder or empty this one.")
    target.parent.mkdir(parents=True, exist_ok=True)


def _check_free_file(target: Path) -> None:
    """Raises ValidationError unless `target` is a new path that ends as programs expect of such a file."""
    if target.suffix != SUFFIX:
        message = f"Programs know such a file by its ending, {SUFFIX}."
        raise _refused("path", repr(str(target)), message, f"Choose {target.name + SUFFIX!r}.")
    if target.exists():
        raise _refused("path", repr(str(target)), "It exists already.", "Choose a new file.")
    target.parent.mkdir(parents=True, exist_ok=True)


def _refused(field: str, value: str, message: str, remedy: str) -> ValidationError:
    return ValidationError([FieldProblem(field=field, value=value, message=message, remedy=remedy)])
