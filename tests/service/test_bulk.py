"""The spine of a generation's attempt, on a real object store and a real HTTP server: nothing is drawn twice."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from class_sets import flip_a_byte
from listening_plane import ListeningPlane, listening_plane
from pydantic import SecretStr
from stored_base import store_base
from tiny_base import write_tiny_base

from booth.contract.bulk import DrawnBlock, GenerationBrief, GenerationManifest, Prompts
from booth.contract.serving import Draw, DrawRequest, ModelRef
from booth_service import bulk
from booth_service.beats import RunLine
from booth_service.errors import AttemptEnded, StorageError
from booth_service.inference.bulk_blocks import BulkTask, BulkWork, Drawer
from booth_service.settings import Settings
from booth_service.storage import keys
from booth_service.storage.generation_blocks import read_blocks
from booth_service.storage.s3 import ObjectStore

pytestmark = pytest.mark.s3

PROMPTS = ["a photo of a teapot", "a photo of a cat", "a photo of a dog"]


@pytest.fixture
def control_plane() -> Iterator[ListeningPlane]:
    with listening_plane() as server:
        yield server


@dataclass
class Here:
    """Draws one block after the other in this process, and remembers which. After `dies_after` of them it raises."""

    drawn: list[BulkTask] = field(default_factory=list)
    dies_after: int | None = None

    def __call__(self, work: BulkWork, tasks: Sequence[BulkTask]) -> Iterator[DrawnBlock]:
        drawer = Drawer(work)
        for task in tasks:
            if len(self.drawn) == self.dies_after:
                raise KeyboardInterrupt
            self.drawn.append(task)
            yield drawer.draw(task)


@dataclass
class Attempts:
    """Attempts of one generation: nine pictures in blocks of four."""

    store: ObjectStore
    line: RunLine
    settings: Settings
    brief: GenerationBrief

    @property
    def prefix(self) -> str:
        return keys.generation(self.brief.tenant_id, self.brief.generation_id)

    def run(self, make: Here, **changes: Any) -> Here:
        bulk.run(self.brief.model_copy(update=changes), self.line, self.settings, make, use_gpu=False)
        return make

    def stored(self) -> dict[str, bytes]:
        return {key.removeprefix(self.prefix): self.store.get(key) for key in self.store.keys(self.prefix)}

    def blocks(self) -> dict[int, DrawnBlock]:
        return read_blocks(self.store, self.prefix, [0, 4, 8])


@pytest.fixture
def attempts(
    object_store: ObjectStore, control_plane: ListeningPlane, tmp_path: Path, request: pytest.FixtureRequest
) -> Attempts:
    files = store_base(object_store, write_tiny_base(tmp_path / "tiny"))
    model = ModelRef(model_id="base", base_model="tiny", base_files=files)
    settings = {"guidance_scale": 3.0, "num_inference_steps": 2, "width": 32, "height": 32}
    prompts = Prompts(prompts=PROMPTS).model_dump_json().encode()
    brief = GenerationBrief(
        generation_id="gen-1", tenant_id=f"bulk-{request.node.name}", attempt=1, fence=3,
        request=DrawRequest(model=model, draws=[], **settings), prompts_sha256=hashlib.sha256(prompts).hexdigest(),
        num_images=3, seed=2**63 - 1, negative_prompt="a cat", block_size=4, total=9, serving_gpus=0.0,
    )  # fmt: skip
    line = RunLine(f"http://127.0.0.1:{control_plane.server_port}", SecretStr("secret"), "gen-1", 1)
    config = Settings(
        s3_bucket=object_store.bucket,
        s3_endpoint_url=object_store.client.meta.endpoint_url,
        scratch_dir=str(tmp_path / "scratch"),
    )
    found = Attempts(object_store, line, config, brief)
    object_store.put(keys.generation_prompts(found.prefix), prompts)
    return found


def manifest_in(attempts: Attempts, control_plane: ListeningPlane) -> GenerationManifest:
    """The one that was reported last."""
    path, report = control_plane.said[-1]
    assert path == "/internal/runs/gen-1/1/done"
    return GenerationManifest.model_validate_json(attempts.store.get(report["manifest_key"], report["manifest_sha256"]))


def test_every_picture_is_drawn_once_from_its_own_seed_and_named(
    attempts: Attempts, control_plane: ListeningPlane
) -> None:
    make = attempts.run(Here())
    assert [task.first for task in make.drawn] == [0, 4, 8]
    draws = [draw for task in make.drawn for draw in task.draws]
    assert draws == [
        Draw(prompt=prompt, negative_prompt="a cat", seed=seed) for prompt in PROMPTS for seed in (2**63 - 1, 0, 1)
    ]
    manifest = manifest_in(attempts, control_plane)
    assert [picture.index for picture in manifest.pictures] == list(range(9))
    assert {picture.batch_size for picture in manifest.pictures} == {4}  # the last block's one picture too
    assert len({picture.sha256 for picture in manifest.pictures}) == 9
    for picture in manifest.pictures:
        attempts.store.get(picture.key, picture.sha256)
    assert control_plane.beats[-1] == ("drawing", 9)


def test_an_attempt_that_follows_draws_what_is_missing_alone_to_equal_bits(
    attempts: Attempts, control_plane: ListeningPlane
) -> None:
    with pytest.raises(KeyboardInterrupt):
        attempts.run(Here(dies_after=2))
    left = attempts.stored()
    make = attempts.run(Here(), attempt=2)
    assert [task.first for task in make.drawn] == [8]
    after = attempts.stored()
    assert {key: after[key] for key in left} == left
    undisturbed = attempts.brief.model_copy(update={"generation_id": "gen-2"})
    prompts = attempts.store.get(keys.generation_prompts(attempts.prefix))
    attempts.brief = undisturbed
    attempts.store.put(keys.generation_prompts(attempts.prefix), prompts)
    attempts.run(Here())
    pictures = {key: body for key, body in attempts.stored().items() if key.endswith(".png")}
    assert pictures == {key: body for key, body in after.items() if key.endswith(".png")}
    assert len(pictures) == 9


@pytest.mark.parametrize("damage", ["flipped", "gone", "no record"])
def test_a_damaged_block_is_drawn_again(attempts: Attempts, control_plane: ListeningPlane, damage: str) -> None:
    attempts.run(Here())
    before, block = attempts.stored(), attempts.blocks()[4]
    if damage == "flipped":
        flip_a_byte(attempts.store, block.pictures[1].key)
    elif damage == "gone":
        attempts.store.delete(block.pictures[1].key)
    else:
        flip_a_byte(attempts.store, keys.generation_block(attempts.prefix, 4))
        attempts.store.put(keys.generation_block(attempts.prefix, 4), b"{")
    make = attempts.run(Here(), attempt=1)
    assert [task.first for task in make.drawn] == [4]
    assert attempts.stored() == before


def test_an_attempt_that_nobody_wants_stops_at_its_next_block(
    attempts: Attempts, control_plane: ListeningPlane
) -> None:
    control_plane.desired = "cancel"
    make = Here()

    class Told(Here):
        def __call__(self, work: BulkWork, tasks: Sequence[BulkTask]) -> Iterator[DrawnBlock]:
            for block in make(work, tasks):
                while not control_plane.beats or control_plane.beats[-1][0] != "drawing":
                    pass  # until the answer to a beat is on its way
                yield block

    with pytest.raises(AttemptEnded):
        attempts.run(Told())
    assert len(make.drawn) < 3
    assert not any(path.endswith("/done") for path, _ in control_plane.said)


def test_prompts_that_are_not_the_recorded_ones_are_not_drawn(attempts: Attempts) -> None:
    flip_a_byte(attempts.store, keys.generation_prompts(attempts.prefix))
    make = Here()
    with pytest.raises(StorageError, match="prompts"):
        attempts.run(make)
    assert make.drawn == []
