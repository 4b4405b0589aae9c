"""Photos to the object store through presigned links: only the missing ones, four at a time."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed

from booth.contract.jobs import UploadTarget
from booth.images import Photo
from booth.transport import Transport

PARALLEL = 4

OnUpload = Callable[[int, int, str], None]
"""Called after each photo with bytes sent so far, bytes in all, and the photo's file name."""


def upload_missing(
    transport: Transport, photos: Sequence[Photo], targets: Sequence[UploadTarget], on_upload: OnUpload | None
) -> None:
    """The service holds every photo. Raises TransferError or APIConnectionError where one does not get there."""
    links = {target.sha256: target.url for target in targets if target.url is not None}
    missing = [photo for photo in photos if photo.sha256 in links]
    total = sum(len(photo.data) for photo in missing)
    done = 0
    with ThreadPoolExecutor(PARALLEL) as pool:
        sent = {pool.submit(transport.put_link, str(links[photo.sha256]), photo.data): photo for photo in missing}
        try:
            for future in as_completed(sent):
                future.result()
                done += len(sent[future].data)
                if on_upload is not None:
                    on_upload(done, total, sent[future].filename)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
