"""The spine of an evaluation's attempt, on a real object store and a real HTTP server: nothing is drawn or encoded
twice, and a report is stored."""

import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from class_sets import flip_a_byte
from control_plane import photo, put_file
from listening_plane import ListeningPlane, listening_plane
from PIL import Image
from pydantic import SecretStr
from safetensors.torch import load_file, save_file
from stored_base import store_base
from tiny_base import write_tiny_base
from tiny_suite import write_tiny_suite

from booth.contract.attempts import StoredFile
from booth.contract.bulk import DrawnBlock
from booth.contract.evaluation import Arm, EvaluationBrief, Report
from booth.contract.prompt_sets import cases
from booth.contract.serving import DrawRequest, ModelRef
from booth_service import beats, evaluate
from booth_service.beats import RunLine
from booth_service.errors import AttemptEnded, EncoderError, ScoreError
from booth_service.evaluation.encoders import load_suite
from booth_service.evaluation.encoding import Encoded, Encoder, EncodingTask, EncodingWork
from booth_service.evaluation.vectors import vectors_of
from booth_service.inference.bulk_blocks import ArmTask, BulkWork, drawer_of_arms
from booth_service.settings import Settings
from booth_service.storage import keys
from booth_service.storage.s3 import ObjectStore

pytestmark = pytest.mark.s3

TEMPLATES = ["a photo of a {subject} in the jungle", "a photo of a {subject} on the beach"]
ARM_TOTAL, TOTAL = 2 * 2 + 3, 7 + 7 + 4


@pytest.fixture
def control_plane() -> Iterator[ListeningPlane]:
    with listening_plane() as server:
        yield server


@dataclass
class Here:
    """Draws and encodes one block after the other in this process, and remembers which. After so many it raises."""

    drawn: list[ArmTask] = field(default_factory=list)
    encoded: list[EncodingTask] = field(default_factory=list)
    draws_at_most: int = 99
    encodes_at_most: int = 99

    def draw(self, works: Sequence[BulkWork], tasks: Sequence[ArmTask]) -> Iterator[tuple[int, DrawnBlock]]:
        draw = drawer_of_arms(works)
        for task in tasks:
            if len(self.drawn) == self.draws_at_most:
                raise KeyboardInterrupt
            self.drawn.append(task)
            yield draw(task)

    def encode(self, work: EncodingWork, tasks: Sequence[EncodingTask | None]) -> Iterable[Encoded]:
        encoder = Encoder(work)
        for task in tasks:
            if len(self.encoded) == self.encodes_at_most:
                raise KeyboardInterrupt
            if task is not None:
                self.encoded.append(task)
            yield encoder.encode(task)


@dataclass
class Attempts:
    """Attempts of one evaluation: two prompts of two pictures, three of the class, in blocks of four."""

    store: ObjectStore
    line: RunLine
    settings: Settings
    brief: EvaluationBrief

    @property
    def prefix(self) -> str:
        return keys.evaluation(self.brief.tenant_id, self.brief.evaluation_id)

    def run(self, here: Here | None = None, **changes: Any) -> Here:
        here = here or Here()
        pools = evaluate.Pools(here.draw, here.encode)
        evaluate.run(self.brief.model_copy(update=changes), self.line, self.settings, pools, use_gpu=False)
        return here

    def stored(self) -> dict[str, bytes]:
        return {key.removeprefix(self.prefix): self.store.get(key) for key in self.store.keys(self.prefix)}

    def report(self, attempt: int = 1) -> Report:
        return Report.model_validate_json(self.store.get(keys.report_file(self.prefix, attempt, "report.json")))


def arms(ref: ModelRef) -> list[Arm]:
    """The "model" is the base itself, asked for another subject, so that arms differ in their prompts alone."""
    settings = {"guidance_scale": 3.0, "num_inference_steps": 2, "width": 32, "height": 32}
    request = DrawRequest(model=ref, draws=[], **settings)
    shared = {"request": request, "class_prompt": "a photo of a teapot"}
    plain = [each.model_copy(update={"prompt": each.text}) for each in cases(TEMPLATES, "", "teapot")]
    described = cases(TEMPLATES, "", "teapot", phrase="blue dog")
    return [
        Arm(name="sks teapot", kind="model", step=7, cases=cases(TEMPLATES, "sks", "teapot"), **shared),
        Arm(name="frozen base", kind="base", cases=plain, **shared),
        Arm(name="described", kind="described", cases=described, **shared),
    ]


@pytest.fixture
def suite_folder(tmp_path: Path) -> Path:
    return write_tiny_suite(tmp_path / "suite")


def stored_suite(store: ObjectStore, folder: Path) -> list[StoredFile]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return [put_file(store, path.relative_to(folder).as_posix(), path.read_bytes()) for path in files]


@pytest.fixture
def attempts(
    object_store: ObjectStore,
    control_plane: ListeningPlane,
    tmp_path: Path,
    suite_folder: Path,
    request: pytest.FixtureRequest,
) -> Attempts:
    files = store_base(object_store, write_tiny_base(tmp_path / "tiny"))
    photos = []
    for number in range(3):
        body = photo(seed=number, size=(96, 64))  # of another size than what is drawn
        photos.append(put_file(object_store, f"{number:02d}.png", body))
    brief = EvaluationBrief(
        evaluation_id="eval-1", tenant_id=f"evaluate-{request.node.name}", attempt=1, fence=3, subject="teapot",
        arms=arms(ModelRef(model_id="base", base_model="tiny", base_files=files)), photos=photos, suite="tiny",
        suite_files=stored_suite(object_store, suite_folder), num_images=2, num_class_images=3, seed=2**63 - 1,
        block_size=4, total=TOTAL, serving_gpus=0.0, settings={"base model": "tiny"},
    )  # fmt: skip
    line = RunLine(f"http://127.0.0.1:{control_plane.server_port}", SecretStr("secret"), "eval-1", 1)
    config = Settings(
        s3_bucket=object_store.bucket,
        s3_endpoint_url=object_store.client.meta.endpoint_url,
        scratch_dir=str(tmp_path / "scratch"),
    )
    return Attempts(object_store, line, config, brief)


def test_every_arm_is_drawn_encoded_and_scored_and_the_report_stored(
    attempts: Attempts, control_plane: ListeningPlane, suite_folder: Path
) -> None:
    here = attempts.run()
    assert [(task.arm, task.task.first) for task in here.drawn] == [(0, 0), (0, 4), (1, 0), (1, 4), (2, 0)]
    first, second = here.drawn[0].task.draws, here.drawn[1].task.draws
    assert [(draw.prompt, draw.seed) for draw in first] == [
        (f"a photo of a sks teapot {place}", seed)
        for place in ("in the jungle", "on the beach")
        for seed in (2**63 - 1, 0)
    ]
    assert [(draw.prompt, draw.seed) for draw in second] == [
        ("a photo of a teapot", seed) for seed in (2**63 - 1, 0, 1)
    ]

    report = attempts.report()
    assert [row.arm for row in report.rows] == ["sks teapot", "frozen base", "described"]
    model, base, described = (row.score for row in report.rows)
    assert [len(score.pictures) for score in (model, base, described)] == [4, 4, 4]
    assert described.pres == base.pres == model.pres  # the same weights drew the same class pictures
    assert described.dino != base.dino
    assert None not in (model.dino, model.clip_i, model.clip_t, model.div, model.ceiling_dino)
    assert report.settings["suite"] == "tiny"
    assert "ceiling" in report.definitions

    pictures = [Image.open(io.BytesIO(attempts.store.get(each.key, each.sha256))) for each in model.pictures]
    photos = [Image.open(io.BytesIO(attempts.store.get(each.key))) for each in attempts.brief.photos]
    suite = load_suite(suite_folder)
    drawn, real = (vectors_of(suite, images).subject for images in (pictures, photos))
    assert model.dino == pytest.approx(float((drawn @ real.T).mean()), abs=1e-5)

    names = {key.rsplit("/", 1)[-1] for key in attempts.stored() if "/report-a1/" in key}
    assert names == {"report.json", "report.html", "sheet.png"}
    path, done = control_plane.said[-1]
    assert path == "/internal/runs/eval-1/1/done"
    attempts.store.get(done["manifest_key"], done["manifest_sha256"])
    assert control_plane.beats[-1] == ("reporting", 1)


def test_attempts_that_follow_draw_and_encode_what_is_missing_alone(attempts: Attempts) -> None:
    with pytest.raises(KeyboardInterrupt):
        attempts.run(Here(draws_at_most=3))
    left = attempts.stored()
    second = Here(encodes_at_most=2)
    with pytest.raises(KeyboardInterrupt):
        attempts.run(second, attempt=2)
    assert [(task.arm, task.task.first) for task in second.drawn] == [(1, 4), (2, 0)]
    third = attempts.run(Here(), attempt=3)
    assert third.drawn == []
    assert [(task.arm, task.first) for task in third.encoded] == [(1, 0), (1, 4), (2, 0)]
    after = attempts.stored()
    assert {key: after[key] for key in left} == left

    assert [len(row.score.pictures) for row in attempts.report(3).rows] == [4, 4, 4]
    fresh = attempts.brief.model_copy(update={"evaluation_id": "eval-2"})
    resumed = attempts.report(3)
    attempts.brief = fresh
    attempts.run()
    figures = [[row.score.dino, row.score.clip_t, row.score.pres, row.score.div] for row in resumed.rows]
    assert [
        [row.score.dino, row.score.clip_t, row.score.pres, row.score.div] for row in attempts.report().rows
    ] == figures


@pytest.mark.parametrize(
    ("how", "damaged", "drawn", "encoded"),
    [
        ("flipped", "pictures/000001", [(0, 0)], []),
        ("gone", "encoded/", [], [(0, 0)]),
        ("flipped", "thumbnails/", [], [(0, 0)]),
    ],
)
def test_what_is_damaged_or_lost_is_made_again(
    attempts: Attempts, how: str, damaged: str, drawn: list[Any], encoded: list[Any]
) -> None:
    attempts.run()
    before = attempts.stored()
    key = attempts.prefix + next(key for key in before if f"/arms/00/{damaged}" in key and "00.json" not in key)
    flip_a_byte(attempts.store, key) if how == "flipped" else attempts.store.delete(key)
    here = attempts.run()
    assert [(task.arm, task.task.first) for task in here.drawn] == drawn
    assert [(task.arm, task.first) for task in here.encoded] == encoded
    assert attempts.stored() == before


@pytest.mark.parametrize("phase", ["drawing", "encoding"])
def test_an_attempt_that_nobody_wants_stops(
    attempts: Attempts, control_plane: ListeningPlane, phase: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(beats, "IDLE_BEAT_INTERVAL_S", 0.1)
    monkeypatch.setattr(beats, "BEAT_INTERVAL_S", 0.1)
    here = Here()

    def told(made: Iterable[Any]) -> Iterator[Any]:
        for each in made:
            control_plane.desired = "cancel"
            control_plane.wait_for_another_beat()
            yield each

    pools = evaluate.Pools(
        (lambda *asked: told(here.draw(*asked))) if phase == "drawing" else here.draw,
        (lambda *asked: told(here.encode(*asked))) if phase == "encoding" else here.encode,
    )
    with pytest.raises(AttemptEnded):
        evaluate.run(attempts.brief, attempts.line, attempts.settings, pools, use_gpu=False)
    assert not any(path.endswith("/done") for path, _ in control_plane.said)


def test_contexts_that_no_photo_shows_are_told_by_the_head(attempts: Attempts, suite_folder: Path) -> None:
    attempts.run()
    photos = [Image.open(io.BytesIO(attempts.store.get(each.key))) for each in attempts.brief.photos]
    seen = set(load_suite(suite_folder).attributes(photos)["context"])
    told = [case.is_unseen for case in attempts.report().rows[0].score.cases]
    assert told == ["jungle" not in seen, "beach" not in seen]
    attempts.run(is_unseen_told=True)
    assert not any(case.is_unseen for case in attempts.report().rows[0].score.cases)


def test_a_broken_suite_and_vectors_that_are_not_finite_end_it_by_name(attempts: Attempts, suite_folder: Path) -> None:
    weights = suite_folder / "dino" / "model.safetensors"
    tensors = load_file(weights)
    save_file({name: torch.full_like(each, float("nan")) for name, each in tensors.items()}, weights)
    files = stored_suite(attempts.store, suite_folder)
    with pytest.raises(ScoreError, match="row 0 holds values that are not finite"):
        attempts.run(suite_files=files)
    with pytest.raises(EncoderError, match=r"encoders\.json"):
        attempts.run(suite_files=[each for each in files if each.path != "encoders.json"])


def test_without_class_pictures_there_is_no_pres(attempts: Attempts) -> None:
    attempts.run(num_class_images=0, total=12)
    assert [row.score.pres for row in attempts.report().rows] == [None, None, None]
