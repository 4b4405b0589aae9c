"""A group's report from what its cells left in SQL and S3, stored beside them."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from booth.contract.attempts import StoredFile
from booth.contract.groups import CellRecord, GroupBrief
from booth.contract.scores import Score
from booth_service.errors import ObjectMissing
from booth_service.evaluation import group_report
from booth_service.evaluation.plot import curves_png
from booth_service.report_files import store_report
from booth_service.storage import keys
from booth_service.storage.s3 import ObjectStore

READ_THREADS = 8


def store_group_report(store: ObjectStore, brief: GroupBrief, cells: Sequence[CellRecord]) -> tuple[str, str]:
    """The report's files are stored, its JSON last. Returns that one's key and SHA-256. Raises StorageError."""
    prefix = keys.run("group", brief.tenant_id, brief.group_id)
    panels = group_report.panels(cells)
    report = group_report.report_of(brief.settings, cells, whole_scores(store, cells), photos_of(cells))
    more = {"curves.png": curves_png(panels)} if panels else {}
    return store_report(store, lambda name: keys.report_file(prefix, brief.attempt, name), report, more=more)


def whole_scores(store: ObjectStore, cells: Sequence[CellRecord]) -> dict[tuple[str, int], Score]:
    """The scores that are shown with their pictures; what was deleted with its model is left out."""

    def read(wanted: tuple[str, int, str]) -> Score | None:
        try:
            return Score.model_validate_json(store.get(wanted[2]))
        except ObjectMissing:
            return None

    wanted = group_report.shown_scores(cells)
    with ThreadPoolExecutor(READ_THREADS) as pool:
        found = zip(wanted, pool.map(read, wanted), strict=True)
        return {(job_id, step): score for (job_id, step, _), score in found if score is not None}


def photos_of(cells: Sequence[CellRecord]) -> dict[str, list[StoredFile]]:
    """Each subject's photos, those of the cell that has the most of them."""
    found: dict[str, list[StoredFile]] = {}
    for cell in cells:
        if len(cell.photos) > len(found.get(cell.labels.subject, [])):
            found[cell.labels.subject] = cell.photos
    return found
