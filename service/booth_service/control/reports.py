"""The finished report of a run, for its owner: every file of it with a link."""

from booth.contract.evaluation import ReportFile, ReportFiles
from booth_service.control.plane import Plane
from booth_service.control.problems import conflict
from booth_service.control.records import Run


def files_of(plane: Plane, run: Run) -> ReportFiles:
    """All files beside the manifest that the run ended with. Raises conflict where it has not ended well."""
    if run.manifest_key is None:
        title = f"{run.kind.capitalize()} {run.id} has no report: it is {run.state.value}."
        raise conflict(title, "Wait for its end.")
    folder = run.manifest_key.rpartition("/")[0] + "/"
    return ReportFiles(files=[_linked(plane, folder, key) for key in sorted(plane.store.keys(folder))])


def _linked(plane: Plane, folder: str, key: str) -> ReportFile:
    url = plane.store.download_link(key, plane.settings.download_link_s)
    return ReportFile(name=key.removeprefix(folder), bytes=plane.store.size(key) or 0, url=url)
