"""The Kubernetes manifests as kustomize renders them, as far as ours use it, and KubeRay's schemas made strict."""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator

FOLDER = Path(__file__).parents[1] / "infra" / "kubernetes"
SCHEMAS = Path(__file__).parents[2] / "shared" / "schemas" / "kuberay"
Document = dict[str, Any]


def rendered(folder: Path) -> list[Document]:
    """The documents of a folder's kustomization: resources, then JSON patches, then images and the namespace."""
    rules = yaml.safe_load((folder / "kustomization.yaml").read_text())
    known = {"apiVersion", "kind", "namespace", "resources", "images", "patches"}
    assert set(rules) <= known, f"this renderer does not know {set(rules) - known}"
    documents: list[Document] = []
    for name in rules["resources"]:
        path = folder / name
        documents += rendered(path) if path.is_dir() else read(path)
    for patch in rules.get("patches", []):
        (target,) = [each for each in documents if is_target(each, patch["target"])]
        for step in yaml.safe_load(patch["patch"]):
            apply(target, step)
    for document in documents:
        if "namespace" in rules:
            document["metadata"]["namespace"] = rules["namespace"]
        for container in containers(document):
            for image in rules.get("images", []):
                if container["image"] == image["name"]:
                    container["image"] = f"{image['newName']}:{image['newTag']}"
    return documents


def read(path: Path) -> list[Document]:
    """A file's documents. What YAML's anchors let them share, each gets as its own, as in Kubernetes."""
    found: list[Document] = json.loads(json.dumps(list(yaml.safe_load_all(path.read_text()))))
    return found


def is_target(document: Document, target: dict[str, str]) -> bool:
    return document["kind"] == target["kind"] and document["metadata"]["name"] == target["name"]


def apply(document: Document, step: dict[str, Any]) -> None:
    """One operation of a JSON patch (RFC 6902): add or replace, the latter only of what is there."""
    *parents, last = [part.replace("~1", "/") for part in step["path"].split("/")[1:]]
    place: Any = document
    for part in parents:
        place = place[int(part)] if isinstance(place, list) else place[part]
    assert step["op"] == "add" or (step["op"] == "replace" and last in place), step
    place[last] = step["value"]


def of_kind(documents: list[Document], kind: str) -> Document:
    """The only document of a kind."""
    (found,) = [document for document in documents if document["kind"] == kind]
    return found


def pod_specs(document: Document) -> list[Document]:
    """The pods that a Deployment or a RayCluster makes."""
    spec = document.get("spec", {})
    groups = [spec, spec.get("headGroupSpec", {}), *spec.get("workerGroupSpecs", [])]
    return [group["template"]["spec"] for group in groups if "template" in group]


def containers(document: Document) -> list[Document]:
    return [container for pod in pod_specs(document) for container in pod["containers"]]


def problems(document: Document, schema: Document) -> list[str]:
    """What KubeRay's schema finds wrong, with the place; fields that it does not know are wrong too."""
    found = Draft202012Validator(strict(schema)).iter_errors(document)
    return sorted(f"{'.'.join(map(str, error.absolute_path))}: {error.message}" for error in found)


def strict(schema: Any) -> Any:
    """The schema with every object closed that lists its fields; resource names stay open."""
    if isinstance(schema, list):
        return [strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: strict(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object":
        closed.setdefault("additionalProperties", False)
    return closed


def schema(plural: str) -> Document:
    """KubeRay's schema of ray.io/v1, as its README describes it."""
    found: Document = json.loads(gzip.decompress((SCHEMAS / f"{plural}.v1.json.gz").read_bytes()))
    return found


def secret_keys(document: Document) -> Iterator[tuple[str, str]]:
    """(secret, key) that a document's pods refer to, Ray's token among them."""
    for container in containers(document):
        for variable in container.get("env", []):
            if reference := variable.get("valueFrom", {}).get("secretKeyRef"):
                yield reference["name"], reference["key"]
    if token := document.get("spec", {}).get("authOptions"):
        yield token["secretName"], "auth_token"
