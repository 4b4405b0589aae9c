"""Photos and masks to the object store through presigned links: only the missing ones, four at a time."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed

from booth.contract.jobs import UploadTarget
from booth.images import SentFile
from booth.transport import Transport

PARALLEL = 4

OnUpload = Callable[[int, int, str], None]
"""Called after each file with bytes sent so far, bytes in all, and the file's name."""


def upload_missing(
    transport: Transport, files: Sequence[SentFile], targets: Sequence[UploadTarget], on_upload: OnUpload | None
) -> None:
    """The service holds every file. Raises TransferError or APIConnectionError where one does not get there."""
    links = {target.sha256: target.url for target in targets if target.url is not None}
    missing = list({file.sha256: file for file in files if file.sha256 in links}.values())
    total = sum(len(file.data) for file in missing)
    done = 0
    with ThreadPoolExecutor(PARALLEL) as pool:
        sent = {pool.submit(transport.put_link, str(links[file.sha256]), file.data): file for file in missing}
        try:
            for future in as_completed(sent):
                future.result()
                done += len(sent[future].data)
                if on_upload is not None:
                    on_upload(done, total, sent[future].filename)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
