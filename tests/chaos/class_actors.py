"""An actor killed at random, again and again, while a class-image set is made: exactly its indices, equal bits."""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

if __name__ == "__main__":  # run by a test; the rows' runner sets the path for a row
    sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2] / "examples" / "tinyworld")]

import pytest
from class_pool import Killer, one_cpu_taken, own_ray
from class_sets import elsewhere, set_work, stored
from own_s3 import own_s3

from booth_service.errors import StorageError
from booth_service.prior.block_maker import SetWork
from booth_service.prior.ensure import ClassImages, ensure_class_images
from booth_service.prior.generate import by_actor_pool
from booth_service.storage import keys

KILLS, PICTURES, STEPS = 20, 160, 40


def row(folder: Path) -> str:
    """20 kills in a set of 160 pictures on two CPUs."""
    return killed(folder, KILLS, PICTURES, with_refusal=True)


def killed(folder: Path, kills: int, pictures: int, *, with_refusal: bool) -> str:
    """A set made by one actor alone, and one by two that are killed; raises where they differ in a byte."""
    with own_s3(folder / "s3") as server, own_ray():
        store = server.empty_bucket()
        alone = set_work(store, folder, "alone", num_inference_steps=STEPS)
        with one_cpu_taken():
            made(alone, pictures, Killer(0, 0))
        disturbed = elsewhere(alone, "disturbed")
        killer = Killer(kills, seed=1)
        with killer.at_work():
            images = made(disturbed, pictures, killer)
        assert images.made == pictures, f"{images.made} pictures were counted"
        assert [picture.path for picture in images.manifest.pictures] == [f"{k:06d}.png" for k in range(pictures)]
        assert killer.killed == kills, f"only {killer.killed} of {kills} kills came in time"
        assert killer.most_at_once == 2, f"{killer.most_at_once} actors worked at once"
        first, second = by_name(alone), by_name(disturbed)
        others = sorted(name for name in first.keys() | second.keys() if first.get(name) != second.get(name))
        assert not others, f"the sets differ: {', '.join(others)}"
        error = refused(alone, folder) if with_refusal else ""
    return f"{pictures} pictures, {killer.killed} actors killed, 2 at work at once, bit-equal to one undisturbed{error}"


def made(work: SetWork, pictures: int, killer: Killer) -> ClassImages:
    """The set by a pool; the killer hears of each block."""
    return ensure_class_images(
        work, pictures, by_actor_pool, with_pictures=False, on_made=lambda done, total: killer.block_made()
    )


def by_name(work: SetWork) -> dict[str, bytes]:
    """All objects of a set by their keys below its place; of records, which hold whole keys, the names alone count."""
    prefix = work.place.prefix
    return {key.removeprefix(prefix): b"" if key.endswith(".json") else body for key, body in stored(work).items()}


def refused(work: SetWork, folder: Path) -> str:
    """A base model whose bytes are not the recorded ones: the pool's user gets the actor's own error."""
    files = [file.model_copy(update={"sha256": "0" * 64}) for file in work.base_files]
    broken = replace(elsewhere(work, "refused"), base_files=files, scratch_dir=str(folder / "other"))
    with pytest.raises(StorageError, match=keys.base_file("")):
        made(broken, 4, Killer(0, 0))
    return "; StorageError came home"


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, required=True)
    parser.add_argument("--pictures", type=int, required=True)
    arguments = parser.parse_args()
    print(killed(arguments.folder, arguments.kills, arguments.pictures, with_refusal=False))
    return 0


if __name__ == "__main__":
    sys.exit(main())
