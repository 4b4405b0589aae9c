"""The report on a job's own scores, stored beside them."""

from collections.abc import Sequence
from functools import partial

from booth.contract.attempts import Brief
from booth.contract.scores import Score, StepScore
from booth_service.evaluation.group_report import panels_of
from booth_service.evaluation.job_report import report_of
from booth_service.evaluation.plot import curves_png
from booth_service.report_files import store_report
from booth_service.storage import keys
from booth_service.storage.s3 import ObjectStore


def store_job_report(brief: Brief, store: ObjectStore, scored: Sequence[StepScore]) -> None:
    """The report's files are in the object store, where `GET /v1/jobs/{id}/report` finds them. Raises StorageError."""
    scores = [Score.model_validate_json(store.get(each.key, each.sha256)) for each in scored]
    report = report_of(brief, scores)
    panels = panels_of(report.rows)
    more = {"curves.png": curves_png(panels)} if panels else {}
    store_report(store, partial(keys.job_report_file, brief.tenant_id, brief.job_id, brief.attempt), report, more=more)
