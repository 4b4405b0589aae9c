"""The operator's commands against a real database and object store."""

import json
import shutil

import pytest
import torch
from control_plane import RECIPE, weights
from safetensors.torch import save_file
from tiny_sdxl_base import write_tiny_sdxl_base

from booth.contract.models import Recipe
from booth_service import settings as settings_module
from booth_service.control import admin, auth, base_folder, base_models
from booth_service.control.database import Database
from booth_service.control.tokens import Tokenizers
from booth_service.control.views import stored_files
from booth_service.errors import BaseModelError


@pytest.fixture
def run(tmp_path, object_store, monkeypatch, capsys):
    """Runs a command with --json; returns its exit code, its answer and what it complained."""
    url = f"sqlite:///{tmp_path}/admin.db"
    monkeypatch.setenv("BOOTH_DATABASE_URL", url)
    monkeypatch.setenv("BOOTH_S3_BUCKET", object_store.bucket)
    monkeypatch.setenv("BOOTH_S3_ENDPOINT_URL", object_store.client.meta.endpoint_url)
    settings_module.settings.cache_clear()

    def run(*arguments: str):
        code = admin.main([*arguments, "--json"])
        out, err = capsys.readouterr()
        return code, json.loads(out) if out else None, err

    run.url = url
    yield run
    settings_module.settings.cache_clear()


@pytest.fixture
def folder(tmp_path):
    """A diffusers folder of a few hundred bytes, with its recipe."""
    root = tmp_path / "base"
    files = {
        "model_index.json": json.dumps(
            {
                "_class_name": "StableDiffusionPipeline",
                "safety_checker": [None, None],
                **{part: ["d", "U"] for part in ("unet", "vae", "text_encoder", "tokenizer", "scheduler")},
            }
        ).encode(),
        "booth_recipe.json": RECIPE.model_dump_json().encode(),
        "README.md": b"not needed",
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


def test_a_tenants_key_works_until_it_is_revoked(run):
    assert run("tenant-add", "acme")[1]["name"] == "acme"
    code, made, _ = run("key-add", "acme")
    assert code == 0
    database = Database(run.url)
    with database.read() as session:
        tenant_id = auth.find_tenant(session, made["key"])
    assert run("tenants")[1] == [{"id": tenant_id, "name": "acme", "keys": [made["id"]]}]
    run("key-revoke", made["id"])
    with database.read() as session:
        assert auth.find_tenant(session, made["key"]) is None
    assert run("tenants")[1][0]["keys"] == []
    database.close()


def test_a_tenant_added_twice_is_one(run):
    assert run("tenant-add", "acme")[1] == run("tenant-add", "acme")[1]


@pytest.mark.parametrize("arguments", [("key-add", "nobody"), ("key-revoke", "nothing")])
def test_what_is_not_there_is_named(run, arguments):
    code, answer, complaint = run(*arguments)
    assert (code, answer) == (1, None)
    assert arguments[1] in complaint


def test_the_key_stands_last_where_people_read(run, capsys):
    run("tenant-add", "acme")
    admin.main(["key-add", "acme"])
    assert capsys.readouterr().out.split()[-1].startswith("booth_")


def test_a_base_model_is_stored_once(run, folder):
    code, added, _ = run("base-model-add", "tiny", str(folder))
    assert code == 0
    assert (added["status"], added["is_default"], added["files"]) == ("added", True, 7)
    again = run("base-model-add", "tiny", str(folder))[1]
    assert (again["status"], again["uploaded"]) == ("unchanged", 0)
    (folder / "unet/config.json").write_text('{"a": 1}')
    assert run("base-model-add", "tiny", str(folder))[1]["status"] == "replaced"
    assert [base["name"] for base in run("base-models")[1]] == ["tiny"]


def test_the_default_changes_only_when_asked(run, folder):
    run("base-model-add", "one", str(folder))
    assert run("base-model-add", "two", str(folder))[1]["is_default"] is False
    assert run("base-model-add", "two", str(folder), "--default")[1]["is_default"] is True
    assert {base["name"]: base["is_default"] for base in run("base-models")[1]} == {"one": False, "two": True}


def test_only_what_the_pipeline_needs_is_taken(folder):
    assert [path.as_posix() for path in base_folder.read(folder).files] == [
        "model_index.json",
        "scheduler/config.json",
        "text_encoder/config.json",
        "tokenizer/config.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "vae/config.json",
    ]


def test_a_base_model_is_fetched_from_a_bucket(run, folder, object_store):
    for path in folder.rglob("*"):
        if path.is_file():
            object_store.upload(path, f"elsewhere/tiny/{path.relative_to(folder).as_posix()}")
    code, added, _ = run("base-model-add", "tiny", f"s3://{object_store.bucket}/elsewhere/tiny/")
    assert (code, added["files"]) == (0, 7)


def test_without_a_recipe_the_built_in_ones_are_named(run, folder):
    (folder / "booth_recipe.json").unlink()
    code, _, complaint = run("base-model-add", "tiny", str(folder))
    assert code == 1
    assert "sd15, sd21, sdxl" in complaint
    assert run("base-model-add", "tiny", str(folder), "--recipe", "sd15")[0] == 0
    assert run("base-model-add", "tiny", str(folder), "--recipe", "sd99")[0] == 1


@pytest.mark.parametrize("path", sorted(admin.RECIPES.glob("*.json")), ids=lambda path: path.stem)
def test_built_in_recipes_are_recipes_with_a_source(path):
    recipe = Recipe.model_validate_json(path.read_bytes())
    assert "diffusers" in recipe.source


def test_a_recipe_that_is_none_is_refused(run, folder):
    (folder / "booth_recipe.json").write_text('{"steps": 5}')
    code, _, complaint = run("base-model-add", "tiny", str(folder))
    assert code == 1
    assert "is not a recipe" in complaint


def test_pickled_weights_are_refused(folder):
    for file in folder.glob("unet/*.safetensors"):
        file.unlink()
    with pytest.raises(BaseModelError, match="safe_serialization=True"):
        base_folder.read(folder)


def test_a_variant_alone_is_refused(folder):
    (folder / "unet/diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(BaseModelError, match="variant only"):
        base_folder.read(folder)


def test_a_component_that_is_missing_is_named(folder):
    shutil.rmtree(folder / "unet")
    with pytest.raises(BaseModelError, match="names unet"):
        base_folder.read(folder)


def test_a_folder_without_text_encoder_is_refused(run, folder):
    index = folder / "model_index.json"
    index.write_text(index.read_text().replace('"text_encoder": ["d", "U"]', '"text_encoder": [null, null]'))
    code, _, complaint = run("base-model-add", "tiny", str(folder))
    assert code == 1
    assert "has no text_encoder, so it cannot be fine-tuned" in complaint
    assert run("base-models")[1] == []


@pytest.mark.parametrize("name", ["StableDiffusionXLImg2ImgPipeline", "FluxPipeline", None, ["x"]])
def test_another_pipeline_is_refused(folder, name):
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"_class_name": name}))
    with pytest.raises(BaseModelError, match=r"cannot be fine-tuned here\. Give a folder of one of Stable"):
        base_folder.read(folder)


def test_a_recipe_of_another_family_is_refused(run, folder):
    code, _, complaint = run("base-model-add", "tiny", str(folder), "--recipe", "sdxl")
    assert code == 1
    assert "is a stable-diffusion base model, the recipe is for stable-diffusion-xl" in complaint


def test_an_sdxl_folder_is_added_with_its_recipe_and_its_tokenizer_is_read(run, tmp_path, object_store, capsys):
    root = write_tiny_sdxl_base(tmp_path / "sdxl")
    capsys.readouterr()  # what libraries say when they are loaded
    code, added, complaint = run("base-model-add", "xl", str(root), "--recipe", "sdxl")
    assert code == 0, complaint
    assert added["family"] == "stable-diffusion-xl"
    with Database(run.url).read() as session:
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
def test_weights_that_are_not_finite_are_refused_by_name(run, folder, bad):
    tensors = {"a": torch.ones(3, dtype=bad.dtype), "b": torch.tensor([2**31 - 1]), "mid.norm": bad}
    save_file(tensors, folder / "unet/diffusion_pytorch_model.safetensors")
    code, _, complaint = run("base-model-add", "tiny", str(folder))
    assert code == 1
    assert "unet/diffusion_pytorch_model.safetensors has values that are not finite in mid.norm" in complaint
    assert run("base-models")[1] == []


def test_what_is_no_source_is_refused(run, tmp_path):
    assert "no hub id" in run("base-model-add", "x", "/does/not/exist", "--recipe", "sd15")[2]
    assert "model_index.json" in run("base-model-add", "x", str(tmp_path), "--recipe", "sd15")[2]
