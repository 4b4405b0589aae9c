"""Adding base models, against a real database and object store: what is taken, what is refused, what is done once."""

import hashlib
import json
import shutil

import pytest
import torch
from control_plane import RECIPE, weights
from own_hub import own_hub
from safetensors.torch import save_file
from tiny_sdxl_base import write_tiny_sdxl_base

from booth.contract.models import Recipe
from booth_service import settings as settings_module
from booth_service.control import (
    base_folder,
    base_models,
    base_references,
    base_sources,
    register,
    safetensors_header,
)
from booth_service.control.database import Database
from booth_service.control.tokens import Tokenizers
from booth_service.control.views import stored_files
from booth_service.errors import BaseModelError, StorageError
from booth_service.storage import keys
from booth_service.storage.s3 import ObjectStore


@pytest.fixture
def add(tmp_path, object_store, monkeypatch, capsys):
    """Adds a base model with --json; returns the exit code, the answer and what was complained."""
    url = f"sqlite:///{tmp_path}/register.db"
    monkeypatch.setenv("BOOTH_DATABASE_URL", url)
    monkeypatch.setenv("BOOTH_S3_BUCKET", object_store.bucket)
    monkeypatch.setenv("BOOTH_S3_ENDPOINT_URL", object_store.client.meta.endpoint_url)
    settings_module.settings.cache_clear()

    def add(*arguments: str):
        code = register.main([*arguments, "--json"])
        out, err = capsys.readouterr()
        return code, json.loads(out) if out else None, err

    def names() -> dict[str, bool]:
        with Database(url).read() as session:
            return {base.name: base.is_default for base in base_models.current(session)}

    Database(url).migrate()
    add.url, add.names = url, names
    yield add
    settings_module.settings.cache_clear()


def chosen(folder, object_store) -> list[str]:
    return base_folder.read(base_sources.folder(folder, object_store)).files


@pytest.fixture
def folder(tmp_path):
    """A diffusers folder of a few hundred bytes, with its recipe."""
    root = tmp_path / "base"
    files = {
        "model_index.json": json.dumps(
            {
                "_class_name": "StableDiffusionPipeline",
                "safety_checker": [None, None],
                **{part: ["diffusers", "U"] for part in ("unet", "vae", "text_encoder", "tokenizer", "scheduler")},
            }
        ).encode(),
        "booth_recipe.json": RECIPE.model_dump_json().encode(),
        "README.md": b"not needed",
        "pipeline.py": b"raise SystemExit",
        "unet/model.py": b"raise SystemExit",
        "v1-pruned.safetensors": weights(),
        "unet/config.json": b"{}",
        "unet/diffusion_pytorch_model.safetensors": weights(),
        "unet/diffusion_pytorch_model.fp16.safetensors": weights(),
        "unet/diffusion_pytorch_model.bin": b"pickle",
        "feature/preprocessor_config.json": b"{}",
        **{f"{part}/config.json": b"{}" for part in ("vae", "text_encoder", "tokenizer", "scheduler")},
    }
    for path, body in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(body)
    return root


def test_a_base_model_is_stored_once(add, folder):
    code, added, _ = add("tiny", str(folder))
    assert code == 0
    assert (added["status"], added["is_default"], len(added["files"])) == ("added", True, 7)
    again = add("tiny", str(folder))[1]
    assert (again["status"], again["uploaded"]) == ("unchanged", 0)
    (folder / "unet/config.json").write_text('{"a": 1}')
    assert add("tiny", str(folder))[1]["status"] == "replaced"
    assert add.names() == {"tiny": True}


def test_the_default_changes_only_when_asked(add, folder):
    add("one", str(folder))
    assert add("two", str(folder))[1]["is_default"] is False
    assert add("two", str(folder), "--default")[1]["is_default"] is True
    assert add.names() == {"one": False, "two": True}


def test_only_what_the_pipeline_needs_is_taken(object_store, folder):
    assert chosen(folder, object_store) == [
        "model_index.json",
        "scheduler/config.json",
        "text_encoder/config.json",
        "tokenizer/config.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "vae/config.json",
    ]


def test_a_base_model_goes_from_bucket_to_bucket_without_a_file_here(add, folder, object_store, monkeypatch):
    save_file({"a": torch.rand(1000)}, folder / "vae/diffusion_pytorch_model.safetensors")  # stored by no other test
    other = object_store.sibling(f"{object_store.bucket}-other")
    other.ensure_bucket()
    for path in folder.rglob("*"):
        if path.is_file():
            other.upload(path, f"models/tiny/{path.relative_to(folder).as_posix()}")
    for name in ("upload", "download", "put"):
        monkeypatch.delattr(ObjectStore, name)
    code, added, complaint = add("tiny", f"s3://{other.bucket}/models/tiny/")
    assert (code, len(added["files"]), added["uploaded"]) == (0, 8, 1), complaint
    for path, digest in added["files"].items():
        assert object_store.get(keys.base_file(digest), digest) == (folder / path).read_bytes()
    assert add("tiny", f"s3://{other.bucket}/models/tiny")[1]["uploaded"] == 0


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("no-such-bucket-here/x", "there is no bucket 'no-such-bucket-here'"),
        ("{bucket}/nothing/here", "has nothing below 'nothing/here/'"),
    ],
)
def test_a_bucket_or_prefix_that_is_not_there_is_named(add, object_store, place, words):
    code, _, complaint = add("tiny", f"s3://{place.format(bucket=object_store.bucket)}", "--recipe", "sd15")
    assert code == 1
    assert words in complaint


def test_an_object_that_changes_while_it_is_added_is_refused(add, object_store):
    object_store.put("changing/a", b"first")
    [listed] = object_store.listing("changing/")
    object_store.put("changing/a", b"other")
    with pytest.raises(StorageError):
        object_store.copy_from(object_store.bucket, listed, "changing/copy")
    assert object_store.size("changing/copy") is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"unet": ["model", "Net"]}, "takes unet from 'model'"),
        ({"unet": ["subprocess", "Popen"]}, "takes unet from 'subprocess'"),
        ({"_class_name": ["pipeline", "Pipeline"]}, "cannot be fine-tuned here"),
    ],
)
def test_a_folder_that_brings_code_of_its_own_is_refused(add, folder, change, words):
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | change))
    code, _, complaint = add("tiny", str(folder))
    assert code == 1
    assert words in complaint
    assert add.names() == {}


def test_a_component_that_names_code_of_its_own_is_refused(add, folder):
    (folder / "text_encoder/config.json").write_text('{"auto_map": {"AutoModel": "modeling.Net"}}')
    code, _, complaint = add("tiny", str(folder))
    assert code == 1
    assert "text_encoder/config.json has an auto_map" in complaint


def test_no_code_and_no_pickle_is_ever_stored(add, folder):
    taken = add("tiny", str(folder))[1]["files"]
    assert {path.rsplit(".", 1)[1] for path in taken} == {"json", "safetensors"}


@pytest.fixture
def allow(tmp_path, monkeypatch):
    """Writes the operator's allow-list."""

    def allow(*entries: dict):
        path = tmp_path / "allowed.yaml"
        path.write_text(json.dumps({"base_models": list(entries)}))
        monkeypatch.setenv("BOOTH_BASE_MODEL_ALLOW_LIST", str(path))
        settings_module.settings.cache_clear()
        return path

    return allow


def test_only_what_the_allow_list_names_may_be_added(add, folder, allow):
    files = add("tiny", str(folder))[1]["files"]
    allow({"source": "owner/name", "revision": "a" * 40})
    code, _, complaint = add("second", str(folder))
    assert (code, f"{folder} is not on the list" in complaint) == (1, True)
    allow({"source": str(folder), "files": files | {"unet/config.json": "0" * 64}}, {"source": "another"})
    code, _, complaint = add("second", str(folder))
    assert (code, "unet/config.json has SHA-256" in complaint) == (1, True)
    allow({"source": str(folder), "files": {path: files[path] for path in list(files)[1:]}})
    assert add("second", str(folder))[0] == 1  # a file more than it names
    assert add.names() == {"tiny": True}
    allow({"source": str(folder), "files": files})
    assert add("second", str(folder))[0] == 0


def test_an_allow_list_that_cannot_be_read_lets_nothing_in(add, folder, allow):
    for body in ("base_models: [{source: x, revsion: y}]", "[", ""):
        allow().write_text(body)
        code, _, complaint = add("tiny", str(folder))
        assert (code, "so nothing may be added" in complaint) == (1, True)
    assert add.names() == {}


def test_without_a_recipe_the_built_in_ones_are_named(add, folder):
    (folder / "booth_recipe.json").unlink()
    code, _, complaint = add("tiny", str(folder))
    assert code == 1
    assert "sd15, sd21, sdxl" in complaint
    assert add("tiny", str(folder), "--recipe", "sd15")[0] == 0
    assert add("tiny", str(folder), "--recipe", "sd99")[0] == 1


@pytest.mark.parametrize("path", sorted(register.RECIPES.glob("*.json")), ids=lambda path: path.stem)
def test_built_in_recipes_are_recipes_with_a_source(path):
    recipe = Recipe.model_validate_json(path.read_bytes())
    assert "diffusers" in recipe.source


def test_a_recipe_that_is_none_is_refused(add, folder):
    (folder / "booth_recipe.json").write_text('{"steps": 5}')
    code, _, complaint = add("tiny", str(folder))
    assert code == 1
    assert "is not a recipe" in complaint


def test_pickled_weights_are_refused(object_store, folder):
    for file in folder.glob("unet/*.safetensors"):
        file.unlink()
    with pytest.raises(BaseModelError, match="safe_serialization=True"):
        chosen(folder, object_store)


def test_a_variant_alone_is_refused(object_store, folder):
    (folder / "unet/diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(BaseModelError, match="variant only"):
        chosen(folder, object_store)


def test_a_component_that_is_missing_is_named(object_store, folder):
    shutil.rmtree(folder / "unet")
    with pytest.raises(BaseModelError, match="names unet"):
        chosen(folder, object_store)


def test_a_folder_without_text_encoder_is_refused(add, folder):
    index = folder / "model_index.json"
    index.write_text(index.read_text().replace('"text_encoder": ["diffusers", "U"]', '"text_encoder": [null, null]'))
    code, _, complaint = add("tiny", str(folder))
    assert code == 1
    assert "has no text_encoder, so it cannot be fine-tuned" in complaint
    assert add.names() == {}


@pytest.mark.parametrize("name", ["StableDiffusionXLImg2ImgPipeline", "FluxPipeline", None, ["x"]])
def test_another_pipeline_is_refused(object_store, folder, name):
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"_class_name": name}))
    with pytest.raises(BaseModelError, match=r"cannot be fine-tuned here\. Give a folder of one of Stable"):
        chosen(folder, object_store)


def test_a_recipe_of_another_family_is_refused(add, folder):
    code, _, complaint = add("tiny", str(folder), "--recipe", "sdxl")
    assert code == 1
    assert "is a stable-diffusion base model, the recipe is for stable-diffusion-xl" in complaint


def test_an_sdxl_folder_is_added_with_its_recipe_and_its_tokenizer_is_read(add, tmp_path, object_store, capsys):
    root = write_tiny_sdxl_base(tmp_path / "sdxl")
    capsys.readouterr()  # what libraries say when they are loaded
    code, added, complaint = add("xl", str(root), "--recipe", "sdxl")
    assert code == 0, complaint
    assert added["family"] == "stable-diffusion-xl"
    with Database(add.url).read() as session:
        files = stored_files(base_models.named(session, "xl").files)
    paths = {file.path for file in files}
    assert {"text_encoder_2/model.safetensors", "tokenizer_2/tokenizer_config.json"} <= paths
    vocabulary = Tokenizers(object_store).of(files)
    assert (vocabulary.max_length, vocabulary.pieces("a sks dog")) == (24, ["a</w>", "sks</w>", "dog</w>"])


@pytest.mark.parametrize(
    "bad",
    [
        torch.tensor([1.0, torch.nan]),
        torch.tensor([1.0, torch.inf], dtype=torch.float16),
        torch.tensor([-torch.inf, 1.0], dtype=torch.bfloat16),
    ],
    ids=lambda tensor: str(tensor.dtype),
)
def test_weights_that_are_not_finite_are_refused_by_name(add, folder, bad):
    tensors = {"a": torch.ones(3, dtype=bad.dtype), "b": torch.tensor([2**31 - 1]), "mid.norm": bad}
    save_file(tensors, folder / "unet/diffusion_pytorch_model.safetensors")
    code, _, complaint = add("tiny", str(folder))
    assert code == 1
    assert "unet/diffusion_pytorch_model.safetensors has values that are not finite in mid.norm" in complaint
    assert add.names() == {}


def test_what_is_no_source_is_refused(add, tmp_path):
    assert "no hub id" in add("x", "/does/not/exist", "--recipe", "sd15")[2]
    assert "model_index.json" in add("x", str(tmp_path), "--recipe", "sd15")[2]


@pytest.fixture
def hub(folder, tmp_path, monkeypatch):
    with own_hub({"owner/tiny": folder}, tmp_path / "hub", monkeypatch) as handler:
        yield handler


def test_a_hub_id_is_pinned_to_its_commit_and_code_is_not_fetched(add, hub):
    save_file({"a": torch.rand(1000)}, hub.folders["owner/tiny"] / "unet/diffusion_pytorch_model.safetensors")
    code, added, complaint = add("tiny", "owner/tiny")
    assert code == 0, complaint
    assert (added["source"], added["revision"], len(added["files"])) == ("owner/tiny", "a" * 40, 7)
    assert {asked[0] for asked in hub.asked} == {"a"}
    assert {asked.rsplit(".", 1)[1] for asked in hub.asked} == {"json", "safetensors"}
    hub.asked.clear()
    assert add("tiny", "owner/tiny", "--revision", "b" * 40)[1]["revision"] == "b" * 40
    assert "b unet/diffusion_pytorch_model.safetensors" not in hub.asked  # stored already, by the hash the hub says


def test_a_commit_that_the_hub_or_the_allow_list_lacks_is_refused(add, hub, allow):
    assert "could not be fetched from the hub" in add("tiny", "owner/tiny", "--revision", "v9")[2]
    allow({"source": "owner/tiny", "revision": "b" * 40})
    code, _, complaint = add("tiny", "owner/tiny")
    assert (code, f"owner/tiny is at {'a' * 40}" in complaint) == (1, True)
    assert hub.asked == []
    assert add("tiny", "owner/tiny", "--revision", "b" * 40)[0] == 0


def test_bytes_that_are_not_what_the_hub_says_are_refused(add, hub, monkeypatch):
    weights_path = hub.folders["owner/tiny"] / "unet/diffusion_pytorch_model.safetensors"
    save_file({"a": torch.rand(1000)}, weights_path)
    siblings = [{**each, "lfs": {**each["lfs"], "sha256": "0" * 64}} if "lfs" in each else each
                for each in hub.siblings(hub, "owner/tiny")]  # fmt: skip
    monkeypatch.setattr(hub, "siblings", lambda self, name: siblings)
    code, _, complaint = add("tiny", "owner/tiny")
    assert (code, "its source says 000" in complaint) == (1, True)


def test_a_revision_of_a_folder_is_refused(add, folder):
    assert "is not of the hub" in add("tiny", str(folder), "--revision", "main")[2]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_every_value_is_looked_at_wherever_the_file_is_cut(tmp_path, monkeypatch, dtype):
    monkeypatch.setattr(safetensors_header, "CHUNK_BYTES", 101)
    path = tmp_path / "x.safetensors"
    tensors = {"first": torch.ones(37, dtype=dtype), "bytes": torch.ones(3, dtype=torch.uint8)}
    for place in range(97):
        tensors["last"] = torch.ones(97, dtype=dtype)
        tensors["last"][place] = torch.nan
        save_file(tensors, path)
        body = path.read_bytes()
        found = safetensors_header.scan(lambda start, n, body=body: body[start : start + n], "x", len(body))
        assert found == (hashlib.sha256(body).hexdigest(), "last")


def references_of(add, name: str = "tiny") -> dict[str, list]:
    with Database(add.url).read() as session:
        return {dtype: stored_files(files) for dtype, files in base_models.named(session, name).references.items()}


def test_what_models_are_differences_to_is_stored_with_the_base(add, folder, object_store):
    added = add("tiny", str(folder))[1]
    [(dtype, [reference])] = references_of(add).items()
    assert (dtype, reference.path) == ("float16", "unet/diffusion_pytorch_model.safetensors")
    assert len(object_store.get(reference.key, reference.sha256)) == reference.bytes == added["reference_bytes"]
    assert reference.bytes < (folder / reference.path).stat().st_size


def test_references_are_in_the_format_of_the_recipe(add, folder):
    add("tiny", str(folder))
    recipe = RECIPE.model_copy(update={"export_dtype": "bfloat16"}).model_dump_json()
    (folder / "booth_recipe.json").write_text(recipe)
    assert add("tiny", str(folder))[1]["status"] == "replaced"
    assert list(references_of(add)) == ["bfloat16"]


def test_a_base_that_was_added_without_references_gets_them_when_it_is_added_again(add, folder, monkeypatch):
    monkeypatch.setenv("BOOTH_DELTA_STORE", "0")
    settings_module.settings.cache_clear()
    assert add("tiny", str(folder))[1]["reference_bytes"] == 0
    assert references_of(add) == {}
    monkeypatch.setenv("BOOTH_DELTA_STORE", "1")
    settings_module.settings.cache_clear()
    assert add("tiny", str(folder))[1]["status"] == "unchanged"
    assert len(references_of(add)["float16"]) == 1


def test_references_of_the_same_file_are_made_once(add, folder, monkeypatch):
    add("tiny", str(folder))
    monkeypatch.delattr(base_references, "stored_reference")
    (folder / "unet/config.json").write_text('{"a": 1}')
    assert add("other", str(folder))[0] == 0
    assert references_of(add, "other") == references_of(add)


def test_switching_differences_off_keeps_the_references_that_are_there(add, folder, monkeypatch):
    add("tiny", str(folder))
    monkeypatch.setenv("BOOTH_DELTA_STORE", "0")
    settings_module.settings.cache_clear()
    assert add("tiny", str(folder))[1]["status"] == "unchanged"
    assert len(references_of(add)["float16"]) == 1
