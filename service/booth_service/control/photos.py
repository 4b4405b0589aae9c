"""Photos and masks on their way in: listed in SQL before a byte is stored, re-encoded before a job names them."""

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any

from sqlalchemy import String, cast, delete, or_, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from booth.contract import limits
from booth.contract.attempts import InstancePhoto, StoredFile
from booth.contract.jobs import ClassImageRef, Crop, JobSpec, MaskRef, PhotoRef, UploadTarget
from booth.contract.photos import PhotoError
from booth.contract.problems import FieldProblem
from booth_service.control.plane import Plane
from booth_service.control.problems import invalid
from booth_service.control.records import Job, Upload
from booth_service.data.images import check_mask, png_size, reencode, reencode_mask
from booth_service.errors import ObjectMissing
from booth_service.storage import keys

THREADS = 16
AnyRef = PhotoRef | MaskRef | ClassImageRef


@dataclass(frozen=True)
class Named:
    """One photo of a spec: its subject's number, and what problems call it."""

    subject: int
    field: str
    ref: PhotoRef


@dataclass(frozen=True)
class NamedClassImage:
    """One class image of a spec: its subject's number, and what problems call it."""

    subject: int
    field: str
    ref: ClassImageRef


@dataclass(frozen=True)
class Content:
    """One file as it is uploaded, and where it lies once accepted: under two keys if it is both photo and mask."""

    sha256: str
    bytes: int
    stored: frozenset[str]


@dataclass(frozen=True)
class Accepted:
    """A photo as the job's row will hold it, with its name as uploaded and its (width, height)."""

    photo: InstancePhoto
    filename: str
    size: tuple[int, int]


def named(spec: JobSpec) -> list[Named]:
    """Every photo of every subject, in order; each content once within a subject."""
    subjects = [("images", spec.images)]
    subjects += [(f"more_subjects.{n}.images", subject.images) for n, subject in enumerate(spec.more_subjects)]
    first: dict[tuple[int, str], Named] = {}
    for number, (field, refs) in enumerate(subjects):
        for place, ref in enumerate(refs):
            first.setdefault((number, ref.sha256), Named(number, f"{field}.{place}", ref))
    return list(first.values())


def named_class_images(spec: JobSpec) -> list[NamedClassImage]:
    """Every class image of every subject, in order; each content once within a subject."""
    subjects = [("class_images", spec.class_images)]
    subjects += [(f"more_subjects.{n}.class_images", more.class_images) for n, more in enumerate(spec.more_subjects)]
    first: dict[tuple[int, str], NamedClassImage] = {}
    for number, (field, refs) in enumerate(subjects):
        for place, ref in enumerate(refs):
            first.setdefault((number, ref.sha256), NamedClassImage(number, f"{field}.{place}", ref))
    return list(first.values())


def contents(tenant_id: str, *specs: JobSpec) -> list[Content]:
    """Every file of the specs, each content once, in order."""
    found: dict[str, Content] = {}
    photos = [photo.ref for spec in specs for photo in named(spec)]
    for ref in (ref for photo in photos for ref in (photo, photo.mask) if ref is not None):
        key = (keys.mask if isinstance(ref, MaskRef) else keys.photo)(tenant_id, ref.sha256)
        stored = found[ref.sha256].stored if ref.sha256 in found else frozenset()
        found[ref.sha256] = Content(ref.sha256, ref.bytes, stored | {key})
    for image in (each.ref for spec in specs for each in named_class_images(spec)):
        made = {keys.photo(tenant_id, image.sha256), keys.class_photo(tenant_id, image.sha256)}
        stored = found[image.sha256].stored if image.sha256 in found else frozenset()
        found[image.sha256] = Content(image.sha256, image.bytes, stored | made)
    return list(found.values())


def expect(plane: Plane, tenant_id: str, *specs: JobSpec) -> None:
    """The files are listed as uploads, for twice the life of a link: time to submit what came at its last moment."""
    expires_at = plane.now() + timedelta(seconds=2 * plane.settings.upload_link_s)
    with plane.database.write() as session:
        dialects: dict[str, Any] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}
        insert = dialects[session.get_bind().dialect.name]
        for file in sorted(contents(tenant_id, *specs), key=lambda file: file.sha256):  # one order: no deadlock
            row = insert(Upload).values(
                tenant_id=tenant_id, sha256=file.sha256, bytes=file.bytes, expires_at=expires_at
            )
            session.execute(
                row.on_conflict_do_update(
                    index_elements=[Upload.tenant_id, Upload.sha256],
                    set_={"bytes": row.excluded.bytes, "expires_at": row.excluded.expires_at},
                )
            )


def targets(plane: Plane, tenant_id: str, spec: JobSpec) -> list[UploadTarget]:
    """Where to put each file; no url where the service holds it already."""
    files = contents(tenant_id, spec)
    with ThreadPoolExecutor(THREADS) as pool:  # class images may be hundreds
        links = list(pool.map(lambda file: _link(plane, tenant_id, file), files))
    return [UploadTarget(sha256=file.sha256, url=link) for file, link in zip(files, links, strict=True)]


def accept(plane: Plane, tenant_id: str, spec: JobSpec, crop: Crop) -> list[Accepted]:
    """Every photo and mask is stored re-encoded under its key. Raises `invalid` naming every bad one, all tried."""
    accepted: list[Accepted] = []
    problems: list[FieldProblem] = []
    for place, photo in enumerate(named(spec)):
        ref, key, mask = photo.ref, keys.photo(tenant_id, photo.ref.sha256), None
        try:
            png = accept_file(plane, tenant_id, ref, key, reencode)
        except PhotoError as error:
            problems.append(problem(photo.field, ref, error))
            continue
        size = png_size(png)
        if ref.mask is not None:
            try:
                mask = _accept_mask(plane, tenant_id, ref.mask, size, crop, place)
            except PhotoError as error:
                problems.append(problem(f"{photo.field}.mask", ref.mask, error))
        stored = stored_file(f"{place:02d}.png", key, png)
        row = InstancePhoto(
            **stored.model_dump(), subject=photo.subject, caption=ref.caption, mask=mask, held_out=ref.held_out
        )
        accepted.append(Accepted(row, ref.filename, size))
    if problems:
        raise invalid(problems)
    return accepted


def discard_raw(plane: Plane, tenant_id: str, *specs: JobSpec) -> None:
    """The uploads as the user sent them are gone."""
    plane.store.delete(*(keys.upload(tenant_id, file.sha256) for file in contents(tenant_id, *specs)))


def unlist(session: Session, tenant_id: str, *specs: JobSpec) -> None:
    """A job names the files now; they are uploads no more."""
    hashes = [file.sha256 for file in contents(tenant_id, *specs)]
    session.execute(delete(Upload).where(Upload.tenant_id == tenant_id, Upload.sha256.in_(hashes)))


def is_in_a_job(session: Session, tenant_id: str, key: str) -> bool:
    """True where any job of the tenant was submitted with the photo, mask or class image of this key."""
    named_there = or_(*(cast(rows, String).contains(key) for rows in (Job.photos, Job.class_photos)))
    return session.scalar(select(Job.id).where(Job.tenant_id == tenant_id, named_there).limit(1)) is not None


def _link(plane: Plane, tenant_id: str, file: Content) -> str | None:
    if all(plane.store.size(key) is not None for key in file.stored):
        return None
    upload = keys.upload(tenant_id, file.sha256)
    if plane.store.size(upload) == file.bytes:
        return None
    return plane.store.upload_link(upload, plane.settings.upload_link_s)


def _accept_mask(
    plane: Plane, tenant_id: str, ref: MaskRef, photo_size: tuple[int, int], crop: Crop, place: int
) -> StoredFile:
    key = keys.mask(tenant_id, ref.sha256)
    png = accept_file(plane, tenant_id, ref, key, partial(reencode_mask, photo_size=photo_size))
    check_mask(png, photo_size, crop)  # what lies there already was the mask of a photo of its own
    return stored_file(f"{place:02d}.mask.png", key, png)


def accept_file(plane: Plane, tenant_id: str, ref: AnyRef, key: str, clean: Callable[[bytes], bytes]) -> bytes:
    """The file as stored under the key. Raises PhotoError where it was not uploaded or is not usable."""
    png = _stored(plane, key)
    if png is None:
        upload = _read_upload(plane, tenant_id, ref)
        # Missing after all: a submission beside this one may have taken the upload since we looked.
        png = _stored(plane, key) if upload is None else clean(upload)
        if png is None:
            remedy = "PUT it to the url that POST /v1/jobs/prepare gives, then submit again."
            raise PhotoError("It was not uploaded.", remedy)
        if upload is not None:
            plane.store.put(key, png, "image/png")
    return png


def problem(field: str, ref: AnyRef, error: PhotoError) -> FieldProblem:
    """Why a file is refused, under its own name."""
    return FieldProblem(field=field, value=ref.filename, message=error.message, remedy=error.remedy)


def stored_file(path: str, key: str, png: bytes) -> StoredFile:
    """The record of a stored picture."""
    return StoredFile(path=path, key=key, bytes=len(png), sha256=hashlib.sha256(png).hexdigest())


def _stored(plane: Plane, key: str) -> bytes | None:
    try:
        return plane.store.get(key)
    except ObjectMissing:
        return None


def _read_upload(plane: Plane, tenant_id: str, ref: AnyRef) -> bytes | None:
    """The bytes as the user sent them, None where there are none. Raises PhotoError for other bytes than promised."""
    key = keys.upload(tenant_id, ref.sha256)
    size = plane.store.size(key)
    if size is not None and size > limits.MAX_PHOTO_BYTES:
        most = limits.MAX_PHOTO_BYTES // 2**20
        raise PhotoError(f"The upload has {size / 2**20:.0f} MiB.", f"Send at most {most} MiB.")
    data = _stored(plane, key)
    if data is not None and hashlib.sha256(data).hexdigest() != ref.sha256:
        plane.store.delete(key)  # else prepare would go on to say that it is there
        raise PhotoError("The uploaded bytes are not those of its sha256.", "Upload it again.")
    return data
