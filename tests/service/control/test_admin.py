"""The operator's commands against a real database and object store."""

import json
import shutil

import pytest
from control_plane import RECIPE, weights

from booth.contract.models import Recipe
from booth_service import settings as settings_module
from booth_service.control import admin, auth, base_folder
from booth_service.control.database import Database
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
    assert (added["status"], added["is_default"], added["files"]) == ("added", True, 3)
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
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
    ]


def test_a_base_model_is_fetched_from_a_bucket(run, folder, object_store):
    for path in folder.rglob("*"):
        if path.is_file():
            object_store.upload(path, f"elsewhere/tiny/{path.relative_to(folder).as_posix()}")
    code, added, _ = run("base-model-add", "tiny", f"s3://{object_store.bucket}/elsewhere/tiny/")
    assert (code, added["files"]) == (0, 3)


def test_without_a_recipe_the_built_in_ones_are_named(run, folder):
    (folder / "booth_recipe.json").unlink()
    code, _, complaint = run("base-model-add", "tiny", str(folder))
    assert code == 1
    assert "sd15, sd21" in complaint
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


def test_what_is_no_source_is_refused(run, tmp_path):
    assert "no hub id" in run("base-model-add", "x", "/does/not/exist", "--recipe", "sd15")[2]
    assert "model_index.json" in run("base-model-add", "x", str(tmp_path), "--recipe", "sd15")[2]
