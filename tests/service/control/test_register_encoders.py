"""Adding suites of encoders, against a real database and object store: whole ones, and such as are put together."""

import json
import shutil
from datetime import UTC, datetime

import pytest
import torch
from control_plane import both_databases
from own_hub import own_hub
from safetensors.torch import load_file, save_file
from tiny_suite import write_tiny_suite

from booth.contract.encoders import LPIPS_TENSORS, SuiteSpec
from booth_service import settings as settings_module
from booth_service.control import encoder_suites, register_encoders, suite_source
from booth_service.control.database import Database
from booth_service.control.problems import ProblemError
from booth_service.control.views import stored_files
from booth_service.evaluation.encoders import load_suite
from booth_service.storage.base_model import materialize


@pytest.fixture
def add(database_url, object_store, monkeypatch, capsys):
    """Adds a suite with --json; returns the exit code, the answer and what was complained."""
    monkeypatch.setenv("BOOTH_DATABASE_URL", database_url)
    monkeypatch.setenv("BOOTH_S3_BUCKET", object_store.bucket)
    monkeypatch.setenv("BOOTH_S3_ENDPOINT_URL", object_store.client.meta.endpoint_url)
    settings_module.settings.cache_clear()

    def add(*arguments: str):
        capsys.readouterr()  # what libraries say while suites are written
        code = register_encoders.main([*arguments, "--json"])
        out, err = capsys.readouterr()
        return code, json.loads(out) if out else None, err

    add.url = database_url
    yield add
    settings_module.settings.cache_clear()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A suite with AlexNet's LPIPS and attribute heads; tests that change it copy it."""
    return write_tiny_suite(tmp_path_factory.mktemp("suite"), "lpips-alexnet")


@pytest.fixture
def copy(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "copy")


@both_databases
def test_a_suite_is_stored_once_and_loads_from_the_store(add, whole, object_store, tmp_path):
    code, added, complaint = add("tiny", str(whole))
    assert code == 0, complaint
    assert (added["status"], added["source"]) == ("added", str(whole))
    expected = {"encoders.json", "dino/model.safetensors", "clip/vocab.json", "lpips/heads.safetensors"}
    assert expected <= added["files"].keys()
    again = add("tiny", str(whole))[1]
    assert (again["status"], again["uploaded"]) == ("unchanged", 0)
    with Database(add.url).read() as session:
        suite = encoder_suites.named(session, "tiny")
        assert (suite.source, suite.id[:4]) == ("", "enc-")  # a folder is the operator's own affair
        files = stored_files(suite.files)
    assert load_suite(materialize(object_store, files, str(tmp_path))).describe()["suite"] == "tiny"


def test_another_suite_of_a_name_replaces_it(add, whole, copy):
    add("tiny", str(whole))
    told = json.loads((copy / "encoders.json").read_text())
    told["subject"]["crop_px"] = 24
    (copy / "encoders.json").write_text(json.dumps(told))
    assert add("tiny", str(copy))[1]["status"] == "replaced"
    with Database(add.url).read() as session:
        [suite] = encoder_suites.current(session)
    assert SuiteSpec.model_validate(suite.spec).subject.crop_px == 24


def test_a_suite_is_put_together_with_the_paper_s_preprocessing(add, whole, object_store, tmp_path, monkeypatch):
    """DINO from the hub, CLIP from a bucket, LPIPS from a folder."""
    other = object_store.sibling(f"{object_store.bucket}-encoders")
    other.ensure_bucket()
    for path in (whole / "clip").iterdir():
        other.upload(path, f"clip/{path.name}")
    with own_hub({"owner/dino": whole / "dino"}, tmp_path / "hub", monkeypatch) as hub:
        parts = ("--subject", "owner/dino", "--clip", f"s3://{other.bucket}/clip", "--perceptual", str(whole / "lpips"))
        code, added, complaint = add("paper", *parts)
        assert code == 0, complaint
        assert add("paper", *parts)[1]["status"] == "unchanged"
        assert "b" * 40 in add("paper", "--subject", f"owner/dino@{'b' * 40}", *parts[2:])[1]["source"]
        assert {asked.rsplit(".", 1)[1] for asked in hub.asked} == {"json"}  # the weights are stored, the hub says
    assert added["source"] == f"subject owner/dino@{'a' * 40}"
    with Database(add.url).read() as session:
        suite = encoder_suites.named(session, "paper")
        spec, files = SuiteSpec.model_validate(suite.spec), stored_files(suite.files)
    told = json.loads(suite_source.PAPER.read_bytes())
    assert spec == SuiteSpec.model_validate(told)
    assert (spec.subject.resize_px, spec.clip.crop_px, spec.perceptual.kind) == (256, 224, "lpips-alexnet")
    stored = {file.path: file.sha256 for file in files}
    assert stored == added["files"]
    assert {path.split("/")[0] for path in stored} == {"encoders.json", "dino", "clip", "lpips"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "there is no SOURCE, and no --subject, --clip, --perceptual. Give the folder"),
        (("--clip", "a/b"), "no --subject, --perceptual"),
        (("a/b", "--clip", "a/b"), "a SOURCE and parts"),
        (("/does/not/exist",), "no hub id"),
    ],
)
def test_what_names_no_suite_is_refused(add, arguments, said):
    code, _, complaint = add("tiny", *arguments)
    assert code == 1
    assert complaint.startswith("boothctl encoders add: ")
    assert said in complaint


def test_a_hub_id_without_safetensors_says_how_another_commit_is_named(add, whole, copy, tmp_path, monkeypatch):
    (copy / "dino/model.safetensors").rename(copy / "dino/pytorch_model.bin")
    with own_hub({"owner/dino": copy / "dino"}, tmp_path / "hub", monkeypatch):
        code, _, complaint = add(
            "paper", "--subject", "owner/dino", "--clip", str(whole / "clip"), "--perceptual", str(whole / "lpips")
        )
    assert code == 1
    assert "--subject owner/dino" in complaint
    assert "weights only as pytorch_model.bin, which may run code" in complaint
    assert "ID@refs/pr/N" in complaint


def spoiled(copy, how: str) -> str:
    """Spoils the suite; returns what is to be said."""
    lpips, heads = copy / "lpips/lpips.safetensors", copy / "lpips/heads.safetensors"
    if how == "no spec":
        (copy / "encoders.json").unlink()
        return "has no encoders.json: it is not a suite"
    if how == "bad spec":
        (copy / "encoders.json").write_text('{"name": "tiny"}')
        return "does not describe a suite"
    if how == "no tokenizer":
        for name in ("vocab.json", "tokenizer.json"):
            (copy / "clip" / name).unlink(missing_ok=True)
        return "clip has no CLIP tokenizer. Save it beside the model."
    if how == "no folder":
        shutil.rmtree(copy / "dino")
        return "encoders.json names dino"
    if how == "own code":
        (copy / "dino/config.json").write_text('{"auto_map": {"AutoModel": "x.Y"}}')
        return "dino/config.json has an auto_map"
    if how == "no lpips":
        lpips.unlink()
        return "has no lpips/lpips.safetensors. booth_service/evaluation/lpips.py says how it is made."
    if how == "half of lpips":
        save_file({name: torch.ones(shape) for name, shape in LPIPS_TENSORS.items() if name != "lin.3.weight"}, lpips)
        return "lpips.safetensors has no tensor lin.3.weight"
    if how == "another head":
        save_file({"context.weight": torch.ones(2, 16), "context.bias": torch.ones(2)}, heads)
        return "has context.bias in the shape [2], not [3]"
    weights = load_file(copy / "dino/model.safetensors")
    weights["layernorm.bias"][3] = torch.nan
    save_file(weights, copy / "dino/model.safetensors", {"format": "pt"})
    return "dino/model.safetensors has values that are not finite in layernorm.bias"


WAYS = "no spec, bad spec, no tokenizer, no folder, own code, no lpips, half of lpips, another head, nan"


@pytest.mark.parametrize("how", WAYS.split(", "))
def test_a_suite_that_could_not_be_used_is_refused(add, copy, how):
    said = spoiled(copy, how)
    code, _, complaint = add("tiny", str(copy))
    assert code == 1
    assert said in complaint
    with Database(add.url).read() as session:
        assert encoder_suites.current(session) == []


def test_a_missing_suite_says_how_to_get_it(add, whole):
    add("tiny", str(whole))
    with Database(add.url).read() as session:
        for name, how in (
            ("paper", "encoders add paper --subject facebook/dino-vits16 --clip openai/clip-vit-base-patch32 --perc"),
            ("tinyworld", "encoders add tinyworld examples/tinyworld/encoders"),
            ("mine", "encoders add mine FOLDER"),
        ):
            with pytest.raises(ProblemError) as caught:
                encoder_suites.named(session, name)
            assert how in caught.value.remedy
            assert (caught.value.code, caught.value.detail) == ("not_found", "Suites that are there: tiny.")


def test_users_see_the_suites(plane, user):
    assert user.http.get("/v1/encoder-suites").json() == {"suites": []}
    told = json.loads(suite_source.PAPER.read_bytes())
    with plane.database.write() as session:
        encoder_suites.register(
            session, "paper", SuiteSpec.model_validate(told), [], source="clip a/b", now=datetime.now(UTC)
        )
    [suite] = user.http.get("/v1/encoder-suites").json()["suites"]
    assert (suite["name"], suite["source"], suite["heads"], suite["bytes"]) == ("paper", "clip a/b", [], 0)
