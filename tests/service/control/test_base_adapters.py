"""IP-Adapters beside base models: what is stored, what stays as it is, what is refused with which words."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file
from tiny_base import write_tiny_base
from tiny_ip_adapter import WEIGHTS, write_tiny_adapter
from tiny_job import RECIPE

from booth.contract.ip_adapter import is_weights
from booth_service import settings as settings_module
from booth_service.control import base_models, register
from booth_service.control.database import Database
from booth_service.control.records import BaseModel
from booth_service.control.views import base_model_record, stored_files
from booth_service.storage.base_model import content_sha256
from booth_service.storage.s3 import ObjectStore

pytestmark = pytest.mark.s3

FILES = {f"ip_adapter/{WEIGHTS}", "ip_adapter/image_encoder/config.json", "ip_adapter/image_encoder/model.safetensors"}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_tiny_base(tmp_path_factory.mktemp("base") / "tiny")
    (folder / "booth_recipe.json").write_text(RECIPE.model_dump_json())
    return folder


@pytest.fixture
def adapter(base: Path, tmp_path: Path) -> Path:
    """As published adapters lie: a folder for each family, the encoder beside the weights."""
    unet = UNet2DConditionModel.from_pretrained(base / "unet")
    write_tiny_adapter(tmp_path / "published" / "models", unet)
    return tmp_path / "published"


@pytest.fixture
def database(tmp_path: Path) -> Database:
    database = Database(f"sqlite:///{tmp_path}/adapters.db")
    database.migrate()
    return database


@pytest.fixture
def add(tmp_path, database, object_store, monkeypatch, capsys):
    """`boothctl base-models add tiny BASE ...`; returns the exit code, the answer and what was complained."""
    monkeypatch.setenv("BOOTH_DATABASE_URL", f"sqlite:///{tmp_path}/adapters.db")
    monkeypatch.setenv("BOOTH_S3_BUCKET", object_store.bucket)
    monkeypatch.setenv("BOOTH_S3_ENDPOINT_URL", object_store.client.meta.endpoint_url)
    settings_module.settings.cache_clear()

    def add(*arguments: object):
        code = register.main(["tiny", *map(str, arguments), "--json"])
        out, err = capsys.readouterr()
        return code, json.loads(out) if out else None, err

    yield add
    settings_module.settings.cache_clear()


def row(database: Database) -> BaseModel:
    with database.read() as session:
        return base_models.named(session, "tiny")


def test_an_adapter_lies_beside_the_base_model_and_is_no_part_of_it(
    add, database, base: Path, adapter: Path, object_store: ObjectStore
) -> None:
    add(base)
    plain = row(database)
    assert not base_model_record(plain).has_ip_adapter
    code, added, complaint = add(base, "--ip-adapter", adapter)
    assert (code, added["status"], set(added["ip_adapter"])) == (0, "unchanged", FILES), complaint
    with_adapter = row(database)
    assert base_model_record(with_adapter).has_ip_adapter
    assert with_adapter.id == plain.id
    assert content_sha256(stored_files(with_adapter.files)) == content_sha256(stored_files(plain.files))
    for file in stored_files(with_adapter.adapter_files):
        own = (adapter / "models" / file.path.removeprefix("ip_adapter/")).read_bytes()
        assert object_store.get(file.key, file.sha256) == own
    assert [is_weights(file.path) for file in stored_files(with_adapter.adapter_files)].count(True) == 1


def test_an_adapter_stays_with_the_files_that_it_was_given_for(add, database, base: Path, adapter: Path) -> None:
    add(base, "--ip-adapter", adapter)
    assert set(add(base)[1]["ip_adapter"]) == FILES
    other = RECIPE.model_copy(update={"steps": RECIPE.steps + 1})
    (adapter / "recipe.json").write_text(other.model_dump_json())
    replaced = add(base, "--recipe", adapter / "recipe.json")[1]
    assert (replaced["status"], set(replaced["ip_adapter"])) == ("replaced", FILES)
    changed = shutil.copytree(base, adapter / "changed")
    (changed / "scheduler" / "more.txt").write_text("another base model")
    assert add(changed)[1]["ip_adapter"] == {}
    assert row(database).adapter_files == []


def test_one_of_several_is_named(add, base: Path, adapter: Path) -> None:
    shutil.copy(adapter / "models" / WEIGHTS, adapter / "models" / "ip-adapter-plus_tiny.safetensors")
    (adapter / "models" / "image_encoder").rename(adapter / "encoder")
    code, _, complaint = add(base, "--ip-adapter", adapter)
    assert code == 1
    assert "several IP-Adapters. Name one with --ip-adapter-weights: models/ip-adapter-plus_tiny" in complaint
    named = ["--ip-adapter", adapter, "--ip-adapter-weights", f"models/{WEIGHTS}"]
    assert (
        "no image encoder at models/image_encoder. Name its folder with --ip-adapter-encoder; there is encoder."
        in (add(base, *named)[2])
    )
    code, added, complaint = add(base, *named, "--ip-adapter-encoder", "encoder")
    assert (code, set(added["ip_adapter"])) == (0, FILES), complaint


def of_another_width(folder: Path) -> None:
    path = folder / "models" / WEIGHTS
    save_file({name: torch.cat([each, each]) for name, each in load_file(path).items()}, path)


def with_another_encoder(folder: Path) -> None:
    path = folder / "models" / "image_encoder" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"projection_dim": 99}))


def with_code(folder: Path) -> None:
    path = folder / "models" / "image_encoder" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"auto_map": {"AutoModel": "evil.py"}}))


def of_faces(folder: Path) -> None:
    path = folder / "models" / WEIGHTS
    save_file(load_file(path) | {"ip_adapter.0.to_q_lora.down.weight": torch.zeros(1)}, path)


def as_pickle(folder: Path) -> None:
    path = folder / "models" / WEIGHTS
    path.rename(path.with_suffix(".bin"))


def named_as_a_photo(folder: Path) -> None:
    path = folder / "models" / WEIGHTS
    path.rename(path.with_name("image_embeds.safetensors"))


def with_nan(folder: Path) -> None:
    path = folder / "models" / WEIGHTS
    tensors = load_file(path)
    tensors["image_proj.norm.bias"][0] = torch.nan
    save_file(tensors, path)


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (of_another_width, r"for another base model: it has \d+ of 64 x 16, and this one's UNet \d+ of 32 x 16"),
        (with_another_encoder, r"reads an image encoder of projection_dim 12, and the one given is a clip_vision_"),
        (with_code, r"image_encoder/config.json has an auto_map, which names code"),
        (of_faces, r"ip_adapter.0.to_q_lora.down.weight: it is of the FaceID kind"),
        (as_pickle, r"has its IP-Adapter in no .safetensors file"),
        (named_as_a_photo, r"has the name that a model's photo has"),
        (with_nan, r"has values that are not finite in image_proj.norm.bias"),
    ],
)
def test_what_does_not_go_with_the_base_is_refused(
    add, database, base: Path, adapter: Path, damage, complaint: str
) -> None:
    add(base)
    damage(adapter)
    code, _, said = add(base, "--ip-adapter", adapter)
    assert code == 1
    assert re.search(complaint, said), said
    assert row(database).adapter_files == []


def test_an_adapter_needs_its_own_entry_of_the_allow_list(
    add, base: Path, adapter: Path, tmp_path: Path, monkeypatch
) -> None:
    allowed = tmp_path / "allowed.yaml"
    allowed.write_text(json.dumps({"base_models": [{"source": str(base)}]}))
    monkeypatch.setenv("BOOTH_BASE_MODEL_ALLOW_LIST", str(allowed))
    settings_module.settings.cache_clear()
    assert add(base)[0] == 0
    assert f"{adapter} is not on the list" in add(base, "--ip-adapter", adapter)[2]
    allowed.write_text(json.dumps({"base_models": [{"source": str(base)}, {"source": str(adapter)}]}))
    assert add(base, "--ip-adapter", adapter)[0] == 0
