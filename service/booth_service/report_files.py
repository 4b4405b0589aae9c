"""A report's files in the object store: JSON, a self-contained HTML page, and a contact sheet."""

import hashlib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

from booth.contract.evaluation import Report
from booth_service.errors import ObjectMissing
from booth_service.evaluation.report import picture_keys, report_html
from booth_service.evaluation.sheet import sheet_keys, sheet_png
from booth_service.evaluation.thumbnails import side_px, thumbnail_of
from booth_service.storage.s3 import ObjectStore

READ_THREADS = 8
_TYPES = {"json": "application/json", "html": "text/html; charset=utf-8", "png": "image/png"}


def store_report(
    store: ObjectStore,
    key_of: Callable[[str], str],
    report: Report,
    thumbnails: Mapping[str, bytes] | None = None,
    more: Mapping[str, bytes] | None = None,
) -> tuple[str, str]:
    """report.html, sheet.png and those of `more` (as curves.png) are stored, then report.json, under `key_of` its name.
    Returns key and SHA-256 of the last.

    `thumbnails` are small copies of pictures by key, where there are some; other pictures are read and made small here.
    `more` are shown in the page too. Raises StorageError.
    """
    small = _small(store, report, thumbnails or {})
    files = {"report.html": report_html(report, small, more or {}).encode()}
    if shown := _read(store, sheet_keys(report)):
        files["sheet.png"] = sheet_png(report, shown)
    files |= more or {}
    files["report.json"] = report.model_dump_json().encode()
    for name, body in files.items():
        store.put(key_of(name), body, _TYPES[name.rsplit(".", 1)[-1]])
    return key_of("report.json"), hashlib.sha256(files["report.json"]).hexdigest()


def _small(store: ObjectStore, report: Report, there: Mapping[str, bytes]) -> dict[str, bytes]:
    """Small copies of all pictures: those that are there, and new ones of the others, few large ones in memory."""
    wanted = picture_keys(report)
    longest_px = side_px(len(wanted))
    missing = [key for key in wanted if key not in there]
    return {**there, **_read(store, missing, lambda body: thumbnail_of(body, longest_px))}


def _read(
    store: ObjectStore, wanted: list[str], change: Callable[[bytes], bytes] = lambda body: body
) -> dict[str, bytes]:
    """What was made of the objects by key; what is not there any more is left out, and its place stays empty."""

    def one(key: str) -> bytes | None:
        try:
            return change(store.get(key))
        except ObjectMissing:
            return None

    with ThreadPoolExecutor(READ_THREADS) as pool:
        found = pool.map(one, wanted)
        return {key: body for key, body in zip(wanted, found, strict=True) if body is not None}
