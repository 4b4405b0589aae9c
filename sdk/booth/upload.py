"""Photos, masks and class images to the object store through presigned links: only the missing, four at a time."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed

from booth.contract import limits
from booth.contract.jobs import CheckedClassImages, ClassImageRef, ClassImagesToCheck, UploadTarget
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


def check_class_images(transport: Transport, images: Sequence[ClassImageRef]) -> None:
    """The service has checked and stored these uploaded class images, a few in each request, so that none takes long.

    Raises ValidationError where one is refused. What an earlier call got through takes no time again.
    """
    size = limits.MAX_CLASS_IMAGES_PER_CALL
    calls = [ClassImagesToCheck(images=list(images[start : start + size])) for start in range(0, len(images), size)]
    with ThreadPoolExecutor(PARALLEL) as pool:
        for _ in pool.map(
            lambda call: transport.post("/v1/class-images", CheckedClassImages, body=call, repeatable=True), calls
        ):
            pass
