"""Suites: their vectors against transformers' own, their distances and labels, and what a bad folder says."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_suite import IMAGENET, LABELS, SIDE_PX, spec, write_tiny_suite
from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer, ResNetModel, ViTModel

from booth_service.errors import EncoderError, ScoreError
from booth_service.evaluation import encoders
from booth_service.evaluation.encoders import load_suite
from booth_service.evaluation.preprocessing import square, tensors


def picture(seed: int, size=(48, 40)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1] // 8, size[0] // 8, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_suite(tmp_path_factory.mktemp("suite"))


@pytest.fixture(scope="module")
def suite(folder):
    return load_suite(folder)


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


def normalised(vectors):
    return torch.nn.functional.normalize(vectors.detach(), dim=1)


def test_pictures_are_scaled_cut_and_normalised_as_transformers_does(suite):
    how = suite.spec.subject
    own = CLIPImageProcessorPil(
        size={"shortest_edge": how.resize_px},
        crop_size={"height": SIDE_PX, "width": SIDE_PX},
        image_mean=IMAGENET["mean"],
        image_std=IMAGENET["std"],
    )
    images = [picture(1, (160, 80)), picture(2, (40, 96)), picture(3, (16, 16))]
    expected = own(images, return_tensors="pt").pixel_values
    assert expected.shape == (3, 3, SIDE_PX, SIDE_PX)
    assert torch.allclose(tensors(images, how), expected, atol=1e-5)
    assert {square(image, how).size for image in images} == {(SIDE_PX, SIDE_PX)}


def test_subject_vectors_are_dino_s_first_token(folder, suite):
    images = [picture(seed) for seed in range(3)]
    own = ViTModel.from_pretrained(folder / "dino", add_pooling_layer=False)
    expected = own(pixel_values=tensors(images, suite.spec.subject)).last_hidden_state[:, 0]
    assert torch.allclose(suite.subject_vectors(images), normalised(expected), atol=1e-6)


def test_clip_vectors_are_the_projected_ones(folder, suite):
    own = CLIPModel.from_pretrained(folder / "clip")
    images, texts = [picture(4), picture(5)], ["a photo of a dog in the snow", "a cat"]
    tokens = CLIPTokenizer.from_pretrained(folder / "clip")(texts, padding=True, return_tensors="pt")
    output = own(**tokens, pixel_values=tensors(images, suite.spec.clip))
    assert torch.allclose(suite.clip_image_vectors(images), output.image_embeds, atol=1e-6)
    assert torch.allclose(suite.clip_text_vectors(texts), output.text_embeds, atol=1e-6)


def test_a_vector_does_not_depend_on_what_stands_beside_it(suite, monkeypatch):
    images = [picture(seed) for seed in range(5)]
    texts = ["a dog", "a photo of a small red teapot on a wooden floor", "a cat in the sea"]
    whole = suite.subject_vectors(images), suite.clip_text_vectors(texts)
    monkeypatch.setattr(encoders, "BATCH", 2)
    assert torch.allclose(suite.subject_vectors(images), whole[0], atol=1e-6)
    assert torch.allclose(suite.clip_text_vectors(texts), whole[1], atol=1e-6)
    assert torch.equal(suite.subject_vectors(images), suite.subject_vectors(images))


def test_too_long_a_text_is_cut(suite):
    assert suite.clip_text_vectors(["a dog " * 100]).shape == (1, 12)


def test_distances_are_of_the_pairs_in_order(suite, monkeypatch):
    a, b, c = picture(6), picture(7), picture(8)
    found = suite.perceptual_distances([a, a, b, a], [b, c, c, a])
    assert found[3] == 0
    assert bool((found[:3] > 0).all())
    assert suite.perceptual_distances([c], [b])[0] == pytest.approx(float(found[2]), rel=1e-5)
    monkeypatch.setattr(encoders, "BATCH", 3)
    assert torch.allclose(suite.perceptual_distances([a, a, b, a], [b, c, c, a]), found)
    with pytest.raises(EncoderError, match="2 pictures beside 1"):
        suite.perceptual_distances([a, b], [c])


def test_labels_are_those_of_the_heads(folder, suite):
    images = [picture(seed) for seed in range(6)]
    pooled = (
        ResNetModel.from_pretrained(folder / "lpips")
        .eval()(pixel_values=tensors(images, suite.spec.attributes))
        .pooler_output.flatten(1)
    )
    heads = load_file(folder / "lpips" / "heads.safetensors")
    best = (pooled @ heads["context.weight"].T + heads["context.bias"]).argmax(1)
    assert suite.attributes(images) == {"context": [LABELS[int(place)] for place in best]}
    assert suite.phrases("context") == {"in the jungle": "jungle", "on the beach": "beach"}
    assert suite.phrases("noun") == {}


def test_a_suite_without_heads_sees_no_attributes(tmp_path):
    suite = load_suite(write_tiny_suite(tmp_path, with_heads=False))
    assert suite.attributes([picture(1)]) == {}
    assert suite.phrases("context") == {}
    assert "attributes" not in suite.describe()


def test_pictures_of_any_size_and_mode_are_taken(suite):
    modes = [picture(1).convert(mode) for mode in ("RGB", "L", "P", "RGBA", "CMYK")]
    sizes = [picture(2, size) for size in ((16, 16), (200, 24), (24, 800))]
    assert suite.subject_vectors([*modes, *sizes]).shape == (8, 16)
    clear = Image.new("RGBA", (40, 40), (255, 0, 0, 0))
    assert torch.equal(tensors([clear], suite.spec.clip), torch.ones(1, 3, SIDE_PX, SIDE_PX))  # white


def test_nothing_in_gives_nothing_to_score(suite):
    for encode in (suite.subject_vectors, suite.clip_image_vectors, suite.clip_text_vectors):
        with pytest.raises(ScoreError, match="there is none"):
            encode([])
    assert suite.perceptual_distances([], []).shape == (0,)


def test_a_report_says_what_was_used(suite):
    told = suite.describe()
    assert told["subject encoder"].startswith("ViTModel (")
    assert "first token" in told["subject encoder"]
    assert "shorter side scaled to 40 px (bicubic, antialiased), centre 32 px" in told["subject encoder"]
    assert "hidden states of ResNetModel" in told["perceptual"]
    assert "context (3 labels)" in told["attributes"]


def test_nan_weights_are_found_by_the_first_picture(copy):
    path = copy / "dino" / "model.safetensors"
    weights = load_file(path)
    weights["embeddings.cls_token"].fill_(torch.nan)
    save_file(weights, path, {"format": "pt"})
    with pytest.raises(ScoreError, match="subject vectors: row 0 holds values that are not finite"):
        load_suite(copy).subject_vectors([picture(1)])


def test_a_missing_tensor_is_named(copy):
    path = copy / "clip" / "model.safetensors"
    weights = load_file(path)
    del weights["visual_projection.weight"]
    save_file(weights, path, {"format": "pt"})
    with pytest.raises(EncoderError, match=r"clip: its weights lack visual_projection.weight"):
        load_suite(copy)


def test_a_pooled_vector_needs_a_pooler(copy):
    told = spec()
    told["subject"]["vector"] = "pooled"
    (copy / "encoders.json").write_text(json.dumps(told))
    with pytest.raises(EncoderError, match=r"dino: its weights lack pooler.dense"):
        load_suite(copy)


def test_a_bad_folder_says_what_is_wrong(copy, tmp_path):
    def refused(said: str) -> None:
        with pytest.raises(EncoderError, match=said):
            load_suite(copy)

    with pytest.raises(EncoderError, match=r"has no encoders.json: it is not a suite"):
        load_suite(tmp_path)
    (copy / "lpips" / "heads.safetensors").write_bytes(b"cut")
    refused(r"heads.safetensors is damaged.*Fetch it again")
    save_file({"context.weight": torch.ones(2, 16), "context.bias": torch.ones(2)}, copy / "lpips/heads.safetensors")
    refused(r"context has 2 rows, and encoders.json 3 labels")
    save_file({"noun.weight": torch.ones(3, 16)}, copy / "lpips/heads.safetensors")
    refused(r"has no context.weight and context.bias")
    (copy / "clip" / "vocab.json").unlink()
    (copy / "clip" / "tokenizer.json").unlink(missing_ok=True)
    refused("has no CLIP tokenizer")
    (copy / "dino" / "model.safetensors").unlink()
    refused("dino cannot be loaded as a AutoModel")
    shutil.rmtree(copy / "dino")
    refused("names the folder dino, which is not beside it")
    (copy / "encoders.json").write_text(json.dumps(spec() | {"clip": {"folder": "../clip"}}))
    refused("does not describe a suite")
