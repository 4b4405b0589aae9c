"""The driver killed between the last picture of a class-image set and its manifest: the next one makes no picture."""

import multiprocessing
import os
import signal
from pathlib import Path

from class_sets import Here, ensured, set_work, stored
from own_s3 import own_s3

from booth_service.prior import ensure
from booth_service.prior.block_maker import SetWork
from booth_service.storage import keys

PICTURES = 24


def row(folder: Path) -> str:
    """Kill it there, look, let the next one finish, and compare with a set that nobody disturbed."""
    with own_s3(folder / "s3") as server:
        work = set_work(server.empty_bucket(), folder, "tenant")
        driver = multiprocessing.get_context("spawn").Process(target=dies_before_the_manifest, args=(work,))
        driver.start()
        driver.join()
        assert driver.exitcode == -signal.SIGKILL, f"the driver ended with {driver.exitcode}"
        left = stored(work)
        manifest_key = keys.class_manifest(work.place.prefix, PICTURES)
        assert manifest_key not in left
        images = ensured(work, PICTURES, Here([], dies_after=0))
        assert (images.reused, images.made) == (PICTURES, 0)
        after = stored(work)
        assert after.pop(manifest_key)
        assert after == left, "something else was written"
    return f"{PICTURES} pictures stood, 0 made again, 1 manifest put"


def dies_before_the_manifest(work: SetWork) -> None:
    """Makes the set, and is killed when all blocks are there."""
    ensure.store_manifest = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment]
    ensured(work, PICTURES, Here([]))
