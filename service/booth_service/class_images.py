"""The class images of an attempt, before its gang starts: found, waited for, or made under a lease."""

import time
from dataclasses import dataclass

import httpx2

from booth.contract.attempts import Brief
from booth.contract.jobs import CLASS_IMAGES_PHASE, WAITING_PHASE, Progress
from booth_service.beats import Line, Pulse
from booth_service.errors import AttemptEnded, ServiceError
from booth_service.prior.block_maker import SetWork
from booth_service.prior.blocks import Place
from booth_service.prior.class_set import ClassPicture, ClassSetSpec, OwnSetSpec, Spec
from booth_service.prior.ensure import ClassImages, Make, ensure_class_images, find_class_images
from booth_service.storage import keys
from booth_service.storage.base_model import content_sha256
from booth_service.storage.s3 import ObjectStore
from booth_service.training.stored_pictures import ClassSet

LEASE_POLL_S = 2.0


@dataclass(frozen=True)
class ClassDesk:
    """What making class images needs of an attempt. `make` makes blocks: on a cluster, by an actor pool."""

    brief: Brief
    store: ObjectStore
    scratch_dir: str | None
    use_gpu: bool
    line: Line
    pulse: Pulse
    make: Make


@dataclass(frozen=True)
class Wanted:
    """The class images of one subject."""

    work: SetWork
    count: int
    name: str


def prepare_class_images(desk: ClassDesk) -> list[ClassSet]:
    """The class images of every subject, reused or made; none where the job has no prior. Subjects of one class share.

    Holds no device while another job makes them. Raises AttemptEnded, StorageError and what drawing raises.
    """
    brief = desk.brief
    if brief.params.num_class_images == 0:
        return []
    ready: dict[tuple[str, int], ClassImages] = {}
    sets = []
    for wanted in (wanted_of(desk, number) for number in range(len(brief.params.subjects))):
        key = (wanted.work.place.prefix, wanted.count)
        images = ready[key] = ready[key] if key in ready else _ready(desk, wanted)
        sets.append(class_set(images, wanted.work.spec.block_size))
    return sets


def wanted_of(desk: ClassDesk, number: int) -> Wanted:
    """What a subject's class images are: the user's own where there are any, else drawn by the base model."""
    brief, subject = desk.brief, desk.brief.params.subjects[number]
    own = [ClassPicture.model_validate(photo.model_dump()) for photo in brief.class_photos if photo.subject == number]
    spec: Spec = own_spec(brief, own) if own else drawn_spec(brief, subject.class_prompt, desk.use_gpu)
    is_shared = brief.share_class_images and not own
    prefix = keys.class_set(None if is_shared else brief.tenant_id, spec.address)
    work = SetWork(spec, Place(desk.store, prefix), brief.base_files, desk.scratch_dir, desk.use_gpu)
    name = f"your own for {subject.token} {subject.class_noun}" if own else subject.class_prompt
    return Wanted(work, len(own) or brief.params.num_class_images, name)


def own_spec(brief: Brief, own: list[ClassPicture]) -> OwnSetSpec:
    """The set of a user's own class images."""
    return OwnSetSpec(
        base_sha256=content_sha256(brief.base_files),
        resolution=brief.params.resolution,
        block_size=brief.recipe.class_block_size,
        pictures=own,
    )


def drawn_spec(brief: Brief, class_prompt: str, use_gpu: bool) -> ClassSetSpec:
    """The set that the base model draws of a prompt, by the recipe's dials."""
    recipe = brief.recipe
    return ClassSetSpec(
        base_sha256=content_sha256(brief.base_files),
        class_prompt=class_prompt,
        negative_prompt=recipe.class_negative_prompt,
        scheduler=recipe.class_scheduler,
        num_inference_steps=recipe.class_num_inference_steps,
        guidance_scale=recipe.class_guidance_scale,
        resolution=brief.params.resolution,
        dtype="float16" if use_gpu else "float32",
        block_size=recipe.class_block_size,
        threads_per_actor=recipe.class_threads_per_actor,
        seed=recipe.class_seed,
    )


def class_set(images: ClassImages, block_size: int) -> ClassSet:
    """The set as training takes it."""
    manifest = images.manifest
    return ClassSet(
        address=manifest.address,
        pictures=list(manifest.pictures),
        sizes=[(picture.height, picture.width) for picture in manifest.pictures],
        moments=[block.moments for block in manifest.blocks],
        block_size=block_size,
    )


def _ready(desk: ClassDesk, wanted: Wanted) -> ClassImages:
    with_pictures = desk.brief.params.crop != "center"  # else training opens none of them
    waits_for = None
    while True:
        images = find_class_images(wanted.work.place, wanted.count, with_pictures=with_pictures)
        if images is not None:
            return _told(desk, wanted, images)
        holder = _claim(desk, wanted.work.spec.address)
        if holder is None:
            break
        _say_waiting(desk, wanted, holder, is_news=holder != waits_for)
        waits_for = holder
        time.sleep(LEASE_POLL_S)
        desk.pulse.check()
    try:
        return _told(desk, wanted, _made(desk, wanted, with_pictures))
    finally:
        _release(desk, wanted.work.spec.address)


def _made(desk: ClassDesk, wanted: Wanted, with_pictures: bool) -> ClassImages:
    """The set, with progress while any of it is made."""
    began = time.monotonic()

    def on_made(done: int, total: int) -> None:
        desk.pulse.check()
        pace = done / (time.monotonic() - began)
        desk.pulse.say(
            Progress(
                phase=CLASS_IMAGES_PHASE,
                step=done,
                total_steps=total,
                images_per_second=pace,
                eta_s=(total - done) / pace,
            )
        )

    desk.pulse.say(Progress(phase=CLASS_IMAGES_PHASE, total_steps=wanted.count))
    return ensure_class_images(wanted.work, wanted.count, desk.make, with_pictures=with_pictures, on_made=on_made)


def _told(desk: ClassDesk, wanted: Wanted, images: ClassImages) -> ClassImages:
    count = wanted.count
    progress = Progress(phase=CLASS_IMAGES_PHASE, step=count, total_steps=count)
    note = f"class images: {images.reused} reused, {images.made} made ({wanted.name})"
    print(note, flush=True)
    desk.pulse.say(progress, note=note)
    for warning in images.warnings:
        print(f"warning: {warning}", flush=True)
        desk.pulse.say(progress, warning=warning)
    return images


def _claim(desk: ClassDesk, address: str) -> str | None:
    """None where the lease is ours, else who holds it. An API that is away is waited for: the pulse knows the end."""
    try:
        return desk.line.claim_class_set(address).holder
    except AttemptEnded:
        raise
    except (ServiceError, httpx2.HTTPError) as error:
        return f"nobody knows ({error})"


def _release(desk: ClassDesk, address: str) -> None:
    try:
        desk.line.release_class_set(address)
    except (ServiceError, httpx2.HTTPError) as error:  # the lease is void as soon as this attempt is over
        print(f"the lease of class images {address} was not given back: {error}", flush=True)


def _say_waiting(desk: ClassDesk, wanted: Wanted, holder: str, *, is_news: bool) -> None:
    note = f"waiting for the class images that {holder} makes ({wanted.name})"
    if is_news:
        print(note, flush=True)
    desk.pulse.say(Progress(phase=WAITING_PHASE, total_steps=wanted.count), note=note if is_news else None)
