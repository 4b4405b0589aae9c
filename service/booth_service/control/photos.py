"""Photos on their way in: listed in SQL before a byte is stored, re-encoded before a job names them."""

import hashlib
from datetime import timedelta
from typing import Any

from sqlalchemy import String, cast, delete, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from booth.contract import limits
from booth.contract.attempts import StoredFile
from booth.contract.jobs import PhotoRef, UploadTarget
from booth.contract.photos import PhotoError
from booth.contract.problems import FieldProblem
from booth_service.control.plane import Plane
from booth_service.control.problems import invalid
from booth_service.control.records import Job, Upload
from booth_service.data.images import reencode
from booth_service.errors import ObjectMissing
from booth_service.storage import keys


def distinct(photos: list[PhotoRef]) -> list[PhotoRef]:
    """Each content once, in order."""
    return list({photo.sha256: photo for photo in photos}.values())


def expect(plane: Plane, tenant_id: str, photos: list[PhotoRef]) -> None:
    """The photos are listed as uploads, for twice the life of a link: time to submit what came at its last moment."""
    expires_at = plane.now() + timedelta(seconds=2 * plane.settings.upload_link_s)
    with plane.database.write() as session:
        dialects: dict[str, Any] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}
        insert = dialects[session.get_bind().dialect.name]
        for photo in sorted(distinct(photos), key=lambda photo: photo.sha256):  # one order: no deadlock among equals
            row = insert(Upload).values(
                tenant_id=tenant_id, sha256=photo.sha256, bytes=photo.bytes, expires_at=expires_at
            )
            session.execute(
                row.on_conflict_do_update(
                    index_elements=[Upload.tenant_id, Upload.sha256],
                    set_={"bytes": row.excluded.bytes, "expires_at": row.excluded.expires_at},
                )
            )


def targets(plane: Plane, tenant_id: str, photos: list[PhotoRef]) -> list[UploadTarget]:
    """Where to put each photo; no url where the service holds it already."""
    return [UploadTarget(sha256=photo.sha256, url=_link(plane, tenant_id, photo)) for photo in distinct(photos)]


def accept(plane: Plane, tenant_id: str, photos: list[PhotoRef]) -> list[StoredFile]:
    """Every photo is stored re-encoded under its key. Raises `invalid` naming every bad one, after trying all."""
    stored, problems = [], []
    for place, photo in enumerate(distinct(photos)):
        try:
            stored.append(_accept_one(plane, tenant_id, photo, place))
        except PhotoError as error:
            problems.append(
                FieldProblem(field=f"images.{place}", value=photo.filename, message=error.message, remedy=error.remedy)
            )
    if problems:
        raise invalid(problems)
    return stored


def discard_raw(plane: Plane, tenant_id: str, photos: list[PhotoRef]) -> None:
    """The uploads as the user sent them are gone."""
    plane.store.delete(*(keys.upload(tenant_id, photo.sha256) for photo in distinct(photos)))


def unlist(session: Session, tenant_id: str, photos: list[PhotoRef]) -> None:
    """A job names the photos now; they are uploads no more."""
    hashes = [photo.sha256 for photo in photos]
    session.execute(delete(Upload).where(Upload.tenant_id == tenant_id, Upload.sha256.in_(hashes)))


def is_in_a_job(session: Session, tenant_id: str, sha256: str) -> bool:
    """True where any job of the tenant was submitted with this photo."""
    named = cast(Job.photos, String).contains(sha256)
    return session.scalar(select(Job.id).where(Job.tenant_id == tenant_id, named).limit(1)) is not None


def _link(plane: Plane, tenant_id: str, photo: PhotoRef) -> str | None:
    if plane.store.size(keys.photo(tenant_id, photo.sha256)) is not None:
        return None
    upload = keys.upload(tenant_id, photo.sha256)
    if plane.store.size(upload) == photo.bytes:
        return None
    return plane.store.upload_link(upload, plane.settings.upload_link_s)


def _accept_one(plane: Plane, tenant_id: str, photo: PhotoRef, place: int) -> StoredFile:
    key = keys.photo(tenant_id, photo.sha256)
    png = _stored(plane, key)
    if png is None:
        upload = _read_upload(plane, tenant_id, photo)
        # Missing after all: a submission beside this one may have taken the upload since we looked.
        png = _stored(plane, key) if upload is None else reencode(upload)
        if png is None:
            remedy = "PUT it to the url that POST /v1/jobs/prepare gives, then submit again."
            raise PhotoError("It was not uploaded.", remedy)
        if upload is not None:
            plane.store.put(key, png, "image/png")
    digest = hashlib.sha256(png).hexdigest()
    return StoredFile(path=f"{place:02d}.png", key=key, bytes=len(png), sha256=digest)


def _stored(plane: Plane, key: str) -> bytes | None:
    try:
        return plane.store.get(key)
    except ObjectMissing:
        return None


def _read_upload(plane: Plane, tenant_id: str, photo: PhotoRef) -> bytes | None:
    """The bytes as the user sent them, None where there are none. Raises PhotoError for other bytes than promised."""
    key = keys.upload(tenant_id, photo.sha256)
    size = plane.store.size(key)
    if size is not None and size > limits.MAX_PHOTO_BYTES:
        most = limits.MAX_PHOTO_BYTES // 2**20
        raise PhotoError(f"The upload has {size / 2**20:.0f} MiB.", f"Send at most {most} MiB.")
    data = _stored(plane, key)
    if data is not None and hashlib.sha256(data).hexdigest() != photo.sha256:
        plane.store.delete(key)  # else prepare would go on to say that it is there
        raise PhotoError("The uploaded bytes are not those of its sha256.", "Upload it again.")
    return data
