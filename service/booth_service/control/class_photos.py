"""A user's own class images on their way in: checked a few in a request, then named by hundreds in a job."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial

from booth.contract.attempts import ClassPhoto
from booth.contract.jobs import ClassImageRef, JobSpec
from booth.contract.photos import PhotoError
from booth.contract.problems import FieldProblem
from booth_service.control import photos
from booth_service.control.plane import Plane
from booth_service.control.problems import invalid
from booth_service.data.images import png_size, reencode
from booth_service.errors import ObjectMissing
from booth_service.storage import keys


def check(plane: Plane, tenant_id: str, refs: list[ClassImageRef]) -> int:
    """Every image is stored re-encoded, its record last; returns how many. Raises `invalid` naming every bad one.

    A repetition finds the records and decodes nothing.
    """
    problems: list[FieldProblem] = []
    for place, ref in enumerate(refs):
        if _record(plane, tenant_id, ref) is not None:
            continue
        try:
            _store(plane, tenant_id, ref)
        except PhotoError as error:
            problems.append(photos.problem(f"images.{place}", ref, error))
    if problems:
        raise invalid(problems)
    return len(refs)


def accepted(plane: Plane, tenant_id: str, spec: JobSpec) -> list[ClassPhoto]:
    """The class images that a job's row will hold. Only their records are read, however many there are.

    Raises `invalid` naming every one that was not checked.
    """
    named = photos.named_class_images(spec)
    with ThreadPoolExecutor(photos.THREADS) as pool:
        records = list(pool.map(partial(_record, plane, tenant_id), [each.ref for each in named]))
    remedy = "PUT it to the url that POST /v1/jobs/prepare gives, then POST it to /v1/class-images."
    unchecked = PhotoError("It was not checked yet.", remedy)
    problems = [
        photos.problem(each.field, each.ref, unchecked)
        for each, record in zip(named, records, strict=True)
        if record is None
    ]
    if problems:
        raise invalid(problems)
    return [
        record.model_copy(update={"subject": each.subject, "path": f"class-{place:03d}.png"})
        for place, (each, record) in enumerate(zip(named, records, strict=True))
        if record is not None
    ]


def _record(plane: Plane, tenant_id: str, ref: ClassImageRef) -> ClassPhoto | None:
    try:
        return ClassPhoto.model_validate_json(plane.store.get(keys.class_photo(tenant_id, ref.sha256)))
    except ObjectMissing:
        return None


def _store(plane: Plane, tenant_id: str, ref: ClassImageRef) -> None:
    key = keys.photo(tenant_id, ref.sha256)
    png = photos.accept_file(plane, tenant_id, ref, key, reencode)
    width, height = png_size(png)
    file = photos.stored_file(f"{ref.sha256}.png", key, png)
    record = ClassPhoto(**file.model_dump(), height=height, width=width)
    plane.store.put(keys.class_photo(tenant_id, ref.sha256), record.model_dump_json().encode(), "application/json")
