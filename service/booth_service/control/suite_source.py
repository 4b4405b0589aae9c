"""Which files of a source make up a suite of encoders; and a suite put together from encoders of several sources."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from booth.contract.encoders import CLIP_TOKENIZER_FILES, HEADS_FILE, LPIPS_FILE, LPIPS_TENSORS, SUITE_FILE, SuiteSpec
from booth_service.control import base_folder, base_sources
from booth_service.control.base_sources import Source
from booth_service.control.safetensors_header import read_header
from booth_service.errors import BadWeights, BaseModelError, EncoderError
from booth_service.storage.s3 import ObjectStore

PAPER = Path(__file__).parent.parent / "suites" / "paper.json"
"""The encoders of the paper and their preprocessing: what a suite that is put together takes."""


def read(source: Source) -> tuple[SuiteSpec, list[str]]:
    """What the suite is, and its files, sorted. Raises EncoderError or BaseModelError, naming what to do."""
    if SUITE_FILE not in source.files:
        raise EncoderError(
            f"{source.name} has no {SUITE_FILE}: it is not a suite of encoders. Give the folder that has one, or put a "
            "suite together with --subject, --clip and --perceptual."
        )
    try:
        spec = SuiteSpec.model_validate_json(source.files[SUITE_FILE].whole())
    except ValueError as error:
        raise EncoderError(f"{source.name}: {SUITE_FILE} does not describe a suite: {error}") from None
    files = [SUITE_FILE]
    for folder in spec.folders:
        base_folder.refuse_own_code(source, folder)
        files += base_folder.component(source, folder, SUITE_FILE)
    _refuse_incomplete(source, spec)
    return spec, sorted(files)


def put_together(name: str, parts: Mapping[str, str], store: ObjectStore) -> tuple[Source, str]:
    """A suite of the paper's preprocessing from sources for "subject", "clip" and "perceptual"; and what users are told
    of where it came from.

    A hub id may name a commit, tag or branch: owner/name@revision. Raises EncoderError, naming the part.
    """
    told = json.loads(PAPER.read_bytes()) | {"name": name}
    files = {SUITE_FILE: base_sources.of_bytes(json.dumps(told, indent=2).encode(), store)}
    origins = []
    for part, given in parts.items():
        source = _part(part, given, store)
        files |= {f"{told[part]['folder']}/{path}": file for path, file in source.files.items() if "/" not in path}
        if source.revision is not None:  # folders and buckets are the operator's own affair
            origins.append(f"{part} {source.name}@{source.revision}")
    return Source(", ".join(parts.values()), None, files), ", ".join(origins)


def _part(part: str, given: str, store: ObjectStore) -> Source:
    """The encoder's source, with plain weights in it. Raises EncoderError, naming the part."""
    try:
        source = base_sources.source_of(*base_sources.split_revision(given), store)
        base_folder.component(replace(source, files={f"{part}/{path}": file for path, file in source.files.items()}),
                              part, SUITE_FILE)  # fmt: skip
    except BaseModelError as error:
        remedy = (
            "Where no hub can be reached give a folder, as save_pretrained writes it. Of a hub id another commit can "
            "be named: ID@COMMIT, or ID@refs/pr/N where a pull request has them."
        )
        raise EncoderError(f"--{part} {given}: {error.detail.rstrip('.')}. {remedy}") from error
    return source


def _refuse_incomplete(source: Source, spec: SuiteSpec) -> None:
    """Raise EncoderError, naming the file, where an encoder could not be loaded."""
    networks = [spec.subject.folder, spec.clip.folder]
    networks += [spec.perceptual.folder] if spec.perceptual.kind == "backbone" else []
    networks += [spec.attributes.folder] if spec.attributes else []
    for folder in dict.fromkeys(networks):
        _refuse_without(source, f"{folder}/config.json", "Save the network there with save_pretrained.")
    if not any(all(f"{spec.clip.folder}/{file}" in source.files for file in each) for each in CLIP_TOKENIZER_FILES):
        raise EncoderError(f"{source.name}: {spec.clip.folder} has no CLIP tokenizer. Save it beside the model.")
    if spec.perceptual.kind == "lpips-alexnet":
        path = f"{spec.perceptual.folder}/{LPIPS_FILE}"
        _refuse_without(source, path, "booth_service/evaluation/lpips.py says how it is made.")
        _refuse_shapes(source, path, dict(LPIPS_TENSORS))
    if spec.attributes is not None:
        path = f"{spec.attributes.folder}/{HEADS_FILE}"
        _refuse_without(source, path, "Train the heads, or leave the attributes out.")
        counts = {name: len(head.labels) for name, head in spec.attributes.heads.items()}
        _refuse_shapes(source, path, {f"{name}.bias": (count,) for name, count in counts.items()})


def _refuse_without(source: Source, path: str, remedy: str) -> None:
    if path not in source.files:
        raise EncoderError(f"{source.name} has no {path}. {remedy}")


def _refuse_shapes(source: Source, path: str, wanted: dict[str, tuple[int, ...]]) -> None:
    """Raise EncoderError where a safetensors file lacks a tensor, or has it in another shape."""
    file = source.files[path]
    try:
        there = read_header(file.read, path, file.total_bytes)
    except BadWeights as error:
        raise EncoderError(f"{source.name}: {error.detail}. Fetch it again.") from None
    for name, shape in wanted.items():
        if name not in there:
            raise EncoderError(f"{source.name}: {path} has no tensor {name}. Make the file anew.")
        if tuple(there[name].shape) != shape:
            raise EncoderError(f"{source.name}: {path} has {name} in the shape {there[name].shape}, not {list(shape)}.")
