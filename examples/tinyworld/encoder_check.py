"""What the encoders can be trusted with: measured on identities that they never saw, drawn and drawn-then-decoded."""

from pathlib import Path

import torch
import torch.nn.functional as F
from encoder_data import HELD_OUT_SEED, LABELS, Pictures, normalised, rendered, through_autoencoder, views_of_identities
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModel, CLIPModel, CLIPTokenizer
from world import CONTEXTS, NOUNS, PLAIN, SUBJECTS, Scene

IDENTITIES, VIEWS = 200, 3
VIEWS_OF_A_SUBJECT = 8
Validity = dict[str, dict[str, float]]


def check(folder: Path) -> Validity:
    """The suite's validity on renders and on renders that went through the base model's autoencoder; printed too."""
    others = rendered(views_of_identities(IDENTITIES, VIEWS, HELD_OUT_SEED), VIEWS)
    subjects = rendered(views_of_subjects(), VIEWS_OF_A_SUBJECT)
    validity = {
        "renders": measured(folder, others, subjects),
        "after the autoencoder": measured(folder, decoded(others), decoded(subjects)),
    }
    for name in next(iter(validity.values())):
        print(f"{name:52}" + "".join(f"  {kind}: {values[name]:.3f}" for kind, values in validity.items()))
    return validity


def views_of_subjects() -> list[Scene]:
    """Each subject once in each context, in poses that none of its photos has."""
    return [
        Scene(subject.noun, subject.identity, context, hat=False, seed=HELD_OUT_SEED + 17 * number)
        for subject in SUBJECTS
        for number, context in enumerate(CONTEXTS)
    ]


def decoded(pictures: Pictures) -> Pictures:
    return Pictures(pictures.scenes, pictures.views, through_autoencoder(pictures.pixels))


@torch.no_grad()
def measured(folder: Path, others: Pictures, subjects: Pictures) -> dict[str, float]:
    """Figures in [-1, 1] by name: cosines, areas under the curve and accuracies."""
    other_vectors, subject_vectors = vectors(folder, others), vectors(folder, subjects)
    same, different = same_and_different(other_vectors, others)
    same_subject, _ = same_and_different(subject_vectors, subjects)
    is_noun = subjects.labels("noun")[:, None] == others.labels("noun")[None]
    not_subject = (subject_vectors @ other_vectors.T)[is_noun]
    figures = {
        "unseen identities: same instance, cosine": same.mean(),
        "unseen identities: others of the noun, cosine": different.mean(),
        "unseen identities: area under the curve": area_under_curve(same, different),
        "subjects: same instance, cosine": same_subject.mean(),
        "subjects: others of the noun, cosine": not_subject.mean(),
        "subjects: area under the curve": area_under_curve(same_subject, not_subject),
        **attributes_right(folder, others),
        **captions_right(folder, others),
    }
    return {name: round(float(value), 4) for name, value in figures.items()}


def vectors(folder: Path, pictures: Pictures) -> Tensor:
    """The subject encoder's unit vectors, (N, D)."""
    model = AutoModel.from_pretrained(folder / "subject", dtype=torch.float32).eval()
    return F.normalize(model(normalised(pictures.pixels)).pooler_output.flatten(1), dim=1)


def same_and_different(rows: Tensor, pictures: Pictures) -> tuple[Tensor, Tensor]:
    """Cosines of two pictures of one instance, and of two instances of one noun."""
    instance = torch.arange(len(rows)) // pictures.views
    noun = pictures.labels("noun")
    pair = torch.ones(len(rows), len(rows), dtype=torch.bool).triu(1)
    is_same = instance[:, None] == instance[None]
    is_other = (noun[:, None] == noun[None]) & ~is_same
    cosines = rows @ rows.T
    return cosines[pair & is_same], cosines[pair & is_other]


def area_under_curve(same: Tensor, different: Tensor) -> float:
    """Probability that a pair of one instance is closer than a pair of two (ties count half), in [0, 1]."""
    ordered = different.sort().values
    below = torch.searchsorted(ordered, same) + torch.searchsorted(ordered, same, right=True)
    return (below.double() / 2 / len(ordered)).mean().item()


def attributes_right(folder: Path, pictures: Pictures) -> dict[str, float]:
    """Share of pictures whose label each head names."""
    backbone = AutoModel.from_pretrained(folder / "attributes", dtype=torch.float32).eval()
    heads = {name: tensor.float() for name, tensor in load_file(folder / "attributes" / "heads.safetensors").items()}
    pooled = backbone(normalised(pictures.pixels)).pooler_output.flatten(1)
    named = {head: F.linear(pooled, heads[f"{head}.weight"], heads[f"{head}.bias"]).argmax(1) for head in LABELS}
    return {f"{head}: right": (named[head] == pictures.labels(head)).float().mean().item() for head in LABELS}


def captions_right(folder: Path, pictures: Pictures) -> dict[str, float]:
    """CLIP-T of the right caption against those of the seven other contexts, and against the seven other nouns."""
    model = CLIPModel.from_pretrained(folder / "clip", dtype=torch.float32).eval()
    tokenizer = CLIPTokenizer.from_pretrained(folder / "clip")
    prompts = [f"a {noun} {phrase}" for noun in NOUNS for phrase in CONTEXTS.values()]
    tokens = tokenizer(prompts, padding="max_length", return_tensors="pt")
    text = F.normalize(model.get_text_features(**tokens).pooler_output, dim=1).view(len(NOUNS), len(CONTEXTS), -1)
    images = F.normalize(model.get_image_features(normalised(pictures.pixels)).pooler_output, dim=1)
    shown = [n for n, scene in enumerate(pictures.scenes) if scene.context != PLAIN]
    cosines = torch.einsum("id,ncd->inc", images[shown], text)
    row = torch.arange(len(shown))
    noun, context = pictures.labels("noun")[shown], pictures.labels("context")[shown]
    right = cosines[row, noun, context]
    wrong = (cosines[row, noun].sum(1) - right) / (len(CONTEXTS) - 1)
    return {
        "CLIP-T of the right caption": right.mean().item(),
        "CLIP-T of captions with another context": wrong.mean().item(),
        "CLIP-T: right context of eight": (cosines[row, noun].argmax(1) == context).float().mean().item(),
        "CLIP-T: right noun of eight": (cosines[row, :, context].argmax(1) == noun).float().mean().item(),
    }
