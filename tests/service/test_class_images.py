"""The class images of an attempt: found, waited for or made, and what the control plane and the owner hear of it."""

import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import pytest
from class_sets import Here, flip_a_byte
from stored_base import store_base
from tiny_base import write_tiny_base
from tiny_job import PARAMS, RECIPE
from world import SUBJECTS, render

from booth.contract.attempts import Brief, ClassPhoto, ClassSetLease
from booth.contract.jobs import WAITING_PHASE, Progress
from booth_service import class_images
from booth_service.class_images import ClassDesk, prepare_class_images, wanted_of
from booth_service.errors import AttemptEnded, StorageError
from booth_service.prior.blocks import Place, store_pictures
from booth_service.storage.s3 import ObjectStore

pytestmark = pytest.mark.s3


@dataclass
class Leases:
    """Stands where the line to the control plane is: one lease for each set, several attempts."""

    holders: dict[str, str] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)
    is_away: int = 0

    def line(self, me: str) -> "Line":
        return Line(self, me)


@dataclass
class Line:
    leases: Leases
    me: str
    claims: int = 0

    def claim_class_set(self, address: str) -> ClassSetLease:
        self.claims += 1
        with self.leases.lock:
            if self.leases.is_away:
                self.leases.is_away -= 1
                raise httpx2.ConnectError("refused")
            holder = self.leases.holders.setdefault(address, self.me)
        return ClassSetLease(holder=None if holder == self.me else f"job {holder}")

    def release_class_set(self, address: str) -> None:
        with self.leases.lock:
            assert self.leases.holders.pop(address) == self.me


@dataclass
class Said:
    """Stands where the pulse is. `stops` raises at the next check."""

    progress: list[Progress] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    stops: bool = False

    def say(self, progress: Progress, note: str | None = None, warning: str | None = None) -> None:
        self.progress.append(progress)
        self.notes += [note] if note else []
        self.warnings += [warning] if warning else []

    def check(self) -> None:
        if self.stops:
            raise AttemptEnded("asked to stop")


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(class_images, "LEASE_POLL_S", 0.01)


@pytest.fixture
def brief(object_store: ObjectStore, tmp_path: Path, request: pytest.FixtureRequest) -> Brief:
    return Brief(
        job_id="job",
        tenant_id=f"t-{request.node.name}",
        attempt=1,
        fence=1,
        params=PARAMS,
        photos=[],
        base_model="tiny",
        base_files=store_base(object_store, write_tiny_base(tmp_path / "tiny")),
        recipe=RECIPE,
        serving_gpus=0,
        max_ranks=0,
        first_step_limit_s=60,
    )


@pytest.fixture
def desk_of(object_store: ObjectStore, tmp_path: Path, brief: Brief) -> Any:
    """A new attempt's desk; what it made and said is at hand in `make.made` and `pulse`."""
    leases = Leases()

    def desk(me: str = "a", **changes: Any) -> ClassDesk:
        own = brief.model_copy(update=changes)
        return ClassDesk(own, object_store, str(tmp_path / "s"), False, leases.line(me), Said(), Here([]))  # type: ignore[arg-type]

    desk.leases = leases  # type: ignore[attr-defined]
    return desk


def test_a_second_job_of_the_class_makes_nothing_and_takes_no_lease(desk_of: Any) -> None:
    first, second = desk_of("a"), desk_of("b")
    (made,), (reused,) = prepare_class_images(first), prepare_class_images(second)
    assert made == reused
    assert [len(made.pictures), len(made.moments), made.block_size] == [3, 1, 4]
    assert (len(first.make.made), second.make.made, second.line.claims) == (1, [], 0)
    assert second.pulse.notes == ["class images: 3 reused, 0 made (a photo of a teapot)"]
    assert desk_of.leases.holders == {}
    assert any(each.images_per_second and each.eta_s == 0 for each in first.pulse.progress)


def test_two_jobs_at_the_same_time_make_a_set_once(desk_of: Any) -> None:
    slow, waiting = desk_of("a"), desk_of("b")
    is_drawing, go_on = threading.Event(), threading.Event()

    def make(work: Any, tasks: Any) -> Any:
        is_drawing.set()
        assert go_on.wait(60)
        yield from Here([])(work, tasks)

    sets: dict[str, Any] = {}
    other = ClassDesk(**{**vars(slow), "make": make})
    first = threading.Thread(target=lambda: sets.update(a=prepare_class_images(other)))
    first.start()
    assert is_drawing.wait(60)
    second = threading.Thread(target=lambda: sets.update(b=prepare_class_images(waiting)))
    second.start()
    while waiting.line.claims < 3:
        pass
    go_on.set()
    first.join(60)
    second.join(60)
    assert sets["a"] == sets["b"]
    assert waiting.make.made == []
    assert waiting.pulse.notes[0] == "waiting for the class images that job a makes (a photo of a teapot)"
    assert len(waiting.pulse.notes) == 2, "it says so once"
    assert waiting.pulse.progress[0].phase == WAITING_PHASE


def test_one_that_waits_takes_over_when_the_lease_is_void(desk_of: Any) -> None:
    waiting = desk_of("b")
    address = wanted_of(waiting, 0).work.spec.address
    desk_of.leases.holders[address] = "dead"
    threading.Timer(0.1, lambda: desk_of.leases.holders.pop(address)).start()
    prepare_class_images(waiting)
    assert len(waiting.make.made) == 1


def test_one_that_waits_can_be_cancelled(desk_of: Any) -> None:
    waiting = desk_of("b")
    desk_of.leases.holders[wanted_of(waiting, 0).work.spec.address] = "a"
    waiting.pulse.stops = True
    with pytest.raises(AttemptEnded):
        prepare_class_images(waiting)


def test_an_api_that_is_away_is_waited_for(desk_of: Any) -> None:
    desk = desk_of()
    desk_of.leases.is_away = 3
    prepare_class_images(desk)
    assert (desk.line.claims, len(desk.make.made)) == (4, 1)


def test_the_lease_is_given_back_when_making_fails(desk_of: Any) -> None:
    desk = desk_of()
    desk.make.dies_after = 0
    with pytest.raises(KeyboardInterrupt):
        prepare_class_images(desk)
    assert desk_of.leases.holders == {}


def test_damaged_moments_are_made_again_with_a_warning(desk_of: Any, object_store: ObjectStore) -> None:
    (whole,) = prepare_class_images(desk_of())
    flip_a_byte(object_store, whole.moments[0].key)
    flip_a_byte(object_store, whole.pictures[0].key)
    again = desk_of()
    assert prepare_class_images(again) == [whole]
    (warning,) = again.pulse.warnings
    assert whole.moments[0].key in warning
    assert object_store.get(whole.pictures[0].key, whole.pictures[0].sha256), "the whole block was made again"


def test_pictures_are_checked_ahead_where_training_opens_them(desk_of: Any, object_store: ObjectStore) -> None:
    (whole,) = prepare_class_images(desk_of())
    flip_a_byte(object_store, whole.pictures[1].key)
    centred, random = desk_of(), desk_of(params=PARAMS.model_copy(update={"crop": "random"}))
    prepare_class_images(centred)
    assert centred.make.made == []
    prepare_class_images(random)
    (warning,) = random.pulse.warnings
    assert whole.pictures[1].key in warning


def test_subjects_of_one_class_share_and_other_prompts_do_not(desk_of: Any) -> None:
    same = PARAMS.subjects[0]
    other = same.model_copy(update={"class_prompt": "a photo of a dog"})
    desk = desk_of(params=PARAMS.model_copy(update={"more_subjects": [same, other]}))
    first, second, third = prepare_class_images(desk)
    assert first == second
    assert first.address != third.address
    assert len(desk.make.made) == 2


def test_tenants_share_drawn_sets_where_the_operator_says_so(desk_of: Any) -> None:
    prefixes = [
        wanted_of(desk_of(tenant_id=tenant, share_class_images=shared), 0).work.place.prefix
        for tenant in ("one", "two")
        for shared in (False, True)
    ]
    assert len(set(prefixes)) == 3
    assert prefixes[1] == prefixes[3]
    assert prefixes[1].startswith("class-sets/")
    assert prefixes[0].startswith("tenants/one/class-sets/")


def test_the_recipes_dials_are_in_the_address(desk_of: Any) -> None:
    changes = [
        {"class_negative_prompt": "blurry"},
        {"class_scheduler": "ddim"},
        {"class_num_inference_steps": 9},
        {"class_guidance_scale": 9.0},
        {"class_block_size": 9},
        {"class_threads_per_actor": 2},
        {"class_seed": 9},
        {},
    ]
    desks = [desk_of(recipe=RECIPE.model_copy(update=change)) for change in changes]
    assert len({wanted_of(desk, 0).work.spec.address for desk in desks}) == len(changes)
    assert (
        len({wanted_of(desk_of(params=PARAMS.model_copy(update={"seed": n})), 0).work.spec.address for n in (1, 2)})
        == 1
    )


@pytest.fixture
def own(object_store: ObjectStore, brief: Brief) -> list[ClassPhoto]:
    """Six pictures as admission stores them, one of them not square."""
    images = [render(scene) for scene in SUBJECTS[1].scenes()][:5]
    images.append(images[0].resize((96, 48)))
    place = Place(object_store, f"tenants/{brief.tenant_id}/photos")
    return [ClassPhoto.model_validate(each.model_dump()) for each in store_pictures(place, 0, images)]


def test_a_users_own_become_a_set_with_moments_and_are_never_shared(
    desk_of: Any, own: list[ClassPhoto], object_store: ObjectStore
) -> None:
    first, second = (desk_of(class_photos=own, share_class_images=True) for _ in range(2))
    (made,), (reused,) = prepare_class_images(first), prepare_class_images(second)
    assert made == reused
    assert [picture.sha256 for picture in made.pictures] == [photo.sha256 for photo in own]
    assert made.sizes[-1] == (48, 96)
    assert (len(made.moments), second.make.made) == (2, [])
    assert wanted_of(first, 0).work.place.prefix.startswith(f"tenants/{first.brief.tenant_id}/")
    assert first.pulse.notes == ["class images: 0 reused, 6 made (your own for sks teapot)"]
    fewer = desk_of(class_photos=own[:5])
    assert wanted_of(fewer, 0).work.spec.address != made.address


def test_a_users_own_that_is_damaged_is_named(desk_of: Any, own: list[ClassPhoto], object_store: ObjectStore) -> None:
    flip_a_byte(object_store, own[2].key)
    with pytest.raises(StorageError, match=own[2].key.replace("[", r"\[")):
        prepare_class_images(desk_of(class_photos=own))


def test_without_prior_there_are_none(desk_of: Any) -> None:
    desk = desk_of(params=PARAMS.model_copy(update={"num_class_images": 0}))
    assert prepare_class_images(desk) == []
    assert desk.line.claims == 0
